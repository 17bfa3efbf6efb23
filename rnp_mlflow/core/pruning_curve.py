"""The pruning curve as its parameters say, the detection statistics, and the choice of the operating point."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

from torch import nn

from rnp_mlflow.core import verdict
from rnp_mlflow.core.curve import CurvePoint, Evaluator, SweepPlan, adaptive_sweep, refine_by_bisection
from rnp_mlflow.core.evaluate import Scores, evaluate
from rnp_mlflow.core.neurons import Mask
from rnp_mlflow.core.params import SweepParams
from rnp_mlflow.core.prune import BNCalibration, SweepPoint, pruned_copy, sweep_cutoffs, sweep_point
from rnp_mlflow.core.select import SelectionRule, best_der_index
from rnp_mlflow.core.verdict import TargetEstimate
from rnp_mlflow.errors import ConfigError

TRIGGER_FREE = ("proxy", "clean_acc")  # values of select_by that need no trigger and no number


def as_measured(point: CurvePoint) -> CurvePoint:
    """Return the point: it was measured on all test images."""
    return point


@dataclass(frozen=True)
class PruningCurve:
    """All evaluated points, the unpruned model first; the fixed operating point; what calibrates a pruned model.

    proxy_norm, removal_cost, forgetting_rate: the detection statistics (`core.verdict`); None without a proxy.
    A proxy that flips nothing on the unpruned model counts as norm 1. on_full_test_set: replaces a point's scores by
    those on all test images, if the curve was measured on `curve_eval_size` of them.
    """

    points: list[CurvePoint]
    fixed: CurvePoint
    calibrate: BNCalibration | None = field(default=None, repr=False)
    proxy_norm: float | None = None
    removal_cost: float | None = None
    forgetting_rate: float | None = None
    on_full_test_set: Callable[[CurvePoint], CurvePoint] = field(default=as_measured, repr=False)

    @property
    def benign_score(self) -> float | None:
        """Return the benign score (`core.verdict`), low if backdoored; None without a proxy."""
        if self.proxy_norm is None or self.removal_cost is None or self.forgetting_rate is None:
            return None
        return verdict.benign_score(self.proxy_norm, self.removal_cost, self.forgetting_rate)


def planned_points(mask: Mask, params: SweepParams) -> tuple[list[SweepPoint], SweepPoint]:
    """Return every point that the sweep may evaluate, the unpruned model first, and the fixed operating point."""
    by = params.pruning_by
    return (
        sweep_cutoffs(mask, by, params.pruning_max, params.pruning_step),
        sweep_point(mask, by, params.pruning_number),
    )


def trace_curve(
    model: nn.Module,
    mask: Mask,
    evaluator: Evaluator,
    params: SweepParams,
    *,
    calibrate: BNCalibration | None = None,
    estimate: TargetEstimate | None = None,
    on_point: Callable[[], object] = lambda: None,
) -> PruningCurve:
    """Sweep `mask` over `model`, and compute the detection statistics if the evaluator has a proxy.

    evaluator: its `eval_set` holds all test images. estimate: what `core.detect` found. on_point: called after each
    point.
    """
    full = evaluator.eval_set
    part = full.subset(params.curve_eval_size) if params.curve_eval_size else full
    evaluator = replace(evaluator, eval_set=part)
    points, fixed = planned_points(mask, params)
    plan = SweepPlan(points, SelectionRule.from_params(params), params.pruning_stride, [fixed])
    found = adaptive_sweep(model, mask, plan, evaluator, calibrate, on_point=on_point)
    curve = [found[point] for point in points if point in found]
    if params.select_by in TRIGGER_FREE and params.refine:
        curve = refine_by_bisection(
            model, mask, curve, plan.rule, evaluator, bisections=params.refine, calibrate=calibrate
        )
    norm = cost = forgetting = None
    if proxy := evaluator.proxy:
        inputs = evaluator.transform(evaluator.holdout.images, None)
        norm = verdict.relative_norm(proxy.delta, inputs) if curve[0].proxy_asr else 1.0
        cost, forgetting = verdict.removal_cost(curve), estimate.forgetting_rate if estimate else None

    @cache
    def scores(num_pruned: int) -> Scores:
        return evaluate(
            pruned_copy(model, mask, num_pruned, calibrate), full, evaluator.transform, evaluator.precision
        )  # fmt: skip

    def on_full_test_set(point: CurvePoint) -> CurvePoint:
        return point if part is full else replace(point, scores=scores(point.num_pruned))

    return PruningCurve(curve, found[fixed], calibrate, norm, cost, forgetting, on_full_test_set)


def backdoor_suspected(curve: PruningCurve, params: SweepParams) -> bool | None:
    """Return whether the benign score is at most `benign_threshold`; None without a proxy."""
    return None if curve.benign_score is None else curve.benign_score <= params.benign_threshold


def select_point(curve: PruningCurve, params: SweepParams) -> CurvePoint:
    """Return the point that `select_by` asks for; by proxy, the unpruned model if no backdoor is suspected.

    Raises:
        ConfigError: `select_by` is asr, and no triggered images are known.
    """
    if params.select_by == "number":
        return curve.fixed
    if params.select_by == "proxy" and backdoor_suspected(curve, params) is False:
        return curve.points[0]
    if params.select_by != "asr":
        return curve.points[SelectionRule.from_params(params).select(curve.points)]
    best = best_der_point(curve, params)
    if best is None:
        raise ConfigError("select_by=asr needs triggered images")
    return best


def trigger_free(params: SweepParams) -> SweepParams:
    """Return the parameters that select without the trigger: these, or by proxy if they select by number or asr."""
    return params if params.select_by in TRIGGER_FREE else replace(params, select_by="proxy")


def best_der_point(curve: PruningCurve, params: SweepParams) -> CurvePoint | None:
    """Return the point with the best DER in hindsight (it needs the trigger), None if ASR is unknown.

    All evaluated points are ranked on the curve's images. The best of these, the trigger-free choice, the fixed point
    and the unpruned model are then ranked on all test images, so that no reported point is better.
    """
    evaluated = [*curve.points, curve.fixed]
    best = best_der_index([point.scores for point in evaluated])
    if best is None:
        return None
    finalists = [curve.points[0], evaluated[best], select_point(curve, trigger_free(params)), curve.fixed]
    found = best_der_index([curve.on_full_test_set(point).scores for point in finalists])
    return None if found is None else finalists[found]
