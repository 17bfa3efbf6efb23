"""What a grid says of its cells: the table, and what it would be to make them."""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from mlflow.entities import Run

from rnp_mlflow.config import PIPELINE, Grid, Import, text
from rnp_mlflow.errors import LineageError
from rnp_mlflow.grid.drive import Drive
from rnp_mlflow.grid.graph import Graph, Node
from rnp_mlflow.grid.spec import IMPORT, Spec, Values
from rnp_mlflow.report import comparison
from rnp_mlflow.steps import grid_cells, labels
from rnp_mlflow.steps.output import Result
from rnp_mlflow.tracking import ledger, ui
from rnp_mlflow.tracking.runs import PREFIX, StepRun

FIGURES = ("acc_before", "acc", "asr_before", "asr", "der")
DESCRIBED, PRINTED = 7000, 40  # characters of the table in the run's description (MLflow takes 8000); cells printed
Row = dict[str, str]


def logged(settings: Grid, spec: Spec) -> dict[str, str]:
    """Return the parameters of a grid's run."""
    axes = {name: ", ".join(shown(value) for value in values)[:500] for name, values in spec.axes.items()}
    return {name: text(value) for name, value in settings} | {f"axes.{name}": value for name, value in axes.items()}


def spec_json(spec: Spec) -> str:
    """Return the spec as it was understood, with what the command line added."""
    return json.dumps(asdict(spec), indent=1, default=str) + "\n"


def shown(value: Any) -> str:
    """Return a value of an axis in a few characters."""
    if isinstance(value, dict):
        return (
            labels.origin(Import.model_construct(**value))
            if {"checkpoint", "attack_result", "model_uri"} & value.keys()
            else (" ".join(f"{name}={shown(one)}" for name, one in value.items()) or "–")
        )
    return text(tuple(value) if isinstance(value, list) else value)


def rows(
    cells: Sequence[Values], keys: Sequence[str], drive: Drive, runs: Mapping[str, Run | None], made: set[str]
) -> list[Row]:
    """Return a row per cell: what tells it from the others, what became of it, its run and figures."""
    found: list[Row] = []
    for values, key in zip(cells, keys, strict=True):
        run, reason = runs[key], drive.failed.get(key, "")
        who = {name: shown(values[name]) if name in values else "–" for name in grid_cells.columns(cells)}
        state = {"state": "done" if key in drive.done else "failed", "made": text(key in made), "reason": reason}
        metrics = run.data.metrics if run else {}
        figures = {name: f"{metrics[name]:.4f}" if name in metrics else "" for name in FIGURES}
        seconds = run.data.tags.get(f"{PREFIX}seconds", "") if run else ""
        found.append({**who, **state, **figures, "seconds": seconds, "run_id": drive.done.get(key, ""), "key": key})
    return found


def write(file: Path, rows: Sequence[Row]) -> None:
    """Write the table as CSV."""
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def run_ids(file: Path) -> list[str]:
    """Read the run IDs of the cells that are done.

    Raises:
        LineageError: it is not such a table.
    """
    with file.open(newline="") as stream:
        found = [row.get("run_id") or "" for row in csv.DictReader(stream)]
    if not all(run_id.isalnum() for run_id in found if run_id):
        raise LineageError(f"{file.name}: a run ID has characters that none has; the table was changed")
    return list(dict.fromkeys(run_id for run_id in found if run_id))


def lines(rows: Sequence[Row], most: int) -> list[str]:
    """Return the table in Markdown, with the figures as far as there are any, and why cells failed."""
    names = [name for name in rows[0] if name not in ("made", "reason", "seconds", "run_id", "key")]
    names = [name for name in names if name not in FIGURES or any(row[name] for row in rows)]
    table = comparison.markdown(
        pd.DataFrame([[row[name] or "–" for name in names] for row in rows[:most]], columns=names)
    )
    more = [f"… and {len(rows) - most} more: cells.csv"] if len(rows) > most else []
    reasons = Counter(row["reason"] for row in rows if row["state"] != "done")
    return [*table, *more, *(f"  {count} failed: {reason}" for reason, count in reasons.most_common(10))]


