"""RESULTS.md from the rows' files: `python -m benchmarks.report`. It only reads; no figure is typed by hand."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import click

from benchmarks.rows import CLEAN, UNSEEN, asked, epochs, rows
from rnp_mlflow.artifacts.renamed import detection_entries
from rnp_mlflow.attacks.registry import NONE
from rnp_mlflow.config import Prune
from rnp_mlflow.steps.attack import PLANTED

HERE = Path(__file__).parent
Found = dict[str, Any]
DETECTED = ("verdict", "conclusion")  # entries of a variant that older rows have under former names
# column → which point of which variant
COLUMNS = {
    "ours": ("ours", "chosen"), "oracle": ("ours", "oracle"), "fixed 0.70": ("ours", "fixed"),
    "reference": ("reference", "fixed"), "reference's oracle": ("reference", "oracle"), "NWC": ("nwc", "chosen"),
    "random": ("random", "fixed"), "fine-tuning": ("finetuning", "chosen"),
}  # fmt: skip

MEANING = (
    "ours: chosen without the trigger. oracle: best DER in hindsight, sees the trigger. fixed 0.70: the same mask "
    "at BackdoorBench's threshold. reference: the settings of BackdoorBench's `rnp.py`, at its fixed 0.70. reference's "
    "oracle: the same, best DER in hindsight. NWC: neurons ranked by the change of their weights in our unlearned "
    "model, chosen by accuracy. random: as many neurons as ours, at random. fine-tuning: on the same clean images. All "
    "with `precision=auto`, but fine-tuning in fp32. "
    f'Models with an ASR below {PLANTED} before the defence are marked "not planted" and left out of the means.'
)


def read(full: bool) -> list[Found]:
    """Read the finished rows, in the matrix's order."""
    files = [HERE / "results" / f"{row.name}.json" for row in rows(full)]
    found = [json.loads(file.read_text()) for file in files if file.is_file()]
    found = [row for row in found if "ours" in row["variants"]]
    for row in found:
        for variant in row["variants"].values():
            variant.update({name: detection_entries(variant[name] or {}) for name in DETECTED if name in variant})
    return found


def point(row: Found, column: str) -> Found | None:
    """Return the figures under a column; None if that variant has none."""
    variant, name = COLUMNS[column]
    found: dict[str, Any] | None = row["variants"].get(variant, {}).get(name)
    return found


def planted(row: Found) -> bool:
    return row["before"]["asr"] is not None and row["before"]["asr"] >= PLANTED


def spread(values: Iterable[float], form: str = ".3f") -> str:
    """Format mean ± sample standard deviation."""
    found = list(values)
    if not found:
        return ""
    return f"{mean(found):{form}}" + (f" ± {stdev(found):{form}}" if len(found) > 1 else "")


def line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def table(head: list[str], body: Iterable[list[object]]) -> list[str]:
    return [line(head), line("---" for _ in head), *(line(cells) for cells in body)]


def by_row(found: list[Found]) -> list[str]:
    """Return one line per model: before, ours, and everyone's DER."""
    head = ["attack", "rate", "architecture", "seed", "ACC / ASR / RA before", "ours: ACC / ASR / RA", "neurons"]
    head += [f"DER {name}" for name in COLUMNS] + ["run of ours"]
    body = []
    for row in found:
        what, before, ours = row["row"], row["before"], point(row, "ours") or {}
        figures = [fmt(source, "acc", "asr", "ra") for source in (before, ours)]
        ders = [fmt(point(row, name) or {}, "der") for name in COLUMNS]
        flag = "" if planted(row) or what["attack"] == NONE else " (not planted)"
        body.append([what["attack"] + flag, what["rate"], what["architecture"], what["seed"], *figures,
                     ours.get("pruned", ""), *ders, row["variants"]["ours"]["run"][:8]])  # fmt: skip
    return table(head, body)


def fmt(source: Found, *names: str) -> str:
    return " / ".join("–" if source.get(name) is None else f"{source[name]:.3f}" for name in names)


def summary(found: list[Found]) -> list[str]:
    """Return mean and spread over the planted rows, one line per column."""
    rows_ = [row for row in found if planted(row)]
    body = []
    for name in COLUMNS:
        pairs = [(row, here) for row in rows_ if (here := point(row, name))]
        loss = spread(row["before"]["acc"] - here["acc"] for row, here in pairs)
        body.append([name, len(pairs), spread(here["der"] for _, here in pairs), loss,
                     spread(here["asr"] for _, here in pairs), lowest(pairs)])  # fmt: skip
    head = ["", "models", "DER", "ACC lost", "ASR left", "lowest DER"]
    return table(head, body)


