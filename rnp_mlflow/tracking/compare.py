"""What differs between two runs of the same step, and by how much."""

import csv
from collections.abc import Collection
from pathlib import Path

import torch
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from rnp_mlflow.artifacts import table
from rnp_mlflow.tracking import contents, lineage
from rnp_mlflow.tracking.runs import VERSIONS

ORIGIN = ("data", "code", "threads", "device", "processor", "precision", *VERSIONS)


def runs(old_id: str, new_id: str, neutral: Collection[str] = ()) -> list[str]:
    """One line for everything that differs; empty if metric histories and results are equal to the bit.

    What went in (parameters, data, code, versions) is named only beside results that differ, or where
    it differs itself by parameter or data: equal figures from other data are no repetition. neutral: parameters that
    change no figure.
    """
    old, new = lineage.get(old_id), lineage.get(new_id)
    causes = [line for name in ORIGIN if (line := origin(old, new, name))]
    inputs = settings(old_id, new_id, neutral) + [line for line in causes if line.startswith("data")]
    effects = metrics(old, new)
    effects += artifacts(old, new)
    if not effects:
        return inputs
    return inputs + [line for line in causes if line not in inputs] + effects


def origin(old: Run, new: Run, name: str) -> str | None:
    """A line on a tag of where a run came from."""
    before, now = lineage.tag(old, name), lineage.tag(new, name)
    return None if before == now else f"{name} was {(before or 'unknown')[:12]}, is {(now or 'unknown')[:12]}"


def settings(old_id: str, new_id: str, neutral: Collection[str]) -> list[str]:
    """Parameters of the step itself that differ, but for those that change no figure."""
    old, new = lineage.settings_of(old_id), lineage.settings_of(new_id)
    lines = []
    for name, before in old["settings"].get(old["entry"], {}).items():
        now = new["settings"][new["entry"]].get(name)
        if name not in neutral and before != now:
            lines.append(f"parameter {name} was {before}, is {now}")
    return lines


def metrics(old: Run, new: Run) -> list[str]:
    """Metrics whose histories differ, with the largest difference."""
    client, lines = MlflowClient(), []
    for name in sorted(set(old.data.metrics) | set(new.data.metrics)):
        before, now = (
            [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] for run in (old, new)
        )
        if before != now:
            lines.append(f"metric {name}: {gap(before, now)}")
    return lines


def gap(before: list[tuple[int, float]], now: list[tuple[int, float]]) -> str:
    """How far two histories are apart."""
    if [step for step, _ in before] != [step for step, _ in now]:
        return f"{len(before)} values were logged, now {len(now)}"
    largest = max(abs(a - b) for (_, a), (_, b) in zip(before, now, strict=True))
    return f"was {before[-1][1]:.6g}, is {now[-1][1]:.6g} at the end; largest difference {largest:.3g}"


def artifacts(old: Run, new: Run) -> list[str]:
    """A line for each compared artifact that differs, or that one of the two runs did not leave."""
    lines = []
    before, now = contents.left_by(old), contents.left_by(new)
    for path in (a.path for a in table.ARTIFACTS[lineage.tag(old, "entry") or "main"] if a.compared):
        if path in before and path in now:
            lines += artifact(contents.fetch(old, path), contents.fetch(new, path), path)
        elif path in before or path in now:
            lines.append(f"{path}: {'was left, is not now' if path in before else 'was not left, is now'}")
    return lines


def artifact(old: Path, new: Path, path: str) -> list[str]:
    """A line if the files differ by a bit: by how much, for weights, masks and curves."""
    if old.read_bytes() == new.read_bytes():
        return []
    if path.endswith(".safetensors"):
        return [f"{path}: {weights(old, new)}"]
    if path.endswith(".csv"):
        return [f"{path}: {rows(old, new)}"]
    return [f"{path}: {lines_apart(old, new)}"]


def weights(old: Path, new: Path) -> str:
    before, now = load_file(old), load_file(new)
    if before.keys() != now.keys() or any(before[k].shape != now[k].shape for k in before):
        return "other tensors"
    apart = {k: float((before[k].double() - now[k].double()).abs().max()) for k in before if before[k].numel()}
    changed = [k for k in before if not torch.equal(before[k], now[k])]
    return f"{len(changed)} of {len(before)} tensors differ, by up to {max(apart.values(), default=0.0):.3g}"


def rows(old: Path, new: Path) -> str:
    before, now = (list(csv.DictReader(file.open())) for file in (old, new))
    if len(before) != len(now):
        return f"{len(before)} rows, now {len(now)}"
    changed = [k for k, (a, b) in enumerate(zip(before, now, strict=True)) if a != b]
    largest = 0.0
    for k in changed:
        for a, b in zip(before[k].values(), now[k].values(), strict=True):
            try:
                largest = max(largest, abs(float(a) - float(b)))
            except ValueError:
                continue
    return f"{len(changed)} of {len(before)} rows differ, by up to {largest:.3g}"


def lines_apart(old: Path, new: Path) -> str:
    before, now = (set(file.read_text().replace(",", "\n").split()) for file in (old, new))
    return f"{len(before - now)} of {len(before)} entries are gone, {len(now - before)} are new"
