"""All three steps in one call: tensors in, tensors out, no files, no MLflow."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from rnp_mlflow.config import PRESETS, Prune, Recover, Settings, Unlearn, names, parse
from rnp_mlflow.core.curve import Point
from rnp_mlflow.core.evaluate import TestSet
from rnp_mlflow.core.neurons import Mask, norm_layers
from rnp_mlflow.core.proxy import Proxy
from rnp_mlflow.core.prune import pruned_copy
from rnp_mlflow.core.seeds import generator
from rnp_mlflow.core.unlearn import Unlearned
from rnp_mlflow.core.verdict import Verdict
from rnp_mlflow.core.wrapped import as_given, working_copy
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.data.subset import hold_out
from rnp_mlflow.errors import ConfigError, DataError, ModelError
from rnp_mlflow.method import Images, choose, class_count, examine, recover_by, settle, trace_by, unlearn_by


@dataclass(frozen=True)
class Defended:
    """What `defend` gives. model: the purified one, in eval mode, of the type and dtypes of the model given.

    chosen: the point it was pruned at. mask: by module path, without a wrapper's prefix.
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

    model: any classifier with BatchNorm (torchvision's, timm's, your own), on any device. It gives logits alone, first
    of a tuple, or as `logits` of a dict or object. A float64, half or bfloat16 model is worked on as a float32 copy;
    the purified one has its dtypes again. DataParallel is taken off and put on again; a compiled or
    DistributedDataParallel model comes back as the plain module.
    images, labels: the clean images (N, C, H, W) with labels int64 (N,), tensors or arrays. uint8 pixels
    need the model's `mean` and `std` (per channel, 0 to 1); floats are taken as the model wants them, without.
    flip: whether a mirrored image keeps its label. test: what the curve is judged on, images of the same
    kind; without it ACC is that on the held-out images, and ASR is None.
    settings: parameters of unlearn, recover and prune by name, `seed=1`, `acc_ratio=0.98` (config.py).
    The same seed gives the same result to the bit on the same machine and threads; on CUDA call
    `torch.use_deterministic_algorithms(True)` before.

    Raises:
        ConfigError: a setting is unknown or out of range, uint8 images come without mean and std, floats come with
            them, or they are not for pixels scaled to [0, 1].
        DataError: images and labels do not go together.
        ModelError: the model has no BatchNorm layer with a scale, does not take the images, or gives no logits; or
            unlearning diverged.
    """
    plans = _settings(settings)
    given, model = model, working_copy(model)
    device = next(iter(norm_layers(model).values())).weight.device
    images, labels = _checked(torch.as_tensor(images), torch.as_tensor(labels), mean, std)
    images, labels = images.to(device), labels.to(device)
    feed = Preprocess.for_side(images.shape[-1], mean or (), std or (), flip)
    test = _as_float32(test)
    classes = _classes(model, images, feed)
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"labels must be from 0 to {classes - 1}, as the model has {classes} classes")
    start = plans["unlearn"]
    kept = hold_out(labels.cpu(), start.holdout, generator(start.seed, "holdout"))
    free = torch.ones(len(labels), dtype=torch.bool)
    free[kept] = False
    used, held = (images[free], labels[free]), (images[kept], labels[kept])
    same = {"precision": settle(start, model, used[0], feed).precision}
    plans = {step: plan.model_copy(update=same) for step, plan in plans.items()}
    start = plans["unlearn"]
    unlearned = unlearn_by(start, model, used, feed)
    verdict, proxy = examine(start, model, unlearned, used, feed)
    mask = recover_by(plans["recover"], unlearned.model, model, used, feed, proxy).mask
    traced = trace_by(plans["prune"], model, mask, used, held, test or TestSet(*held), feed, proxy, verdict)
    chosen = traced.whole(choose(traced, plans["prune"]))
    purified = pruned_copy(model, mask, chosen.pruned, traced.refit).eval()
    return Defended(as_given(purified, given), mask, traced.points, chosen, unlearned, verdict, proxy, traced.doubt)


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    steps: dict[str, type[Settings]] = {"unlearn": Unlearn, "recover": Recover, "prune": Prune}
    known = {name for settings in steps.values() for name in settings.model_fields}
    foreign = names("machine", "file", "run", "output") | {"ratio", "eval_every"}
    if unknown := sorted(set(values) - (known - foreign)):
        raise ConfigError(f"defend takes no setting {unknown[0]}; it takes {', '.join(sorted(known - foreign))}")
    values = PRESETS.get(values.get("preset", "default"), {}) | values
    return {step: parse(settings, values) for step, settings in steps.items()}


def _checked(images: Tensor, labels: Tensor, mean: Any, std: Any) -> Images:
    if images.ndim != 4 or labels.shape != images.shape[:1] or len(images) < 4 or labels.is_floating_point():
        raise DataError(
            f"images must be (N, C, H, W) with as many whole labels, N ≥ 4; not {tuple(images.shape)} and "
            f"{labels.dtype} {tuple(labels.shape)}"
        )
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise DataError(f"images must be uint8 pixels or floats as the model takes them, not {images.dtype}")
    if images.is_floating_point() and (mean is not None or std is not None):
        raise ConfigError("float images are taken as the model wants them: give uint8 pixels, or no mean and std")
    if mean and std and not (all(0 <= m <= 1 for m in mean) and all(0 < s <= 1 for s in std)):
        raise ConfigError(f"mean and std are for pixels scaled to [0, 1], not 0 to 255: {tuple(mean)}, {tuple(std)}")
    if images.dtype == torch.uint8 and not (mean and std and len(mean) == len(std) == images.shape[1]):
        raise ConfigError(f"uint8 images need the model's mean and std, {images.shape[1]} values each")
    return images.float() if images.is_floating_point() else images, labels.long()


def _as_float32(test: TestSet | None) -> TestSet | None:
    """The same with float images in float32, as the working copy takes them."""
    if test is None or not test.images.is_floating_point():
        return test
    bad = test.triggered.float() if test.triggered is not None else None
    return replace(test, images=test.images.float(), triggered=bad)


def _classes(model: nn.Module, images: Tensor, feed: Preprocess) -> int:
    """How many classes the model answers with.

    Raises:
        ModelError: it does not take these images, or gives no logits.
    """
    try:
        return class_count(model, images, feed)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"the model cannot take images of {tuple(images.shape[1:])}: {reason}") from None