def beside(found: list[Found]) -> str:
    """Return the regret against the oracle, and how often ours is ahead of the reference and of its oracle."""
    rows_ = [row for row in found if planted(row)]
    both = [(best, ours) for row in rows_ if (best := point(row, "oracle")) and (ours := point(row, "ours"))]
    regret = spread(best["der"] - ours["der"] for best, ours in both)
    ahead = []
    for column in ("reference", "reference's oracle"):
        theirs = [(row, there) for row in rows_ if (there := point(row, column))]
        count = sum((point(row, "ours") or {})["der"] > there["der"] for row, there in theirs)
        ahead.append(f"{count} of {len(theirs)} models")
    return f"Regret against the oracle: {regret}. Ahead of the reference on {ahead[0]}, of its oracle on {ahead[1]}."


def lowest(pairs: list[tuple[Found, Found]]) -> str:
    if not pairs:
        return ""
    row, here = min(pairs, key=lambda pair: pair[1]["der"])
    return f"{here['der']:.3f} ({row['row']['attack']}, {row['row']['architecture']}, seed {row['row']['seed']})"


def verdicts(found: list[Found]) -> list[str]:
    """Return how often the target was named, and how often a backdoor was suspected in a clean model."""
    bad = [row for row in found if planted(row)]
    clean = [row for row in found if row["row"]["attack"] == NONE]
    said: Callable[[Found], Found] = lambda row: row["variants"]["ours"]["conclusion"]  # noqa: E731
    scores: Callable[[list[Found]], str] = lambda some: bounds(said(row)["benign_score"] for row in some)  # noqa: E731
    named = [row for row in bad if row["variants"]["ours"]["verdict"]["target"] == 0]
    alarm = [row for row in bad if said(row)["backdoor_suspected"]]
    false = [row for row in clean if said(row)["backdoor_suspected"]]
    lost = spread(row["before"]["acc"] - (point(row, "ours") or {})["acc"] for row in clean)
    return [
        f"* The right target was named in {len(named)} of {len(bad)} backdoored models, and a backdoor was suspected "
        f"in {len(alarm)} (benign score {scores(bad)}; of the {len(named)}, {scores(named)}; `benign_threshold` "
        f"{Prune().benign_threshold}).",
        f"* A backdoor was suspected in {len(false)} of {len(clean)} clean models (benign score {scores(clean)}).",
        f"* ACC lost on clean models: {lost}.",
    ]


def section(title: str, found: list[Found]) -> list[str]:
    """Return the means of these rows and the results on clean models; nothing if no attack planted."""
    if not any(map(planted, found)):
        return []
    ceiling = spread((row["before"]["asr"] + 1) / 2 for row in found if planted(row))
    return [
        f"## {title}",
        "",
        *summary(found),
        "",
        f"{beside(found)} DER can reach {ceiling}.",
        "",
        *verdicts(found),
        "",
    ]


def words(values: Mapping[str, object]) -> str:
    """Return names and values in one line."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def bounds(values: Iterable[float]) -> str:
    found = sorted(values)
    return f"{found[0]:.4f} to {found[-1]:.4f}" if found else "none"


def write(full: bool = False) -> None:
    """Write RESULTS.md, or RESULTS-full.md."""
    found = read(full)
    settings = asked(full).settings
    sizes = {"train_size": "training images", "test_size": "test images"}
    parts = [f"{settings[name]:,} {what}" if name in settings else f"all {what}" for name, what in sizes.items()]
    size = f"{' and '.join(parts)}, width {settings.get('width', 'full')}, epochs: {words(epochs(full))}"
    text = [
        "# The matrix", "",
        f"{len(found)} of {len(list(rows(full)))} models. CIFAR-10, {size}; {CLEAN} clean images, of which 100 are "
        "held out; target 0. Made by `python -m benchmarks.matrix`, written by `python -m benchmarks.report` from "
        "`results/`. Settings of ours: the defaults at the time (now: with `clear_threshold=0.007`), and the `ratio` "
        "that gives this number of clean images.", "",
        *(f"Made on: {machine}." for machine in sorted({words(row["machine"]) for row in found})), "",
        f"{MEANING} DER can reach (ASR before + 1) / 2 at most.", "",
        *(part for rate in (0.1, 0.01) for part in section(f"{rate:.0%} of the training images poisoned", [
            row for row in found if row["row"]["seed"] != UNSEEN and row["row"]["rate"] in (0.0, rate)
        ])),
        *section(f"Seed {UNSEEN}, 10%: nothing was tuned on it (on the others: see TRIALS.md)", [
            row for row in found if row["row"]["seed"] == UNSEEN
        ]),
        "## Every model", "", *by_row(found), "",
        "To repeat a line: `python -m rnp_mlflow rerun --run_id RUN_ID` in the store where it was made (the whole IDs "
        "are in `results/`), or `python -m benchmarks.matrix --only ROW`.", "",
    ]  # fmt: skip
    (HERE / ("RESULTS-full.md" if full else "RESULTS.md")).write_text("\n".join(text))


@click.command()
@click.option("--full", is_flag=True, help="of the rows at full size")
def main(full: bool) -> None:
    """Write the report."""
    write(full)


if __name__ == "__main__":
    main()
