"""Ours and peers on suspects without BatchNorm: one JSON file a suspect, and the table of all.

    python -m benchmarks.norm_free make RUN_ID ...
    python -m benchmarks.norm_free table

`make` takes runs of `attack` in the tracking store. All defences get the same clean images; peers may use those that
ours holds out, too. With `--ours` it leaves peers out; a later call adds them.
"""

import io
import json
import time
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path
from statistics import fmean
from typing import Any

import click

from benchmarks.peers import anp, fine_pruning, finetuning, ibau
from benchmarks.variants import opened
from rnp_mlflow import cli
from rnp_mlflow.core.evaluate import der, evaluate
from rnp_mlflow.tracking import lineage

RESULTS = Path(__file__).parent / "results_norm_free"
SEED = 0
SETTINGS = {"threads": 1, "precision": "fp32", "seed": SEED}
PEERS = {
    "finetuning": finetuning.purify, "fine_pruning": fine_pruning.purify, "anp": anp.purify, "ibau": ibau.purify,
}  # fmt: skip
Row = dict[str, Any]


def ours(run_id: str) -> Row:
    """Return the figures of `prune` by defaults."""
    printed, began = io.StringIO(), time.perf_counter()
    flags = [f"--{name}={value}" for name, value in SETTINGS.items()]
    with redirect_stdout(printed):
        code = cli.main(["prune", f"--model_run_id={run_id}", "--json", *flags])
    assert code == 0, f"prune of {run_id} ended with exit code {code}"
    found = json.loads(printed.getvalue())
    kept = {name: found[name] for name in ("before", "after", "points", "verdict", "selected")}
    return kept | {"seconds": time.perf_counter() - began}


def peers(run_id: str) -> dict[str, Row | None]:
    """Return the figures of each peer; None if it does not run on this network."""
    suspect, given, test = opened({"model_run_id": run_id} | SETTINGS)
    before = evaluate(suspect.model, test, suspect.transform)
    found: dict[str, Row | None] = {}
    for name, peer in PEERS.items():
        began = time.perf_counter()
        purified = peer(suspect.model, given, suspect.transform, SEED)
        seconds = time.perf_counter() - began
        after = evaluate(purified, test, suspect.transform) if purified else None
        found[name] = vars(after) | {"der": der(before, after), "seconds": seconds} if after else None
    return found


@click.group()
def main() -> None:
    """Compare on suspects without BatchNorm."""


@main.command()
@click.argument("run_ids", nargs=-1, required=True)
@click.option("--ours", "alone", is_flag=True, help="leave peers out")
def make(run_ids: Iterable[str], alone: bool) -> None:
    """Make what is missing in the file of each suspect."""
    RESULTS.mkdir(exist_ok=True)
    for run_id in run_ids:
        run = lineage.require(run_id, "attack")
        known = {name: run.data.params[name] for name in ("attack", "model", "dataset", "seed", "poison_rate")}
        file = RESULTS / ("-".join(known[name] for name in ("attack", "model", "dataset", "seed")) + ".json")
        machine = {name: lineage.tag(run, name) for name in ("machine", "python", "torch")}
        content = json.loads(file.read_text()) if file.exists() else {"suspect": known, "machine": machine}
        if "ours" not in content:
            content["ours"] = ours(run_id)
        if "peers" not in content and not alone:
            content["peers"] = peers(run_id)
        file.write_text(json.dumps(content, indent=1) + "\n")
        click.echo(f"{file.stem}: {content['ours']['after']}")


@main.command()
@click.option("--only", default="", help="files whose name contains this")
def table(only: str) -> None:
    """Print the Markdown tables."""
    rows = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json")) if only in file.name]
    planted = [row for row in rows if row["suspect"]["attack"] != "none"]
    for key in ("model", "attack"):
        click.echo(f"\n| {key} | n | ours | " + " | ".join(PEERS) + " |\n|---|---|---|" + "---|" * len(PEERS))
        for value in [*sorted({row["suspect"][key] for row in planted}), None]:
            some = [row for row in planted if value in (None, row["suspect"][key])]
            cells = [means([row["ours"]["after"] for row in some])]
            cells += [means([row["peers"][name] for row in some if "peers" in row]) for name in PEERS]
            click.echo(f"| {value or 'all'} | {len(some)} | {' | '.join(cells)} |")
    click.echo("\n| clean model | verdict | ACC before → after | benign score |\n|---|---|---|---|")
    for row in rows:
        if row["suspect"]["attack"] == "none":
            own, name = row["ours"], f"{row['suspect']['model']}, {row['suspect']['dataset']}, {row['suspect']['seed']}"
            accuracies = f"{own['before']['acc']:.3f} → {own['after']['acc']:.3f}"
            score = own["verdict"]["benign_score"]
            click.echo(f"| {name} | {own['verdict']['confidence']} | {accuracies} | {score:.4f} |")


def means(found: list[Row | None]) -> str:
    """Return mean DER (lowest), ASR and ACC of the rows that a defence runs on."""
    some = [row for row in found if row]
    if not some:
        return ""
    rating, asr, acc = (fmean(row[name] for row in some) for name in ("der", "asr", "acc"))
    less = f" (n = {len(some)})" if len(some) < len(found) else ""
    return f"{rating:.3f} ({min(row['der'] for row in some):.3f}), ASR {asr:.3f}, ACC {acc:.3f}{less}"


if __name__ == "__main__":
    main()
