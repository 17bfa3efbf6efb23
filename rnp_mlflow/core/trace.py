"""Draw the pruning curve as its parameters say, and compute the detection statistics."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

from torch import nn

from rnp_mlflow.core import verdict
from rnp_mlflow.core.curve import CurvePoint, Evaluator, SweepPlan, adaptive_sweep, refine_by_bisection
from rnp_mlflow.core.evaluate import Predictions, predict_all
from rnp_mlflow.core.neurons import Mask
from rnp_mlflow.core.params import SweepParams
from rnp_mlflow.core.prune import BNCalibration, SweepPoint, pruned_copy, sweep_cutoffs, sweep_point
from rnp_mlflow.core.pruning_curve import PruningCurve
from rnp_mlflow.core.select import SelectionRule
from rnp_mlflow.core.selectors import SELECTORS, rule_of
from rnp_mlflow.core.verdict import TargetEstimate


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
    careful: bool = False,
    on_point: Callable[[CurvePoint], object] = lambda point: None,
) -> PruningCurve:
    """Sweep `mask` over `model`, and compute the detection statistics if the evaluator has a proxy.

    evaluator: its `eval_set` holds all test images. estimate: what `core.detect` found. careful: whether a
    repair follows, with the proxy if that works (`PruningCurve`). on_point: receives each point.
    """
    full = evaluator.eval_set
    part = full.subset(params.curve_eval_size) if params.curve_eval_size else full
    evaluator = replace(evaluator, eval_set=part)
    points, fixed = planned_points(mask, params)
    plan = SweepPlan(points, SelectionRule.from_params(params), params.pruning_stride, [fixed])
    found = adaptive_sweep(model, mask, plan, evaluator, calibrate, on_point=on_point)
    curve = [found[point] for point in points if point in found]
    norm = cost = forgetting = None
    if proxy := evaluator.proxy:
        inputs = evaluator.transform(evaluator.holdout.images, None)
        norm = verdict.relative_norm(proxy.delta, inputs) if curve[0].proxy_asr else 1.0
        cost, forgetting = verdict.removal_cost(curve), estimate.forgetting_rate if estimate else None

    @cache
    def predictions(num_pruned: int) -> Predictions:
        return predict_all(
            pruned_copy(model, mask, num_pruned, calibrate), full, evaluator.transform, evaluator.precision
        )  # fmt: skip

    def on_full_test_set(point: CurvePoint) -> CurvePoint:
        if part is full:
            return point
        found = predictions(point.num_pruned)
        return replace(point, scores=found.scores(full), predictions=found)

    def measure(point: CurvePoint, other: nn.Module) -> CurvePoint:
        scores, holdout_acc, proxy_asr, found = replace(evaluator, eval_set=full)(other)
        return replace(point, scores=scores, holdout_acc=holdout_acc, proxy_asr=proxy_asr, predictions=found)

    ratio = estimate.norm_ratio if estimate and norm is not None else None
    traced = PruningCurve(
        curve, found[fixed], calibrate, norm, cost, forgetting, on_full_test_set, measure,
        norm_ratio=ratio, careful=careful and bool(curve[0].proxy_asr),
    )  # fmt: skip
    if not (SELECTORS[params.select_by].trigger_free and params.refine):
        return traced
    refined = refine_by_bisection(
        model, mask, curve, rule_of(traced, params), evaluator, bisections=params.refine, calibrate=calibrate
    )
    return replace(traced, points=refined)
