"""Compare two runs of the same step: what differs, and by how much."""

import csv
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from mlflow.entities import Run
from safetensors.torch import load_file

from rnp_mlflow.artifacts import table
from rnp_mlflow.artifacts.renamed import MEASURED_AT_MOMENTS, METRICS, NO_LONGER_LOGGED, detection_entries
from rnp_mlflow.artifacts.stored import read_json
from rnp_mlflow.tracking import contents, lineage, store
from rnp_mlflow.tracking.runs import PREFIX, VERSIONS

PROVENANCE = ("data", "code", "threads", "device", "processor", "precision", "python", *VERSIONS)


Renaming = Callable[[Mapping[str, Any]], dict[str, Any]]  # logged settings → the same under their present names


def runs(old_id: str, new_id: str, neutral: Collection[str] = (), renaming: Renaming = dict) -> list[str]:
    """Return one line per difference; an empty list if metric histories and results are equal bit for bit.

    Different parameters, data or files are always listed, because equal figures from others are not a repetition. Other
    provenance (code, versions, machine) is listed only if results differ. neutral: parameters that change no figure.
    renaming: of parameters that had other names when the old run was made.
    """
    old, new = lineage.get(old_id), lineage.get(new_id)
    causes = [line for name in PROVENANCE if (line := provenance_diff(old, new, name))]
    inputs = settings_diff(old_id, new_id, neutral, renaming) + [line for line in causes if line.startswith("data")]
    inputs += file_diffs(old, new)
    effects = metric_diffs(old, new)
    effects += artifact_diffs(old, new)
    if not effects:
        return inputs
    return inputs + [line for line in causes if line not in inputs] + effects


def provenance_diff(old: Run, new: Run, name: str) -> str | None:
    """Return a line if a provenance tag differs, else None."""
    before, now = lineage.tag(old, name), lineage.tag(new, name)
    return None if before == now else f"{name} was {(before or 'unknown')[:12]}, is {(now or 'unknown')[:12]}"


def file_diffs(old: Run, new: Run) -> list[str]:
    """Return a line for each file that both runs read under the same parameter, and whose content differs."""
    before, now = old.data.tags, new.data.tags
    names = sorted(name for name in before.keys() & now if name.startswith(PREFIX + lineage.FILE))
    return [
        f"{name.removeprefix(PREFIX + lineage.FILE)}: the file's SHA-256 was {before[name][:12]}, is {now[name][:12]}"
        for name in names
        if before[name] != now[name]
    ]


def settings_diff(old_id: str, new_id: str, neutral: Collection[str], renaming: Renaming) -> list[str]:
    """Return a line for each parameter of the step itself that differs, except neutral ones."""
    old, new = lineage.settings_of(old_id), lineage.settings_of(new_id)
    lines = []
    present = renaming(new["settings"].get(new["entry"], {}))
    for name, before in renaming(old["settings"].get(old["entry"], {})).items():
        now = present.get(name)
        if name not in neutral and before != now:
            lines.append(f"parameter {name} was {before}, is {now}")
    return lines


def metric_diffs(old: Run, new: Run) -> list[str]:
    """Return a line for each metric whose history differs, with the largest difference."""
    client, lines = store.client(), []
    both_measured = all(_has_moments(run) for run in (old, new))
    stored = [{METRICS.get(name, name): name for name in run.data.metrics} for run in (old, new)]
    for own in stored:
        for name in list(own):
            if NO_LONGER_LOGGED.fullmatch(name) or (MEASURED_AT_MOMENTS.fullmatch(name) and not both_measured):
                del own[name]
    for name in sorted({*stored[0], *stored[1]}):
        before, now = (
            [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, own.get(name, name))]
            for run, own in zip((old, new), stored, strict=True)
        )
        if before != now:
            lines.append(f"metric {name}: {history_diff(before, now)}")
    return lines


def _has_moments(run: Run) -> bool:
    """Return whether the run measured moments, or drew the chart of those that its upstream runs measured."""
    return table.PROGRESS in contents.listed_artifacts(run) or "rnp/acc" in run.data.metrics


def history_diff(before: list[tuple[int, float]], now: list[tuple[int, float]]) -> str:
    """Describe the difference between two metric histories of (step, value)."""
    if [step for step, _ in before] != [step for step, _ in now]:
        return f"{len(before)} values were logged, now {len(now)}"
    largest = max(abs(a - b) for (_, a), (_, b) in zip(before, now, strict=True))
    return f"was {before[-1][1]:.6g}, is {now[-1][1]:.6g} at the end; largest difference {largest:.3g}"


def artifact_diffs(old: Run, new: Run) -> list[str]:
    """Return a line for each compared artifact that differs, or that only one of the runs left."""
    lines = []
    before, now = contents.listed_artifacts(old), contents.listed_artifacts(new)
    for path in (a.path for a in table.ARTIFACTS[lineage.tag(old, "entry") or "main"] if a.compared):
        if path in before and path in now:
            lines += file_diff(contents.fetch(old, path), contents.fetch(new, path), path)
        elif path in before or path in now:
            lines.append(f"{path}: only the {'old' if path in before else 'new'} run has it")
    return lines


def file_diff(old: Path, new: Path, path: str) -> list[str]:
    """Return a line if the files differ by a bit, with the size of the difference for weights, masks and curves."""
    if old.read_bytes() == new.read_bytes():
        return []
    if path == table.VERDICT and _verdict(old) == _verdict(new):
        return []
    if path == table.SUMMARY:
        return [f"{path}: {name} differs" for name in summary_diff(old, new)]
    if path.endswith(".safetensors"):
        return [f"{path}: {weights_diff(old, new)}"]
    if path.endswith(".csv"):
        return [f"{path}: {csv_diff(old, new)}"]
    return [f"{path}: {text_diff(old, new)}"]


def _verdict(file: Path) -> dict[str, Any]:
    """Read a verdict under the present names of its entries."""
    return detection_entries(read_json(file))


def summary_diff(old: Path, new: Path) -> list[str]:
    """Return the entries of both summaries that differ; an older one may lack some."""
    before, now = (read_json(file) for file in (old, new))
    for content in (before, now):
        content["verdict"] = detection_entries(content.get("verdict") or {})
    return [name for name in before if name in now and before[name] != now[name]]


def weights_diff(old: Path, new: Path) -> str:
    before, now = load_file(old), load_file(new)
    if before.keys() != now.keys() or any(before[k].shape != now[k].shape for k in before):
        return "other tensors"
    apart = {k: float((before[k].double() - now[k].double()).abs().max()) for k in before if before[k].numel()}
    changed = [k for k in before if not torch.equal(before[k], now[k])]
    return f"{len(changed)} of {len(before)} tensors differ, by up to {max(apart.values(), default=0.0):.3g}"


def csv_diff(old: Path, new: Path) -> str:
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


def text_diff(old: Path, new: Path) -> str:
    before, now = (set(file.read_text().replace(",", "\n").split()) for file in (old, new))
    return f"{len(before - now)} of {len(before)} entries are gone, {len(now - before)} are new"
