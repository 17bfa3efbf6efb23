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
    """Prune until the proxy no longer works, and never past the accuracy to be kept. No trigger is needed.

    acc_ratio: held-out clean accuracy to keep; proxy_ratio: share of the proxy's success that may be left;
    stop_ratio: the lower accuracy that is accepted where it stops the proxy; margin_ratio: the higher one above
    which pruning goes on after that, since it costs next to nothing and the trigger may be stronger than the
    proxy; each as a share of the unpruned model's. Without proxy_ratio: as far as accuracy allows.
    """

    acc_ratio: float
    proxy_ratio: float | None = None
    stop_ratio: float = 1.0
    margin_ratio: float | None = None

    def kept(self, val_acc: float, before: float) -> bool:
        """Whether accuracy is high enough, whatever the proxy does."""
        return val_acc >= self.acc_ratio * before

    def stops(self, point: Seen, before: Seen) -> bool:
        """Whether the proxy worked before, and no longer does at that point."""
        if self.proxy_ratio is None or point.proxy_asr is None or not before.proxy_asr:
            return False
        return point.proxy_asr <= self.proxy_ratio * before.proxy_asr

    def index(self, points: Sequence[Seen]) -> int:
        """The first point that stops the proxy, and the margin after it; else the last that keeps accuracy.

        points: the unpruned model first. A point that stops the proxy is taken only where accuracy has not yet
        fallen below the lower of `acc_ratio` and `stop_ratio`. Index 0 means: prune nothing.
        """
        accuracies = [point.val_acc for point in points]
        low = last_above(accuracies, min(self.acc_ratio, self.stop_ratio))
        for index in range(low + 1):
            if self.stops(points[index], points[0]):
                return max(index, last_above(accuracies, self.margin_ratio)) if self.margin_ratio else index
        return last_above(accuracies, self.acc_ratio)


def last_above(values: Sequence[float], ratio: float) -> int:
    """Index of the last value before one first falls below `ratio` × the first."""
    for index, value in enumerate(values):
        if value < ratio * values[0]:
            return index - 1
    return len(values) - 1


def oracle(scores: Sequence[Scores]) -> int | None:
    """Index of the point with the highest DER (the first of equals), None where ASR is unknown.

    It looks at the test images and at the trigger: a bound for other choices, not a defence.
    """
    values = [der(scores[0], score) for score in scores]
    known = [value for value in values if value is not None]
    return values.index(max(known)) if known else None
