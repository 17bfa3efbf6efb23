"""The pruning curve: every point of a sweep judged on the test images and on held-out clean ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from rnp_mlflow.core.evaluate import Scores, TestSet, Transform, accuracy, evaluate, predict
from rnp_mlflow.core.neurons import flatten
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
        return accuracy(predict(model, self.held[0], self.transform, self.precision), self.held[1])

    def proxy_asr(self, model: nn.Module) -> float | None:
        return self.proxy.rate(model, *self.held, self.transform, self.precision) if self.proxy else None

    def __call__(self, model: nn.Module) -> tuple[Scores, float, float | None]:
        return evaluate(model, self.test, self.transform, self.precision), self.val_acc(model), self.proxy_asr(model)


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
    """The curve with one more point, nearer to where the rule's condition turns, found by bisection.

    That is the fewest neurons that stop the proxy or, where no point does, the most that keep held-out
    accuracy. Only held-out images are looked at until it is found. Its `at` is a count where theirs are,
    else the mask value of the last neuron that it prunes. Nothing is added where there is no room, or no gain.
    """
    taken = rule.index(points)
    stops = rule.stops(points[taken], points[0])
    other = taken - 1 if stops else taken + 1
    if not 0 <= other < len(points):
        return points

    def fits(count: int) -> bool:
        pruned = pruned_copy(model, mask, count, refit)
        if stops:
            return rule.stopped(judge.proxy_asr(pruned), points[0].proxy_asr)
        return rule.kept(judge.val_acc(pruned), points[0].val_acc)

    count = bisected(fits, points[taken].pruned, points[other].pruned, bisections)
    if count == points[taken].pruned:
        return points
    at = count if isinstance(points[-1].at, int) else float(flatten(mask)[ranking(mask)[count - 1]])
    between = max(taken, other)
    return [*points[:between], *trace(model, mask, [Cut(at, count)], judge, refit), *points[between:]]


def bisected(fits: Callable[[int], bool], good: int, bad: int, times: int) -> int:
    """The count nearest to `bad` that fits, found within `times` tries; `good` fits, `bad` does not."""
    for _ in range(times):
        if abs(bad - good) < 2:
            break
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good
