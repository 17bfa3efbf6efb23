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
    stop_ratio: the lower accuracy that is accepted where it stops the proxy; each as a share of the unpruned
    model's. Without proxy_ratio: as far as accuracy allows.
    """

    acc_ratio: float
    proxy_ratio: float | None = None
    stop_ratio: float = 1.0

    def kept(self, val_acc: float, before: float) -> bool:
        """Whether accuracy is high enough, whatever the proxy does."""
        return val_acc >= self.acc_ratio * before

    def stopped(self, proxy_asr: float | None, before: float | None) -> bool:
        if self.proxy_ratio is None or proxy_asr is None or before is None:
            return False
        return proxy_asr <= self.proxy_ratio * before

    def stops(self, point: Seen, before: Seen) -> bool:
        """Whether the proxy no longer works at that point."""
        return self.stopped(point.proxy_asr, before.proxy_asr)

    def index(self, points: Sequence[Seen]) -> int:
        """The first point that stops the proxy; else the last before held-out accuracy first falls too low.

        points: the unpruned model first. A point that stops the proxy is taken only where accuracy has not yet
        fallen below the lower of `acc_ratio` and `stop_ratio`. Index 0 means: prune nothing.
        """
        before, lower = points[0], min(self.acc_ratio, self.stop_ratio)
        for index, point in enumerate(points):
            if point.val_acc < lower * before.val_acc:
                break
            if self.stops(point, before):
                return index
        for index, point in enumerate(points):
            if not self.kept(point.val_acc, before.val_acc):
                return max(0, index - 1)
        return len(points) - 1


def oracle(scores: Sequence[Scores]) -> int | None:
    """Index of the point with the highest DER (the first of equals), None where ASR is unknown.

    It looks at the test images and at the trigger: a bound for other choices, not a defence.
    """
    values = [der(scores[0], score) for score in scores]
    known = [value for value in values if value is not None]
    return values.index(max(known)) if known else None
