"""Pruned models evaluated along a sweep, on the test images and on held-out clean ones."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from rnp_mlflow.core.evaluate import EvalSet, Predictions, Scores, Transform, accuracy, predict, predict_all
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.neurons import flatten
from rnp_mlflow.core.params import Precision
from rnp_mlflow.core.precision import memory_format
from rnp_mlflow.core.proxy import ProxyTrigger
from rnp_mlflow.core.prune import BNCalibration, SweepPoint, pruned_copy, ranking, sweep
from rnp_mlflow.core.select import SelectionRule, last_before_drop


@dataclass(frozen=True)
class CurvePoint:
    """One evaluated point: cutoff (None = unpruned), neurons pruned, test scores.

    holdout_acc: accuracy on held-out images. proxy_asr: the proxy's success rate on them, None without one.
    predictions: what the scores were computed from.
    """

    cutoff: float | int | None
    num_pruned: int
    scores: Scores
    holdout_acc: float
    proxy_asr: float | None = None
    predictions: Predictions | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Evaluator:
    """Measures a pruned model. holdout: clean images that trained nothing, for `holdout_acc` and `proxy_asr`."""

    eval_set: EvalSet
    holdout: LabeledImages
    transform: Transform
    proxy: ProxyTrigger | None = None
    precision: Precision = "fp32"

    def holdout_acc(self, model: nn.Module) -> float:
        """Measure accuracy on the held-out images."""
        return accuracy(predict(model, self.holdout.images, self.transform, self.precision), self.holdout.labels)

    def __call__(self, model: nn.Module) -> tuple[Scores, float, float | None, Predictions]:
        """Measure all that a `CurvePoint` holds of the model: scores, holdout_acc, proxy_asr, predictions."""
        found = predict_all(model, self.eval_set, self.transform, self.precision)
        scores = found.scores(self.eval_set)
        predicted = predict(model, self.holdout.images, self.transform, self.precision)
        holdout_acc = accuracy(predicted, self.holdout.labels)
        if self.proxy is None:
            return scores, holdout_acc, None, found
        rate = self.proxy.success_rate(model, self.holdout, self.transform, self.precision, plain=predicted)
        return scores, holdout_acc, rate, found


@dataclass(frozen=True)
class SweepPlan:
    """Which points a sweep may evaluate.

    points: the unpruned model first, then more and more pruned. rule: says which points matter. stride: evaluate
    every N-th point and the neighbours of those that matter. extra: evaluated in any case.
    """

    points: Sequence[SweepPoint]
    rule: SelectionRule
    stride: int = 1
    extra: Sequence[SweepPoint] = ()


def ignore_point(point: SweepPoint, measured: CurvePoint) -> None:
    """Do nothing after a point."""


def evaluate_sweep(
    model: nn.Module,
    mask: Mapping[str, Tensor],
    points: Iterable[SweepPoint],
    evaluator: Evaluator,
    calibrate: BNCalibration | None = None,
    *,
    on_point: Callable[[SweepPoint, CurvePoint], object] = ignore_point,
) -> list[CurvePoint]:
    """Evaluate the pruned model at every point; `model` is left unchanged.

    Raises:
        MaskError: the mask is not this model's.
    """
    curve = []
    with memory_format(model, evaluator.precision):
        for point, measured in sweep(model, mask, points, evaluator, calibrate):
            curve.append(CurvePoint(point.cutoff, point.num_pruned, *measured))
            on_point(point, curve[-1])
    return curve


def adaptive_sweep(
    model: nn.Module,
    mask: Mapping[str, Tensor],
    plan: SweepPlan,
    evaluator: Evaluator,
    calibrate: BNCalibration | None = None,
    *,
    on_point: Callable[[CurvePoint], object] = lambda point: None,
) -> dict[SweepPoint, CurvePoint]:
    """Evaluate every `plan.stride`-th point; around the choice, every point. In the order of `points`, then `extra`.

    Also evaluates the point before the proxy's failure point and the point after the chosen one, repeating until
    neither moves.

    Raises:
        MaskError: the mask is not this model's.
    """
    points, found = plan.points, dict[SweepPoint, CurvePoint]()

    def visits() -> Iterator[SweepPoint]:
        yield from dict.fromkeys((points[0], *points[1 :: plan.stride], points[-1], *plan.extra))
        while missing := unevaluated_neighbours(points, found, plan.rule):
            yield missing[0]

    def keep(point: SweepPoint, measured: CurvePoint) -> None:
        found[point] = measured
        on_point(measured)

    evaluate_sweep(model, mask, visits(), evaluator, calibrate, on_point=keep)
    return {point: found[point] for point in dict.fromkeys((*points, *plan.extra)) if point in found}


def unevaluated_neighbours(
    points: Sequence[SweepPoint], found: Mapping[SweepPoint, CurvePoint], rule: SelectionRule
) -> list[SweepPoint]:
    """Return the points before the failure point and after the chosen one, if they are not evaluated yet."""
    known = [k for k, point in enumerate(points) if point in found]
    fails, chosen = (known[k] for k in rule.select_with_failure_point([found[points[k]] for k in known]))
    return [points[k] for k in (fails - 1, chosen + 1) if 0 <= k < len(points) and points[k] not in found]


def refine_by_bisection(
    model: nn.Module,
    mask: Mapping[str, Tensor],
    points: list[CurvePoint],
    rule: SelectionRule,
    evaluator: Evaluator,
    *,
    bisections: int,
    calibrate: BNCalibration | None = None,
) -> list[CurvePoint]:
    """Insert one more point into the curve: the last that keeps held-out accuracy, found by bisection.

    With a proxy, bisection is skipped unless the verdict is borderline: exactly at the failure point ASR was still
    0.16-0.37 (digits, seeds 0 to 2), so one more sweep step is the margin. Only held-out images are used until the
    point is found. Its cutoff is a count if the others' are, else the mask value of the last neuron that it prunes.
    Nothing is inserted if nothing is gained.
    """
    floor = rule.accuracy_floor(points[0])
    last = last_before_drop([point.holdout_acc for point in points], floor)
    if last + 1 == len(points) or (rule.uses_proxy(points[0]) and not rule.borderline):
        return points
    low, high = points[last].num_pruned, points[last + 1].num_pruned
    for _ in range(bisections):
        if high - low < 2:
            break
        midpoint = (low + high) // 2
        accuracy_there = evaluator.holdout_acc(pruned_copy(model, mask, midpoint, calibrate))
        low, high = (midpoint, high) if accuracy_there >= floor else (low, midpoint)
    if low == points[last].num_pruned:
        return points
    cutoff = low if isinstance(points[-1].cutoff, int) else float(flatten(mask)[ranking(mask)[low - 1]])
    inserted = evaluate_sweep(model, mask, [SweepPoint(cutoff, low)], evaluator, calibrate)
    return [*points[: last + 1], *inserted, *points[last + 1 :]]
