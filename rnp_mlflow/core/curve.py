"""The pruning curve: every point of a sweep judged on the test images and on held-out clean ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from rnp_mlflow.core.evaluate import Scores, TestSet, Transform, accuracy, evaluate, predict
from rnp_mlflow.core.neurons import flatten
from rnp_mlflow.core.prune import Cut, Refit, pruned_copy, ranking, sweep
from rnp_mlflow.core.select import by_clean_accuracy


@dataclass(frozen=True)
class Point:
    """Where (None: unpruned), neurons pruned, test scores, held-out clean accuracy (0 to 1)."""

    at: float | int | None
    pruned: int
    scores: Scores
    val_acc: float


def trace(
    model: nn.Module,
    mask: Mapping[str, Tensor],
    cuts: Sequence[Cut],
    test: TestSet,
    held: tuple[Tensor, Tensor],
    transform: Transform,
    refit: Refit | None = None,
    on_point: Callable[[], object] = lambda: None,
) -> list[Point]:
    """Judge the pruned model at every cut; `model` stays as it is.

    held: uint8 images (N, C, H, W) and labels int64 (N,) that trained nothing, for `val_acc`.

    Raises:
        MaskError: the mask is not this model's.
    """

    def judge(pruned: nn.Module) -> tuple[Scores, float]:
        return evaluate(pruned, test, transform), accuracy(predict(pruned, held[0], transform), held[1])

    points = []
    for cut, (scores, val_acc) in sweep(model, mask, cuts, judge, refit):
        points.append(Point(cut.at, cut.pruned, scores, val_acc))
        on_point()
    return points


def refined(
    model: nn.Module,
    mask: Mapping[str, Tensor],
    points: list[Point],
    acc_ratio: float,
    bisections: int,
    test: TestSet,
    held: tuple[Tensor, Tensor],
    transform: Transform,
    refit: Refit | None = None,
) -> list[Point]:
    """The curve with one more point: the last that keeps held-out accuracy, found by bisection.

    It lies between the point that `by_clean_accuracy` takes and the next, in numbers of neurons. Only
    the held-out images are looked at until it is found. Its `at` is a count where theirs are, else the
    mask value of the last neuron that it prunes. Nothing is added where there is no room, or no gain.
    """
    last = by_clean_accuracy([point.val_acc for point in points], acc_ratio)
    if last + 1 == len(points):
        return points
    low, high, floor = points[last].pruned, points[last + 1].pruned, acc_ratio * points[0].val_acc
    start = low
    for _ in range(bisections):
        if high - low < 2:
            break
        middle = (low + high) // 2
        pruned = pruned_copy(model, mask, middle, refit)
        if accuracy(predict(pruned, held[0], transform), held[1]) >= floor:
            low = middle
        else:
            high = middle
    if low == start:
        return points
    at = low if isinstance(points[-1].at, int) else float(flatten(mask)[ranking(mask)[low - 1]])
    return [*points[: last + 1], *trace(model, mask, [Cut(at, low)], test, held, transform, refit), *points[last + 1 :]]
