"""The three steps as settings describe them, and all of them in one call: tensors in, tensors out, no MLflow."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rnp_mlflow.config import Common, Prune, Recover, Settings, Unlearn, parse
from rnp_mlflow.core import select
from rnp_mlflow.core import verdict as signs
from rnp_mlflow.core.batches import OnEpoch
from rnp_mlflow.core.bn_stats import reestimate_, shift_from
from rnp_mlflow.core.curve import Judge, Point, refined, trace
from rnp_mlflow.core.evaluate import TestSet, predict, settled
from rnp_mlflow.core.neurons import Mask, norm_layers
from rnp_mlflow.core.precision import logits_of
from rnp_mlflow.core.proxy import Proxy, invert
from rnp_mlflow.core.prune import Cut, Refit, cut_at, cuts, pruned_copy
from rnp_mlflow.core.recover import Recovered, recover
from rnp_mlflow.core.seeds import generator, seeded
from rnp_mlflow.core.select import Rule
from rnp_mlflow.core.unlearn import Unlearned, unlearn
from rnp_mlflow.core.verdict import Verdict
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.data.subset import hold_out
from rnp_mlflow.errors import ConfigError, DataError

Images = tuple[Tensor, Tensor]  # images (N, C, H, W), labels int64 (N,), on the model's device
S = TypeVar("S", bound=Common)


def settle(settings: S, model: nn.Module, images: Tensor, feed: Preprocess) -> S:
    """The settings with the precision that `auto` means for this model and these clean images (`core.evaluate`)."""
    return settings.model_copy(update={"precision": settled(settings.precision, model, images, feed)})


def unlearn_by(
    settings: Unlearn, model: nn.Module, clean: Images, feed: Preprocess, on_epoch: OnEpoch = lambda record: None
) -> Unlearned:
    """Step 1 (`core.unlearn`) as the settings say."""
    with seeded(settings.seed, "unlearn") as draws:
        return unlearn(
            model, *clean, feed.seen(settings.unlearning_views), draws,
            lr=settings.unlearning_lr, epochs=settings.unlearning_epochs, clean_threshold=settings.clean_threshold,
            schedule=settings.schedule, batch_size=settings.batch_size, clip=settings.clip,
            stop=settings.unlearning_stop, precision=settings.precision, on_epoch=on_epoch,
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
    on_epoch: OnEpoch = lambda record: None,
) -> Recovered:
    """Step 2 (`core.recover`) as the settings say."""
    with seeded(settings.seed, "recover") as draws:
        return recover(
            unlearned, *clean, feed.seen(settings.recovering_views), draws,
            alpha=settings.alpha, lr=settings.recovering_lr, epochs=settings.recovering_epochs,
            batch_size=settings.recovering_batch_size, averaging=settings.mask_averaging, precision=settings.precision,
            proxy=proxy if settings.proxy_share else None, proxy_share=settings.proxy_share, suspect=suspect,
            suspect_steps=settings.suspect_steps, suspect_weight=settings.suspect_weight, on_epoch=on_epoch,
        )  # fmt: skip


def rule_of(settings: Prune) -> Rule:
    """The choice without the trigger."""
    proxy_ratio = settings.proxy_ratio if settings.select_by == "proxy" else None
    return Rule(settings.acc_ratio, proxy_ratio, settings.stop_ratio, settings.margin_ratio)


def points_of(settings: Prune, mask: Mask) -> list[Cut]:
    """The unpruned model, the points of the sweep, and last the fixed operating point."""
    sweep = cuts(mask, settings.pruning_by, settings.pruning_max, settings.pruning_step)
    return [*sweep, cut_at(mask, settings.pruning_by, settings.pruning_number)]


@dataclass(frozen=True)
class Traced:
    """Every point of the curve, the unpruned model first; the fixed operating point; what refits a pruned model.

    size, cost, faded: of the proxy, of stopping it, and of it when unlearned (`core.verdict`); None without one.
    A proxy that turns nothing on the unpruned model counts as one of size 1.
    """

    points: list[Point]
    fixed: Point
    refit: Refit | None = field(repr=False)
    size: float | None = None
    cost: float | None = None
    faded: float | None = None

    @property
    def doubt(self) -> float | None:
        """How little speaks for a backdoor; None without a proxy."""
        if self.size is None or self.cost is None or self.faded is None:
            return None
        return signs.doubt(self.size, self.cost, self.faded)


def refit_by(settings: Prune, model: nn.Module, used: Images, feed: Preprocess) -> Refit | None:
    """What `bn_stats` does to a pruned copy of `model`, with these clean images."""
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
    proxy, verdict: what `examine` found. on_point: called after each of `points_of`.
    """
    draws = generator(settings.seed, "views")
    held = feed.views(*held, settings.clean_views, draws)
    refit = refit_by(settings, model, used, feed)
    judge = Judge(test, held, feed, proxy, settings.precision)
    found = trace(model, mask, points_of(settings, mask), judge, refit, on_point)
    points, fixed = found[:-1], found[-1]
    if settings.select_by in ("proxy", "clean_acc") and settings.refine:
        points = refined(model, mask, points, rule_of(settings), settings.refine, judge, refit)
    if not proxy:
        return Traced(points, fixed, refit)
    size = signs.relative_size(proxy.change, feed(held[0], None)) if points[0].proxy_asr else 1.0
    return Traced(points, fixed, refit, size, signs.cost(points), verdict.faded if verdict else None)