def markdown(rows: Sequence[Row], experiment_id: str) -> str:
    """Return the description of the grid's run; each cell that is done links to its run."""
    linked = [
        {
            "run": f"[{row['run_id'][:8]}](#/{ui.run_path(experiment_id, row['run_id'])})" if row["run_id"] else "–",
            **row,
        }
        for row in rows
    ]
    failed = sum(row["state"] != "done" for row in rows)
    width = len(lines(linked, 1)[0]) + 1
    return "\n".join([f"{len(rows) - failed} of {len(rows)} cells are done.", "", *lines(linked, DESCRIBED // width)])


def result(run: StepRun, rows: Sequence[Row], made: int) -> Result:
    """Return what to print."""
    failed = sum(row["state"] != "done" for row in rows)
    brief = [f"grid run {run.run_id}", f"  {len(rows) - failed} of {len(rows)} cells are done; {made} steps were made"]
    content = {"entry": "grid", "run_id": run.run_id, "steps_made": made, "failed": failed, "cells": list(rows)}

    def wide(width: int, verbose: bool) -> list[str]:
        then = f"  compare them: python -m rnp_mlflow report --grid {run.run_id}"
        return [
            *brief,
            *lines(rows, len(rows) if verbose else PRINTED),
            then,
            *ui.ui_links(run.experiment_id, [run.run_id]),
        ]

    return Result(content, brief, wide)


def forecast(
    graph: Graph, there: Mapping[str, str], failed: Mapping[str, str], at_once: int, experiments: list[str]
) -> Result:
    """Return what a grid would make, and about how long that takes, after earlier steps of its kind."""
    missing = [
        node for node in graph.missing({*there, *failed}) if not any(one.key in failed for one in graph.path(node.key))
    ]  # what starts from a step that failed is not made
    kinds = [kind for kind in (IMPORT, *PIPELINE) if any(node.step == kind for node in graph.nodes.values())]
    count = Counter(node.step for node in graph.nodes.values())
    have, to_make = Counter(graph.nodes[key].step for key in there), Counter(node.step for node in missing)
    steps = {kind: {"steps": count[kind], "there": have[kind], "missing": to_make[kind]} for kind in kinds}
    known = times(ledger.seconds(experiments), missing)
    total = sum(known.values()) if len(known) == len(missing) else None
    longest = max((sum(known.get(node.key, 0.0) for node in graph.path(key)) for key in graph.cells), default=0.0)
    seconds = None if total is None else max(longest, total / at_once)
    content = {"entry": "grid", "cells": len(graph.cells), "steps": steps, "failed": len(failed), "seconds": seconds,
               "at_once": at_once}  # fmt: skip
    table = comparison.markdown(pd.DataFrame([[kind, *each.values()] for kind, each in steps.items()],
                                             columns=["step", "steps", "there", "missing"]))  # fmt: skip
    guess = (
        "nothing is to be made"
        if not missing
        else "not known: no earlier steps of some kind"
        if seconds is None
        else f"about {spoken(seconds)}, {at_once} at once"
    )
    words = [f"{len(graph.cells)} cells", *table, f"time: {guess}"]
    words += [f"{len(failed)} steps failed in an earlier grid; --retry_failed makes them again"] if failed else []
    return Result(content, words, lambda width, verbose: words)


def times(known: Sequence[tuple[Mapping[str, str], float]], nodes: Sequence[Node]) -> dict[str, float]:
    """Return the expected seconds of steps: the median of its kind and model or, failing that, of its kind."""
    by_kind: dict[tuple[str, ...], list[float]] = {}
    for tags, seconds in known:
        kind, model = tags.get(f"{PREFIX}entry", ""), tags.get(f"{PREFIX}model", "")
        for group in ((kind,), (kind, model)):
            by_kind.setdefault(group, []).append(seconds)
    found = {}
    for node in nodes:
        alike = by_kind.get((node.step, str(node.values.get("model", "")))) or by_kind.get((node.step,))
        if alike:
            found[node.key] = median(alike)
    return found


def spoken(seconds: float) -> str:
    """Return a time in words."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
