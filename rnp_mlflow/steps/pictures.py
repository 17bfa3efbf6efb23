"""The pictures of a prune run, and the chart of all three phases."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from rnp_mlflow.artifacts import progress, table
from rnp_mlflow.artifacts.progress import Row
from rnp_mlflow.core.activation import trigger_change
from rnp_mlflow.core.curve import CurvePoint
from rnp_mlflow.core.evaluate import EvalSet, evenly_spaced
from rnp_mlflow.core.neurons import Mask, flatten
from rnp_mlflow.core.params import Precision
from rnp_mlflow.core.proxy import ProxyTrigger
from rnp_mlflow.core.prune import keep_mask, ranking
from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.data.triggered import find_counterparts
from rnp_mlflow.report.activation import TriggerChange, draw_activation
from rnp_mlflow.report.confusion import ClassAnswers, draw_confusion
from rnp_mlflow.report.curve import Point, Sweep, draw_curve
from rnp_mlflow.report.layers import draw_layers
from rnp_mlflow.report.phases import Phase, draw_phases
from rnp_mlflow.report.style import Caption
from rnp_mlflow.report.tradeoff import RunPoints, draw_tradeoff
from rnp_mlflow.steps import curve, samples
from rnp_mlflow.steps.captions import caption_of
from rnp_mlflow.steps.subject import Suspect
from rnp_mlflow.steps.summary import REPAIRED, PruneSummary
from rnp_mlflow.tracking import lineage
from rnp_mlflow.tracking.runs import StepRun

PAIRS, FEWEST = 100, 10  # images, with and without the trigger, that a neuron's change is measured on; at least
STEPS = ("unlearn", "recover")


@dataclass(frozen=True)
class Pruned:
    """What a prune run found.

    before, after: the model without and with the pruning. points: the curve. unpruned, used: the points before and
    after, measured on all test images. holdout: the defender's held-out images.
    """

    suspect: Suspect
    before: nn.Module
    after: nn.Module
    mask: Mask
    points: list[CurvePoint]
    unpruned: CurvePoint
    used: CurvePoint
    summary: PruneSummary
    holdout: ImageSet
    proxy: ProxyTrigger | None
    precision: Precision

    @property
    def eval_set(self) -> EvalSet:
        """Return all test images."""
        return self.suspect.eval_set(self.holdout)


def draw_all(run: StepRun, pruned: Pruned, upstream: Mapping[str, str], seed: int, limit: float) -> None:
    """Draw every picture of a prune run into its folder, and log the chart of all phases.

    upstream: step → run ID. limit: the accuracy at which unlearning stops.
    """
    caption, sweep = caption_of(run, pruned.suspect, seed), sweep_of(pruned)
    draw_curve(run.folder / table.CURVE_PNG, sweep, caption)
    if phases := training_phases(upstream, limit):
        phases = [*phases, pruning_phase(sweep)]
        draw_phases(run.folder / "rnp.png", phases, caption)
        run.history(chart(phases))
    draw_answers(run, pruned, caption)
    draw_classes(run, pruned, caption)
    if pruned.used.num_pruned:
        draw_layers(run.folder / "pruned_layers.png", pruned_by_layer(pruned.mask, pruned.used.num_pruned), caption)
    if pruned.unpruned.scores.asr is not None:
        draw_tradeoff(run.folder / "tradeoff.png", [run_points(pruned, run.run_id)], caption)
    draw_trigger_change(run, pruned, caption)


def sweep_of(pruned: Pruned) -> Sweep:
    """Return the curve as `report` draws it."""
    summary, rows = pruned.summary, [curve.values(point, pruned.summary.pruning_by) for point in pruned.points]
    points = [
        Point(name, point.cutoff, point.num_pruned, name == summary.pruned_at)
        for name, point in summary.points.items()
        if name != REPAIRED
    ]
    ranked = flatten(pruned.mask)[ranking(pruned.mask)]
    values = [float(ranked[row["pruned"] - 1]) for row in rows if row["pruned"]]
    measured = {"acc": len(pruned.eval_set.images), "asr": summary.images.triggered}
    if summary.curve_eval_size:
        measured = {name: min(count, summary.curve_eval_size) for name, count in measured.items()}
    measured["ra"] = measured["asr"]
    return Sweep(rows, summary.pruning_by, points, measured, values, repair_note(summary))


def repair_note(summary: PruneSummary) -> str:
    """Say what the purified model reaches, if it is not a point of the curve, because it was repaired."""
    if summary.selected != REPAIRED:
        return ""
    found = summary.picked
    asr = "" if found.asr is None else f", ASR {found.asr:.3f}"
    return f"the purified model, repaired after pruning: ACC {found.acc:.3f}{asr}"


def training_phases(upstream: Mapping[str, str], limit: float) -> list[Phase]:
    """Return unlearning and recovery as they were measured; nothing if a run before this one did not measure them."""
    if not all(step in upstream and lineage.has_artifact(upstream[step], table.PROGRESS) for step in STEPS):
        return []
    unlearned, recovered = (progress.read(lineage.fetch(upstream[step], table.PROGRESS)) for step in STEPS)
    measured = [row for row in unlearned if row["acc"] is not None]
    start = dict(measured[-1]) | {"step": 0.0, "rule_accuracy": None}
    return [
        Phase("unlearning", "steps", "step", unlearned, counts_of(measured[0]), limit=limit),
        Phase("recovery", "steps", "step", [start, *recovered], counts_of(measured[0])),
    ]


def counts_of(row: Row) -> dict[str, int]:
    """Return how many images a moment was measured on."""
    return {"acc": int(row["images"] or 0), "asr": int(row["triggered"] or 0)}


def pruning_phase(sweep: Sweep) -> Phase:
    """Return the third panel: the curve."""
    xlabel = "neurons" if sweep.axis == "number" else "mask value"
    return Phase("pruning", xlabel, sweep.axis, sweep.rows, sweep.counts, points=sweep.points, note=sweep.note)


def chart(phases: list[Phase]) -> list[tuple[str, float | None, int]]:
    """Return `rnp/acc`, `rnp/asr` and `rnp/proxy_asr` as (name, value, step), for one chart.

    The step is the percentage of the phase, plus 100 for recovery and 200 for pruning.
    """
    found = []
    for k, phase in enumerate(phases):
        rows = [row for row in phase.rows if row["acc"] is not None][k and 1 :]
        last = max((row[phase.axis] or 0 for row in rows), default=0) or 1
        for row in rows:
            step = 100 * k + round(100 * (row[phase.axis] or 0) / last)
            found += [(f"rnp/{name}", row[name], step) for name in ("acc", "asr", "proxy_asr")]
    return found


def draw_answers(run: StepRun, pruned: Pruned, caption: Caption) -> None:
    """Draw clean and triggered images with the model's answers before and after pruning; else proxied ones."""
    suspect, file = pruned.suspect, run.folder / "samples_after.png"
    models = {"before:": pruned.before, "after:": pruned.after}
    respondents = samples.Respondents(models, suspect.transform, pruned.precision, suspect.spec.classes)
    if suspect.triggered is None:
        samples.draw_proxied(file, pruned.holdout, pruned.proxy, respondents, caption)
    else:
        samples.draw_triggered(file, suspect.triggered, suspect.data.test or pruned.holdout, respondents, caption)


