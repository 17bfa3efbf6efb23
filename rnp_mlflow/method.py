"""The three steps as settings describe them: tensors in, tensors out, no MLflow."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, nn

from rnp_mlflow.config import Common, Prune, Recover, Unlearn, Watched
from rnp_mlflow.core import select
from rnp_mlflow.core import verdict as signs
from rnp_mlflow.core.batches import OnEpoch, Watch
from rnp_mlflow.core.bn_stats import reestimate_, shift_from
from rnp_mlflow.core.curve import Judge, Point, refined, survey
from rnp_mlflow.core.evaluate import Scores, TestSet, evaluate, predict, settled, spaced
from rnp_mlflow.core.neurons import Mask
from rnp_mlflow.core.precision import logits_of
from rnp_mlflow.core.proxy import Proxy, invert
from rnp_mlflow.core.prune import Cut, Refit, cut_at, cuts, pruned_copy
from rnp_mlflow.core.recover import Recovered, recover
from rnp_mlflow.core.seeds import generator, seeded
from rnp_mlflow.core.select import Rule
from rnp_mlflow.core.unlearn import Unlearned, unlearn
from rnp_mlflow.core.verdict import Verdict
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.errors import ConfigError

Images = tuple[Tensor, Tensor]  # images (N, C, H, W), labels int64 (N,), on the model's device
S = TypeVar("S", bound=Common)
# Of more clean images, this many do for a pruned model's statistics, and so many views for its held-out accuracy.
STATISTICS, VIEWS = 200, 1000
WATCHED = 1000  # test images, and triggered ones, that an epoch is measured on, at most


def settle(settings: S, model: nn.Module, images: Tensor, feed: Preprocess) -> S:
    """The settings with the precision that `auto` means for this model and these clean images (`core.evaluate`)."""
    return settings.model_copy(update={"precision": settled(settings.precision, model, images, feed)})


def watch_by(settings: Watched, test: TestSet, feed: Preprocess) -> Watch | None:
    """Scores on a part of the test images after every `eval_every`-th epoch."""
    if not settings.eval_every:
        return None
    part = test.part(WATCHED)

    def watch(epoch: int, model: nn.Module) -> Scores | None:
        return None if epoch % settings.eval_every else evaluate(model, part, feed, settings.precision)

    return watch


def unlearn_by(
    settings: Unlearn,
    model: nn.Module,
    clean: Images,
    feed: Preprocess,
    watch: Watch | None = None,
    on_epoch: OnEpoch = lambda record: None,
) -> Unlearned:
    """Step 1 (`core.unlearn`) as the settings say."""
    with seeded(settings.seed, "unlearn") as draws:
        return unlearn(
            model, *clean, feed.seen(settings.unlearning_views), draws,
            lr=settings.unlearning_lr, epochs=settings.unlearning_epochs, clean_threshold=settings.clean_threshold,
            schedule=settings.schedule, batch_size=settings.unlearning_batch_size, clip=settings.clip,
            stop=settings.unlearning_stop, precision=settings.precision, watch=watch, on_epoch=on_epoch,
        )  # fmt: skip


@torch.inference_mode()
def class_count(model: nn.Module, images: Tensor, feed: Preprocess) -> int:
    """How many classes the model answers with; it is left in eval mode."""
    return logits_of(model.eval()(feed(images[:2], None))).shape[-1]


def examine(
    settings: Unlearn, model: nn.Module, unlearned: Unlearned, clean: Images, feed: Preprocess
) -> tuple[Verdict | None, Proxy | None]:
    """Which class the unlearned model betrays (`core.verdict`), and a proxy to it (`core.proxy`) unless unwanted.

    Where several may be the target, it is the one whose proxy is small and outlives unlearning. Neither is found where
    unlearning did not reach its threshold, and of two classes, where to be wrong is to answer the other.
    """
    classes = class_count(unlearned.model, clean[0], feed)
    if not unlearned.reached or classes < 3:
        return None, None
    answers = predict(unlearned.model, clean[0], feed, settings.precision)
    shares = signs.shares(answers, clean[1], classes)
    first, *others = signs.rivals(shares, settings.proxy_classes)
    if not settings.proxy_steps or bool((clean[1] == first).all()):
        return Verdict(first, shares[first]), None
    tried = [candidate(settings, model, unlearned.model, clean, feed, target, answers) for target in (first, *others)]
    _, faded, proxy = min(tried, key=lambda each: signs.doubt(each[0], 1.0, each[1]))
    return Verdict(proxy.target, shares[proxy.target], faded), proxy


def candidate(
    settings: Unlearn,
    model: nn.Module,
    unlearned: nn.Module,
    clean: Images,
    feed: Preprocess,
    target: int,
    plain: Tensor,
) -> tuple[float, float, Proxy]:
    """A proxy to `target`: its norm, what unlearning took of it (`core.verdict.faded`), itself.

    plain: the unlearned model's answers (N,) to the clean images.
    """
    draws = generator(settings.seed, "proxy")
    proxy = invert(model, *clean, target, feed, draws, steps=settings.proxy_steps, precision=settings.precision)
    images, rest = clean[0][clean[1] != target], plain[(clean[1] != target).cpu()]
    before, after = (predict(net, images, proxy.after(feed), settings.precision) for net in (model, unlearned))
    return float(proxy.change.norm()), signs.faded(rest, before, after, target), proxy


def recover_by(
    settings: Recover,
    unlearned: nn.Module,
    suspect: nn.Module,
    clean: Images,
    feed: Preprocess,
    proxy: Proxy | None = None,
    watch: Watch | None = None,
    on_epoch: OnEpoch = lambda record: None,
) -> Recovered:
    """Step 2 (`core.recover`) as the settings say."""
    with seeded(settings.seed, "recover") as draws:
        return recover(
            unlearned, *clean, feed.seen(settings.recovering_views), draws,
            alpha=settings.alpha, lr=settings.recovering_lr, epochs=settings.recovering_epochs,
            batch_size=settings.recovering_batch_size, averaging=settings.mask_averaging, precision=settings.precision,
            proxy=proxy if settings.proxy_share else None, proxy_share=settings.proxy_share, suspect=suspect,
            suspect_steps=settings.suspect_steps, suspect_weight=settings.suspect_weight, watch=watch,
            on_epoch=on_epoch,
        )  # fmt: skip


def rule_of(settings: Prune) -> Rule:
    """The choice without the trigger: told beside the fixed point and the oracle, too, where one of these is taken."""
    proxy_ratio = None if settings.select_by == "clean_acc" else settings.proxy_ratio
    return Rule(settings.acc_ratio, proxy_ratio, settings.stop_ratio, settings.margin_ratio)


def sweep_of(settings: Prune, mask: Mask) -> tuple[list[Cut], Cut]:
    """The unpruned model and every point that the sweep may look at; the fixed operating point."""
    by = settings.pruning_by
    return cuts(mask, by, settings.pruning_max, settings.pruning_step), cut_at(mask, by, settings.pruning_number)


@dataclass(frozen=True)
class Traced:
    """Every point of the curve, the unpruned model first; the fixed operating point; what refits a pruned model.

    size, cost, faded: of the proxy, of stopping it, and of it when unlearned (`core.verdict`); None without one.
    A proxy that turns nothing on the unpruned model counts as one of size 1. whole: the point with its scores on
    all test images, where the curve's are of `curve_images` of them.
    """

    points: list[Point]
    fixed: Point
    refit: Refit | None = field(repr=False)
    size: float | None = None
    cost: float | None = None
    faded: float | None = None
    whole: Callable[[Point], Point] = field(default=lambda point: point, repr=False)

    @property
    def doubt(self) -> float | None:
        """How little speaks for a backdoor; None without a proxy."""
        if self.size is None or self.cost is None or self.faded is None:
            return None
        return signs.doubt(self.size, self.cost, self.faded)


def refit_by(settings: Prune, model: nn.Module, used: Images, feed: Preprocess) -> Refit | None:
    """What `bn_stats` does to a pruned copy of `model`, with these clean images."""
    some = spaced(len(used[0]), STATISTICS)
    used = used[0][some], used[1][some]
    if settings.bn_stats == "shift":
        return shift_from(model, used[0], feed, settings.precision)
    if settings.bn_stats == "reestimate":
        crops, _ = feed.views(*used, settings.clean_views, generator(settings.seed, "crops"))
        return lambda pruned: reestimate_(pruned, crops, feed, settings.precision)
    return None


def trace_by(
    settings: Prune,
    model: nn.Module,
    mask: Mask,
    used: Images,
    held: Images,
    test: TestSet,
    feed: Preprocess,
    proxy: Proxy | None = None,
    verdict: Verdict | None = None,
    on_point: Callable[[], object] = lambda: None,
) -> Traced:
    """Step 3's curve (`core.curve`) as the settings say.

    used: clean images that trained the mask, for `bn_stats`. held: those that did not, for `val_acc`.
    proxy, verdict: what `examine` found. on_point: called after each point.
    """
    refit = refit_by(settings, model, used, feed)
    part = test.part(settings.curve_images) if settings.curve_images else test
    judge = Judge(part, held_views(settings, held, feed), feed, proxy, settings.precision)
    sweep, fixed = sweep_of(settings, mask)
    rule = rule_of(settings)
    found = survey(model, mask, sweep, rule, settings.pruning_stride, judge, refit, [fixed], on_point)
    points = [found[cut] for cut in sweep if cut in found]
    if settings.select_by in ("proxy", "clean_acc") and settings.refine:
        points = refined(model, mask, points, rule, settings.refine, judge, refit)
    size = cost = faded = None
    if proxy:
        size = signs.relative_size(proxy.change, feed(judge.held[0], None)) if points[0].proxy_asr else 1.0
        cost, faded = signs.cost(points), verdict.faded if verdict else None

    @cache
    def scores(pruned: int) -> Scores:
        return evaluate(pruned_copy(model, mask, pruned, refit), test, feed, settings.precision)

    def whole(point: Point) -> Point:
        return point if part is test else replace(point, scores=scores(point.pruned))

    return Traced(points, found[fixed], refit, size, cost, faded, whole)


def views_of(settings: Prune, count: int) -> tuple[int, int]:
    """Of `count` held-out images, how many are looked at for held-out accuracy, and in how many random views each."""
    some = min(count, VIEWS)
    return some, min(settings.clean_views, max(1, VIEWS // some))


def held_views(settings: Prune, held: Images, feed: Preprocess) -> Images:
    """What held-out accuracy is measured on: `clean_views` crops of each image, or fewer of many images."""
    count, views = views_of(settings, len(held[0]))
    some = spaced(len(held[0]), count)
    return feed.views(held[0][some], held[1][some], views, generator(settings.seed, "views"))


def backdoor_suspected(traced: Traced, settings: Prune) -> bool | None:
    """Whether the proxy speaks for a backdoor; None where there is no proxy."""
    return None if traced.doubt is None else traced.doubt <= settings.max_doubt


def choose(traced: Traced, settings: Prune) -> Point:
    """The operating point that `select_by` means; by proxy, the unpruned model if no backdoor is suspected.

    Raises:
        ConfigError: it is the oracle, and no triggered images are known.
    """
    if settings.select_by == "number":
        return traced.fixed
    if settings.select_by == "proxy" and backdoor_suspected(traced, settings) is False:
        return traced.points[0]
    if settings.select_by != "asr":
        return traced.points[rule_of(settings).index(traced.points)]
    best = oracle(traced, settings)
    if best is None:
        raise ConfigError("select_by=asr needs triggered images")
    return best


def own_rule(settings: Prune) -> Prune:
    """The settings that choose without the trigger: these, or by proxy where they take a fixed point or the oracle."""
    without = settings.select_by in ("proxy", "clean_acc")
    return settings if without else settings.model_copy(update={"select_by": "proxy"})


def oracle(traced: Traced, settings: Prune) -> Point | None:
    """The point with the best DER in hindsight: a bound for other choices, which sees the trigger.

    All points that were looked at are ranked on the curve's images. The best of these, the choice without the trigger,
    the fixed point and the unpruned model are then ranked on all test images, so that none of those reported is better.
    None if ASR is unknown.
    """
    looked_at = [*traced.points, traced.fixed]
    best = select.oracle([point.scores for point in looked_at])
    if best is None:
        return None
    finalists = [traced.points[0], looked_at[best], choose(traced, own_rule(settings)), traced.fixed]
    found = select.oracle([traced.whole(point).scores for point in finalists])
    return None if found is None else finalists[found]
