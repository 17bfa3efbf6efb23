"""The values of `select_by`: each a function from the pruning curve to the point at which to prune."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from rnp_mlflow.core.curve import CurvePoint
from rnp_mlflow.core.params import SelectBy, SweepParams
from rnp_mlflow.core.pruning_curve import PruningCurve
from rnp_mlflow.core.select import SelectionRule, best_der_index
from rnp_mlflow.core.verdict import Confidence, confidence
from rnp_mlflow.errors import ConfigError

Select = Callable[[PruningCurve, SweepParams], CurvePoint]


@dataclass(frozen=True)
class Selector:
    """One value of `select_by`.

    select: returns the point. prunes_at: says where, in words that follow "prunes". decided_by: the parameters that
    have a say. row: the row of the summary that shows the point; `chosen` for all that need neither the trigger nor a
    number given in advance.
    """

    select: Select
    prunes_at: str
    decided_by: tuple[str, ...] = ()
    row: Literal["chosen", "fixed", "oracle"] = "chosen"

    @property
    def trigger_free(self) -> bool:
        """Return whether it chooses by what a defender knows."""
        return self.row == "chosen"


def select_point(curve: PruningCurve, params: SweepParams) -> CurvePoint:
    """Return the point that `select_by` asks for.

    Raises:
        ConfigError: `select_by` is asr, and no triggered images are known.
    """
    return SELECTORS[params.select_by].select(curve, params)


def trigger_free(params: SweepParams) -> SweepParams:
    """Return the parameters that select without the trigger: these, or by proxy if they select by number or asr."""
    return params if SELECTORS[params.select_by].trigger_free else replace(params, select_by="proxy")


def confidence_of(curve: PruningCurve, params: SweepParams) -> Confidence | None:
    """Return how sure it is that the model is backdoored; None without a proxy."""
    score = curve.benign_score
    return None if score is None else confidence(score, params.clear_threshold, params.benign_threshold)


def backdoor_suspected(curve: PruningCurve, params: SweepParams) -> bool | None:
    """Return whether the benign score is at most `benign_threshold`; None without a proxy."""
    found = confidence_of(curve, params)
    return None if found is None else found != "no sign"


def rule_of(curve: PruningCurve, params: SweepParams) -> SelectionRule:
    """Return the rule that selects a point of this curve without the trigger.

    If a repair with the proxy follows, pruning takes no more than a borderline verdict allows: the repair removes what
    is left of the backdoor at a lower cost.
    """
    careful = curve.careful or confidence_of(curve, params) == "borderline"
    return SelectionRule.from_params(params, borderline=careful)


def by_proxy(curve: PruningCurve, params: SweepParams) -> CurvePoint:
    """Return the point at which the proxy fails, or the unpruned model if no backdoor is suspected."""
    if backdoor_suspected(curve, params) is False:
        return curve.points[0]
    return by_rule(curve, params)


def by_rule(curve: PruningCurve, params: SweepParams) -> CurvePoint:
    """Return the point that `core.select.SelectionRule` selects."""
    return curve.points[rule_of(curve, params).select(curve.points)]


def by_number(curve: PruningCurve, params: SweepParams) -> CurvePoint:
    """Return the fixed operating point."""
    return curve.fixed


def by_asr(curve: PruningCurve, params: SweepParams) -> CurvePoint:
    """Return the point with the best DER in hindsight, which sees the trigger.

    Raises:
        ConfigError: no triggered images are known.
    """
    best = best_der_point(curve, params)
    if best is None:
        raise ConfigError("select_by=asr needs triggered images")
    return best


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


SELECTORS: dict[SelectBy, Selector] = {
    "proxy": Selector(
        by_proxy,
        "by the proxy (by acc_ratio if there is none)",
        ("proxy_ratio", "min_acc_ratio", "margin_ratio", "clear_threshold", "borderline_acc_ratio"),
    ),
    "clean_acc": Selector(by_rule, "as far as held-out accuracy allows", ("acc_ratio",)),
    "number": Selector(by_number, "at pruning_number", ("pruning_number",), row="fixed"),
    "asr": Selector(by_asr, "at the oracle (best DER in hindsight, sees the trigger)", row="oracle"),
}