def draw_classes(run: StepRun, pruned: Pruned, caption: Caption) -> None:
    """Draw the confusion matrices before and after, from what was predicted for the test images."""
    before, after = pruned.unpruned.predictions, pruned.used.predictions
    if before is None or after is None:
        return
    answers = ClassAnswers(pruned.eval_set.labels.cpu(), before.clean, after.clean)
    draw_confusion(run.folder / "confusion.png", answers, pruned.suspect.spec.classes, caption)


def pruned_by_layer(mask: Mask, num_pruned: int) -> dict[str, tuple[int, int]]:
    """Return layer → (neurons pruned, neurons)."""
    parts = keep_mask(mask, num_pruned).split([len(values) for values in mask.values()])
    return {name: (int((keep == 0).sum()), len(keep)) for name, keep in zip(mask, parts, strict=True)}


def run_points(pruned: Pruned, name: str) -> RunPoints:
    """Return the run's points in the plane of ACC and ASR, on the images of the curve."""
    found = {point.num_pruned: (point.scores.acc, point.scores.asr or 0.0) for point in pruned.points}
    marked = {
        name: found[point.num_pruned] if name != REPAIRED else (point.acc, point.asr or 0.0)
        for name, point in pruned.summary.points.items()
        if point.num_pruned in found
    }
    return RunPoints(name, list(found.values()), marked)


def draw_trigger_change(run: StepRun, pruned: Pruned, caption: Caption) -> None:
    """Draw what the trigger changes in each neuron; nothing if too few triggered images are known without it, too."""
    suspect, bad = pruned.suspect, pruned.suspect.triggered
    if bad is None:
        return
    clean = suspect.data.test or pruned.holdout
    chosen = evenly_spaced(len(bad.images), PAIRS)
    places, same = find_counterparts(bad, clean, chosen)
    if int(same.sum()) < FEWEST:
        return
    pair = clean.images[places[same].to(clean.images.device)].cpu(), bad.images[chosen[same]]
    found = TriggerChange(trigger_change(pruned.before, *pair, suspect.transform), int(same.sum()))
    lost = keep_mask(pruned.mask, pruned.used.num_pruned) == 0
    draw_activation(run.folder / "trigger_change.png", found, pruned.mask, lost, caption)
