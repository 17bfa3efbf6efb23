"""Choosing the operating point of a pruning curve."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rnp_mlflow.core.evaluate import Scores, der


class Seen(Protocol):
    """What is known of a point without the attacker's trigger."""

    @property
    def val_acc(self) -> float: ...
    @property
    def proxy_asr(self) -> float | None: ...


@dataclass(frozen=True)
class Rule:
    """Prune until the proxy no longer works, or as far as accuracy allows where there is none. No trigger is needed.

    acc_ratio: held-out accuracy to keep without a proxy, as a share of the unpruned model's. proxy_ratio: share of
    the proxy's success that may be left (None: look at accuracy alone). stop_ratio: held-out accuracy, such a share
    too, to keep in any case with one. margin_ratio: pruning goes on past the point while held-out accuracy stays at
    this share of what it is there (and above `stop_ratio`): that costs next to nothing, and the trigger may be
    stronger than the proxy.
    """

    acc_ratio: float
    proxy_ratio: float | None = None
    stop_ratio: float = 0.8
    margin_ratio: float = 1.0

    def by_proxy(self, before: Seen) -> bool:
        """Whether there is a proxy that worked on the unpruned model, and the rule looks at it."""
        return self.proxy_ratio is not None and bool(before.proxy_asr)

    def kept(self, val_acc: float, before: float) -> bool:
        """Whether accuracy is high enough where it alone decides."""
        return val_acc >= self.acc_ratio * before

    def index(self, points: Sequence[Seen]) -> int:
        """The point to prune at; 0 means: nothing. points: the unpruned model first, then more and more pruned.

        With a proxy, of the points before accuracy first falls below `stop_ratio`: the first that leaves at most
        `proxy_ratio` of its success or, where there is none, the best trade of its success against accuracy,
        weighed as in DER; and from there the margin. Where the unpruned model is that trade, nothing is pruned.
        """
        return self.span(points)[1]

    def span(self, points: Sequence[Seen]) -> tuple[int, int]:
        """Where the proxy fails (or is traded best; 0 without one), and the point to prune at: `index`."""
        accuracies = [point.val_acc for point in points]
        if not self.by_proxy(points[0]):
            return 0, last_above(accuracies, self.acc_ratio * accuracies[0])
        shares = trades(points)
        lowest = self.stop_ratio * accuracies[0]
        allowed = range(last_above(accuracies, lowest) + 1)
        stopped = [k for k in allowed if shares[k][0] <= (self.proxy_ratio or 0.0)]
        first = stopped[0] if stopped else min(allowed, key=lambda k: sum(shares[k]))
        if not first:
            return 0, 0
        return first, first + last_above(accuracies[first:], max(lowest, self.margin_ratio * accuracies[first]))


def trades(points: Sequence[Seen]) -> list[tuple[float, float]]:
    """(share of the proxy's success that is left, share of held-out accuracy that is lost) at every point.

    The second is 0 to 1; the first is more than 1 where pruning helps the proxy. points: the unpruned model first, on
    which the proxy works.
    """
    before = points[0]
    return [
        ((point.proxy_asr or 0.0) / (before.proxy_asr or 1.0), max(0.0, 1 - point.val_acc / (before.val_acc or 1.0)))
        for point in points
    ]


def last_above(values: Sequence[float], limit: float) -> int:
    """Index of the last value before one first falls below the limit."""
    return next((k - 1 for k, value in enumerate(values) if value < limit), len(values) - 1)


def oracle(scores: Sequence[Scores]) -> int | None:
    """Index of the point with the highest DER (the first of equals), None if ASR is unknown.

    It looks at the test images and at the trigger: a bound for other choices, not a defence. scores: the unpruned
    model's first, then those of every other point that was looked at.
    """
    values = [der(scores[0], score) for score in scores]
    known = [value for value in values if value is not None]
    return values.index(max(known)) if known else None
