"""ACC and ASR at a few moments of unlearning and recovery, on a small part of the images, so that it costs little."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from torch import nn

from rnp_mlflow.core.batches import ModelCallback
from rnp_mlflow.core.evaluate import EvalSet, Scores, Transform, evaluate
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.params import Precision
from rnp_mlflow.core.proxy import ProxyTrigger

IMAGES = 150  # clean images, and triggered ones, that a moment is measured on, at most
MOST = 8  # moments of one step, in about
FALL = 1 / MOST  # unlearning: measure when accuracy has fallen by this much


@dataclass(frozen=True)
class Moment:
    """What was measured after so many steps. proxy_asr: the proxy's success on held-out images, if measured."""

    step: int
    scores: Scores
    proxy_asr: float | None = None


@dataclass
class MomentMeter:
    """Measures a model in training, and changes nothing: no random number is drawn, and the model keeps its mode.

    eval_set: the images measured on (`evaluation_part`). proxy, holdout: measure the proxy's success on these clean
    images, too.
    """

    eval_set: EvalSet
    transform: Transform
    precision: Precision
    proxy: ProxyTrigger | None = None
    holdout: LabeledImages | None = None
    found: list[Moment] = field(default_factory=list)
    lowest: float = 1.0

    def measure(self, step: int, model: nn.Module) -> None:
        """Measure the model, unless this step has been measured."""
        if self.found and self.found[-1].step == step:
            return
        scores = evaluate(model, self.eval_set, self.transform, self.precision)
        self.found.append(Moment(step, scores, self.proxy_rate(model)))

    def proxy_rate(self, model: nn.Module) -> float | None:
        """Return the proxy's success rate on the holdout, None without both."""
        if self.proxy is None or self.holdout is None:
            return None
        return self.proxy.success_rate(model, self.holdout, self.transform, self.precision)

    def after_fall(self, step: int, accuracy: float, model: Callable[[], nn.Module]) -> None:
        """Measure if accuracy has fallen by `FALL` since the last time, so that the few moments lie where it falls."""
        if accuracy <= self.lowest - FALL:
            self.lowest = accuracy
            self.measure(step, model())

    def every(self, epochs: int) -> ModelCallback:
        """Return what to call after each of so many epochs: it measures at `MOST` of them, the last included."""
        kept = {round(epochs * k / MOST) for k in range(1, MOST + 1)}
        calls = count(1)

        def after_epoch(step: int, accuracy: float, model: Callable[[], nn.Module]) -> None:
            if next(calls) in kept:
                self.measure(step, model())

        return after_epoch


def evaluation_part(eval_set: EvalSet) -> EvalSet:
    """Return the images that moments are measured on."""
    return eval_set.subset(IMAGES)
