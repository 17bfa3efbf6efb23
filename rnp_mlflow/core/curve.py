"""The pruning curve: every point of a sweep judged on the test images and on held-out clean ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from rnp_mlflow.core.evaluate import Scores, TestSet, Transform, accuracy, evaluate, predict
from rnp_mlflow.core.prune import Cut, Refit, sweep


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
