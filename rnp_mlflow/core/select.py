"""Choosing the operating point of a pruning curve."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rnp_mlflow.core.evaluate import Scores, der
from rnp_mlflow.core.params import SweepParams


class TriggerFreeMetrics(Protocol):
    """What is known of a point without the attacker's trigger, on held-out clean images."""

    @property
    def holdout_acc(self) -> float: ...
    @property
    def proxy_asr(self) -> float | None: ...


@dataclass(frozen=True)
class SelectionRule:
    """Prune until the proxy fails or, without a proxy, as far as accuracy allows. No trigger is needed.

    acc_ratio: minimum held-out accuracy without a proxy, as a fraction of the unpruned model's. proxy_ratio: share of
    the proxy's success that may remain (None: use accuracy alone). min_acc_ratio: minimum held-out accuracy when a
    proxy is used, as a fraction of the unpruned model's. margin_ratio: pruning goes on past the point while held-out
    accuracy keeps this fraction of its value there (and stays above `min_acc_ratio`): that costs next to nothing, and
    the trigger may be stronger than the proxy. borderline: whether the verdict is, so that pruning may use up what
    `min_acc_ratio` allows.
    """

    acc_ratio: float
    proxy_ratio: float | None
    min_acc_ratio: float
    margin_ratio: float
    borderline: bool = False

    @classmethod
    def from_params(cls, params: SweepParams, *, borderline: bool = False) -> "SelectionRule":
        """Return the trigger-free rule; also reported when `select_by` is number or asr."""
        proxy_ratio = None if params.select_by == "clean_acc" else params.proxy_ratio
        lowest = max(params.min_acc_ratio, params.borderline_acc_ratio) if borderline else params.min_acc_ratio
        return cls(params.acc_ratio, proxy_ratio, lowest, params.margin_ratio, borderline)

    def uses_proxy(self, unpruned: TriggerFreeMetrics) -> bool:
        """Return whether the rule uses the proxy: there is one, and it works on the unpruned model."""
        return self.proxy_ratio is not None and bool(unpruned.proxy_asr)

    def accuracy_floor(self, unpruned: TriggerFreeMetrics) -> float:
        """Return the lowest held-out accuracy at which the model may be pruned."""
        return (self.min_acc_ratio if self.uses_proxy(unpruned) else self.acc_ratio) * unpruned.holdout_acc

    def select(self, points: Sequence[TriggerFreeMetrics]) -> int:
        """Return the index of the point to prune at (0: prune nothing).

        With a proxy: among the points before accuracy first drops below `min_acc_ratio`, take the first at which the
        proxy keeps at most `proxy_ratio` of its success rate; if none does, the best DER-weighted trade-off. Then
        continue while the margin allows. If that trade-off is the unpruned model, nothing is pruned.
        points: the unpruned model first, then more and more pruned.
        """
        return self.select_with_failure_point(points)[1]

    def select_with_failure_point(self, points: Sequence[TriggerFreeMetrics]) -> tuple[int, int]:
        """Return the index at which the proxy fails (or trades best; 0 without one), and that of `select`."""
        accuracies = [point.holdout_acc for point in points]
        if not self.uses_proxy(points[0]):
            return 0, last_before_drop(accuracies, self.accuracy_floor(points[0]))
        shares = proxy_accuracy_tradeoff(points)
        lowest = self.accuracy_floor(points[0])
        allowed = range(last_before_drop(accuracies, lowest) + 1)
        stopped = [k for k in allowed if shares[k][0] <= (self.proxy_ratio or 0.0)]
        first = stopped[0] if stopped else min(allowed, key=lambda k: sum(shares[k]))
        if not first:
            return 0, 0
        return first, first + last_before_drop(accuracies[first:], max(lowest, self.margin_ratio * accuracies[first]))


def proxy_accuracy_tradeoff(points: Sequence[TriggerFreeMetrics]) -> list[tuple[float, float]]:
    """Return (share of the proxy's success left, share of held-out accuracy lost) for every point.

    The second is 0 to 1; the first exceeds 1 if pruning helps the proxy. points: the unpruned model first, on
    which the proxy works.
    """
    before = points[0]
    return [
        (
            (point.proxy_asr or 0.0) / (before.proxy_asr or 1.0),
            max(0.0, 1 - point.holdout_acc / (before.holdout_acc or 1.0)),
        )
        for point in points
    ]


def last_before_drop(values: Sequence[float], limit: float) -> int:
    """Return the index of the last value before one first falls below the limit."""
    return next((k - 1 for k, value in enumerate(values) if value < limit), len(values) - 1)


def best_der_index(scores: Sequence[Scores]) -> int | None:
    """Return the index of the highest DER (the first of equals), None if ASR is unknown.

    It uses the test images and the trigger: a bound for other choices, not a defence. scores: the unpruned
    model's first, then those of every other point that was evaluated.
    """
    values = [der(scores[0], score) for score in scores]
    known = [value for value in values if value is not None]
    return values.index(max(known)) if known else None
