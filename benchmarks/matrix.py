"""The matrix: attacks × architectures × seeds, each defended in several ways, as grids. It can be stopped and resumed.

    python -m benchmarks.matrix --data_dir /path/to/cifar10

`matrix.toml` says what is made. Finished runs are found in the MLflow experiment `matrix`; their figures are written
into `results/`.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import mlflow

from benchmarks import rows
from benchmarks.rows import Row
from benchmarks.variants import MASKED, figures, finetuning, ours
from rnp_mlflow.config import Attack, Grid, Prune
from rnp_mlflow.errors import RnpError
from rnp_mlflow.grid import spec
from rnp_mlflow.grid.spec import Spec
from rnp_mlflow.steps import grid, output, runtime
from rnp_mlflow.tracking import lineage

EXPERIMENT = "matrix"
RESULTS = Path(__file__).parent / "results"
MASKS = Path("matrix-masks")  # in the working folder; for a cluster, one that all its nodes have
OF_ROW = ("attack", "poison_rate", "model", "training_epochs", "seed")  # what tells rows apart

Runs = dict[Row, dict[str, str]]  # row → variant → run ID


def make(asked: Spec, settings: Grid) -> list[tuple[dict[str, Any], str]]:
    """Make a grid; return values and run ID of each cell that is done."""
    grid.run_spec(asked, settings)
    result = output.newest()
    cells: Any = result.content["cells"] if result else []
    pairs = zip(spec.cells(asked), cells, strict=True)
    return [(values, told["run_id"]) for values, told in pairs if told["run_id"]]


def limited(full: bool, only: str, given: dict[str, Any]) -> Spec:
    """Return the spec with the rows whose name contains a text, and with the settings that the call gives."""
    asked = rows.asked(full)
    if only:
        chosen = [row for row in rows.rows(full) if only in row.name]
        if not chosen:
            raise click.BadParameter(f"no row's name contains {only!r}", param_hint="--only")
        asked = replace(asked, only=[{k: row.values[k] for k in OF_ROW if k in row.values} for row in chosen])
    return replace(asked, settings=asked.settings | given)


def defended(asked: Spec, settings: Grid, full: bool) -> Runs:
    """Make the models, and ours and the reference's defence of them."""
    found: Runs = {}
    for values, run_id in make(asked, settings):
        name = "reference" if values.get("preset") == "reference" else "ours"
        found.setdefault(rows.row(values, full), {})[name] = run_id
    return found


def masked(asked: Spec, settings: Grid, found: Runs) -> None:
    """Prune by the masks of other defences, which are made from our runs; add these runs."""
    MASKS.mkdir(exist_ok=True)
    cells: list[dict[str, Any]] = []
    owners: dict[str, tuple[Row, str]] = {}
    for row, runs in found.items():
        for name, build in MASKED.items():
            if "ours" in runs and (own := build(runs["ours"], row.seed, MASKS / f"{row.name}-{name}.csv")):
                cells.append({name: row.values[name] for name in OF_ROW if name in row.values} | own)
                owners[own["mask_file"]] = row, name
    if cells:
        used = {*Attack.model_fields, *Prune.model_fields, "ratio"}  # a mask file replaces unlearning and recovery
        kept = {name: value for name, value in asked.settings.items() if name in used}
        again = replace(asked, settings=kept, axes={"masked": cells}, exclude=[], only=[])
        for values, run_id in make(again, settings):
            row, name = owners[values["mask_file"]]
            found[row][name] = run_id


def write(row: Row, runs: Mapping[str, str], threads: int) -> None:
    """Write the row's figures into a file of the repository; fine-tuning, which is not a run, is done once."""
    file = RESULTS / f"{row.name}.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    model_id = lineage.tag(lineage.get(runs["ours"]), "model_run_id") or ""
    variants: dict[str, Any] = {name: {} for name in MASKED}
    variants |= {name: ours(run_id) if name == "ours" else figures(run_id) for name, run_id in runs.items()}
    earlier = known.get("variants", {}) if known.get("attack_run") == model_id else {}
    if "finetuning" not in earlier:
        runtime.log(f"== {row.name}: finetuning")
        base = {"model_run_id": model_id, "seed": row.seed, "ratio": row.ratio, "threads": threads}
        earlier["finetuning"] = finetuning(base)
    run = lineage.get(model_id)
    machine = {name: lineage.tag(run, name) for name in ("machine", "python", "torch", "threads")}
    planted = {name: run.data.metrics.get(name) for name in ("acc", "asr", "ra")}
    content = {"row": row.record(), "attack_run": model_id, "before": planted, "machine": machine}
    RESULTS.mkdir(exist_ok=True)
    whole = content | {"variants": variants | {"finetuning": earlier["finetuning"]}}
    file.write_text(json.dumps(whole, indent=1) + "\n")


@click.command()
@click.option("--data_dir", required=True, help="CIFAR-10: torchvision's files, an image folder or an npz")
@click.option("--only", default="", help="rows whose name contains this")
@click.option("--full", is_flag=True, help="all images, full width, 100 epochs: for a GPU")
@click.option("--stage", type=click.Choice(["attack", "all"]), default="all", help="train the models, or all")
@click.option("--address", default="auto", help="of a Ray cluster, as of `grid`")
@click.option("--workers", default="auto", help="steps at the same time, as of `grid`")
@click.option("--threads", default=1, help="CPU threads of a step")
def main(*, data_dir: str, only: str, full: bool, stage: str, address: str, workers: str, threads: int) -> None:
    """Make what is missing of the matrix."""
    mlflow.set_experiment(EXPERIMENT)
    settings = Grid.model_validate({"address": address, "workers": workers})
    asked = limited(full, only, {"data_dir": data_dir, "threads": threads})
    if stage == "attack":
        make(replace(asked, step="attack"), settings)
        return
    found = defended(asked, settings, full)
    masked(asked, settings, found)
    for row, runs in found.items():
        try:
            if "ours" in runs:
                write(row, runs, threads)
        except RnpError as error:
            runtime.log(f"== {row.name}: {error}")


if __name__ == "__main__":
    main()