@dataclass(frozen=True)
class Defended:
    """What `defend` gives. model: the purified one, in eval mode. chosen: the point it was pruned at.

    verdict: the suspected class. doubt: how little speaks for a backdoor (up to `max_doubt` one is suspected).
    """

    model: nn.Module = field(repr=False)
    mask: Mask = field(repr=False)
    curve: list[Point] = field(repr=False)
    chosen: Point
    unlearned: Unlearned = field(repr=False)
    verdict: Verdict | None
    proxy: Proxy | None = field(repr=False)
    doubt: float | None


def defend(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    flip: bool = True,
    test: TestSet | None = None,
    **settings: Any,
) -> Defended:
    """Find a backdoor's neurons with clean images, and prune them; `model` is left as it was.

    model: any classifier with BatchNorm (torchvision's, timm's, your own), on any device.
    images, labels: the clean images (N, C, H, W) with labels int64 (N,), tensors or arrays. uint8 pixels
    need the model's `mean` and `std` (per channel, 0 to 1); floats are taken as the model wants them.
    flip: whether a mirrored image keeps its label. test: what the curve is judged on, images of the same
    kind; without it ACC is that on the held-out images, and ASR is None.
    settings: parameters of unlearn, recover and prune by name, `seed=1`, `acc_ratio=0.98` (config.py).
    The same seed gives the same result to the bit on the same machine and threads; on CUDA call
    `torch.use_deterministic_algorithms(True)` before.

    Raises:
        ConfigError: a setting is unknown or out of range, or uint8 images come without mean and std.
        DataError: images and labels do not go together.
        ModelError: the model has no BatchNorm layer with a scale, or unlearning diverged.
    """
    plans = _settings(settings)
    model = copy.deepcopy(model)
    device = next(iter(norm_layers(model).values())).weight.device
    images, labels = _checked(torch.as_tensor(images), torch.as_tensor(labels), mean, std)
    images, labels = images.to(device), labels.to(device)
    feed = Preprocess.for_side(images.shape[-1], mean or (), std or (), flip)
    classes = class_count(model, images, feed)
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"labels must be from 0 to {classes - 1}, as the model has {classes} classes")
    start = plans["unlearn"]
    kept = hold_out(labels.cpu(), start.holdout, generator(start.seed, "holdout"))
    free = torch.ones(len(labels), dtype=torch.bool)
    free[kept] = False
    used, held = (images[free], labels[free]), (images[kept], labels[kept])
    plans = {step: settle(plan, model, used[0], feed) for step, plan in plans.items()}
    start = plans["unlearn"]
    unlearned = unlearn_by(start, model, used, feed)
    verdict, proxy = examine(start, model, unlearned, used, feed)
    mask = recover_by(plans["recover"], unlearned.model, model, used, feed, proxy).mask
    traced = trace_by(plans["prune"], model, mask, used, held, test or TestSet(*held), feed, proxy, verdict)
    chosen = choose(traced, plans["prune"])
    purified = pruned_copy(model, mask, chosen.pruned, traced.refit).eval()
    return Defended(purified, mask, traced.points, chosen, unlearned, verdict, proxy, traced.doubt)


def backdoor_suspected(traced: Traced, settings: Prune) -> bool | None:
    """Whether the proxy speaks for a backdoor; None where there is no proxy."""
    return None if traced.doubt is None else traced.doubt <= settings.max_doubt


def choose(traced: Traced, settings: Prune) -> Point:
    """The operating point that `select_by` means; by proxy, the unpruned model where no backdoor is suspected.

    Raises:
        ConfigError: it is the oracle, and no triggered images are known.
    """
    if settings.select_by == "number":
        return traced.fixed
    if settings.select_by == "proxy" and backdoor_suspected(traced, settings) is False:
        return traced.points[0]
    if settings.select_by != "asr":
        return traced.points[rule_of(settings).index(traced.points)]
    best = select.oracle([p.scores for p in traced.points])
    if best is None:
        raise ConfigError("select_by=asr needs triggered images")
    return traced.points[best]


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    steps: dict[str, type[Settings]] = {"unlearn": Unlearn, "recover": Recover, "prune": Prune}
    known = {name for settings in steps.values() for name in settings.model_fields}
    foreign = {"device", "threads", "model_run_id", "unlearn_run_id", "recover_run_id", "mask_file", "ratio", "index"}
    foreign |= {"export", "register_as"}
    if unknown := sorted(set(values) - (known - foreign)):
        raise ConfigError(f"defend takes no setting {unknown[0]}; it takes {', '.join(sorted(known - foreign))}")
    return {step: parse(settings, values) for step, settings in steps.items()}


def _checked(images: Tensor, labels: Tensor, mean: Any, std: Any) -> Images:
    if images.ndim != 4 or labels.shape != images.shape[:1] or len(images) < 4 or labels.is_floating_point():
        raise DataError(
            f"images must be (N, C, H, W) with as many whole labels, N ≥ 4; not {tuple(images.shape)} and "
            f"{labels.dtype} {tuple(labels.shape)}"
        )
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise DataError(f"images must be uint8 pixels or floats as the model takes them, not {images.dtype}")
    if images.dtype == torch.uint8 and not (mean and std and len(mean) == len(std) == images.shape[1]):
        raise ConfigError(f"uint8 images need the model's mean and std, {images.shape[1]} values each")
    return images, labels.long()
