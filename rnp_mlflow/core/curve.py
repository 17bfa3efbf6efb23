"""The pruning curve: every point of a sweep judged on the test images and on held-out clean ones."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    cuts: Iterable[Cut],
    judge: Judge,
    refit: Refit | None = None,
    on_point: Callable[[Cut, Point], object] = lambda cut, point: None,
) -> list[Point]:
    """Judge the pruned model at every cut; `model` stays as it is.

    Raises:
        MaskError: the mask is not this model's.
    """
    points = []
    with laid_out(model, judge.precision):
        for cut, found in sweep(model, mask, cuts, judge, refit):
            points.append(Point(cut.at, cut.pruned, *found))
            on_point(cut, points[-1])
    return points


def survey(
    model: nn.Module,
    mask: Mapping[str, Tensor],
    cuts: Sequence[Cut],
    rule: Rule,
    stride: int,
    judge: Judge,
    refit: Refit | None = None,
    also: Sequence[Cut] = (),
    on_point: Callable[[], object] = lambda: None,
) -> dict[Cut, Point]:
    """The curve at every `stride`-th cut and, beside the choice, at every one; in the order of `cuts`, then `also`.

    Beside the choice are the cut before the one at which the proxy fails and the cut after the one chosen, as often as
    these move. cuts: the unpruned model first, then more and more pruned. also: cuts to judge in any case.

    Raises:
        MaskError: the mask is not this model's.
    """
    found: dict[Cut, Point] = {}

    def visits() -> Iterator[Cut]:
        yield from dict.fromkeys((cuts[0], *cuts[1::stride], cuts[-1], *also))
        while missing := beside(cuts, found, rule):
            yield missing[0]

    def keep(cut: Cut, point: Point) -> None:
        found[cut] = point
        on_point()

    trace(model, mask, visits(), judge, refit, keep)
    return {cut: found[cut] for cut in dict.fromkeys((*cuts, *also)) if cut in found}


def beside(cuts: Sequence[Cut], found: Mapping[Cut, Point], rule: Rule) -> list[Cut]:
    """The cuts next to where the proxy fails and to the choice, if they are not found yet (`survey`)."""
    known = [k for k, cut in enumerate(cuts) if cut in found]
    fails, chosen = (known[k] for k in rule.span([found[cuts[k]] for k in known]))
    return [cuts[k] for k in (fails - 1, chosen + 1) if 0 <= k < len(cuts) and cuts[k] not in found]


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
