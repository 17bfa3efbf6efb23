"""The pruning curve: every point of a sweep judged on the test images and on held-out clean ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from rnp_mlflow.core.evaluate import Scores, TestSet, Transform, accuracy, evaluate, predict
from rnp_mlflow.core.neurons import flatten
from rnp_mlflow.core.precision import laid_out
from rnp_mlflow.core.proxy import Proxy
from rnp_mlflow.core.prune import Cut, Refit, pruned_copy, ranking, sweep
from rnp_mlflow.core.select import Rule


@dataclass(frozen=True)
class Point:
    """Where (None: unpruned), neurons pruned, test scores; on held-out clean images accuracy, and the share that
    the proxy leads to its target where there is a proxy (0 to 1).
    """

    at: float | int | None
    pruned: int
    scores: Scores
    val_acc: float
    proxy_asr: float | None = None


@dataclass(frozen=True)
class Judge:
    """What a pruned model is judged on.

    held: images (N, C, H, W) and labels int64 (N,) that trained nothing, for `val_acc` and `proxy_asr`.
    """

    test: TestSet
    held: tuple[Tensor, Tensor]
    transform: Transform
    proxy: Proxy | None = None
    precision: str = "fp32"

    def val_acc(self, model: nn.Module) -> float:
        """Accuracy on the held-out images."""
        return accuracy(predict(model, self.held[0], self.transform, self.precision), self.held[1])

    def __call__(self, model: nn.Module) -> tuple[Scores, float, float | None]:
        """All that a `Point` says of the model."""
        scores = evaluate(model, self.test, self.transform, self.precision)
        answers = predict(model, self.held[0], self.transform, self.precision)
        val_acc = accuracy(answers, self.held[1])
        if self.proxy is None:
            return scores, val_acc, None
        return scores, val_acc, self.proxy.rate(model, *self.held, self.transform, self.precision, answers)


def trace(
    model: nn.Module,
    mask: Mapping[str, Tensor],
    cuts: Sequence[Cut],
    judge: Judge,
    refit: Refit | None = None,
    on_point: Callable[[], object] = lambda: None,
) -> list[Point]:
    """Judge the pruned model at every cut; `model` stays as it is.

    Raises:
        MaskError: the mask is not this model's.
    """
    points = []
    with laid_out(model, judge.precision):
        for cut, found in sweep(model, mask, cuts, judge, refit):
            points.append(Point(cut.at, cut.pruned, *found))
            on_point()
    return points


def refined(
    model: nn.Module,
    mask: Mapping[str, Tensor],
    points: list[Point],
    rule: Rule,
    bisections: int,
    judge: Judge,
    refit: Refit | None = None,
) -> list[Point]:
    """The curve with one more point: the last that keeps held-out accuracy, found by bisection.

    Only where accuracy alone decides. A proxy that fails is no finer measure than the sweep's steps: just where it
    fails, ASR was still 0.16 to 0.37 (digits, seeds 0 to 2), and the sweep's next point is the margin. Only
    held-out images are looked at until it is found. Its `at` is a count where theirs are, else the mask value
    of the last neuron that it prunes. Nothing is added where there is no room, or no gain.
    """
    last = rule.index(points)
    if last + 1 == len(points) or rule.by_proxy(points[0]):
        return points
    low, high = points[last].pruned, points[last + 1].pruned
    for _ in range(bisections):
        if high - low < 2:
            break
        middle = (low + high) // 2
        fits = rule.kept(judge.val_acc(pruned_copy(model, mask, middle, refit)), points[0].val_acc)
        low, high = (middle, high) if fits else (low, middle)
    if low == points[last].pruned:
        return points
    at = low if isinstance(points[-1].at, int) else float(flatten(mask)[ranking(mask)[low - 1]])
    return [*points[: last + 1], *trace(model, mask, [Cut(at, low)], judge, refit), *points[last + 1 :]]
