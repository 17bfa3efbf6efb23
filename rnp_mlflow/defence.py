"""All three steps in one call: tensors in, tensors out, no files, no MLflow."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rnp_mlflow.config import PRESETS, Prune, Recover, Settings, Unlearn, names, parse
from rnp_mlflow.core.copyable import check_copyable
from rnp_mlflow.core.curve import Point
from rnp_mlflow.core.evaluate import TestSet, accuracy, predict, spaced
from rnp_mlflow.core.neurons import Mask, norm_layers
from rnp_mlflow.core.proxy import Proxy
from rnp_mlflow.core.prune import pruned_copy
from rnp_mlflow.core.seeds import generator
from rnp_mlflow.core.unlearn import Unlearned
from rnp_mlflow.core.verdict import Verdict
from rnp_mlflow.core.wrapped import as_given, working_copy
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.data.subset import holdout_indices
from rnp_mlflow.errors import ConfigError, DataError, ModelError
from rnp_mlflow.method import Images, choose, class_count, examine, recover_by, settle, trace_by, unlearn_by

CHECKED = 1000  # clean images, at most, on which the model's accuracy is compared with chance


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
    mean: Iterable[float] | float | None = None,
    std: Iterable[float] | float | None = None,
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
    need the model's `mean` and `std` (per channel or one for all, 0 to 1); floats are taken as the
    model wants them, without.
    flip: whether a mirrored image keeps its label. test: what the curve is judged on, images of the same
    kind; without it ACC is that on the held-out images, and ASR is None.
    settings: parameters of unlearn, recover and prune by name, `seed=1`, `acc_ratio=0.98` (config.py).
    The same seed gives the same result to the bit on the same machine and threads; on CUDA call
    `torch.use_deterministic_algorithms(True)` before.

    Raises:
        ConfigError: a setting is unknown or out of range, uint8 images come without mean and std, floats come with
            them, or they are not for pixels scaled to [0, 1].
        DataError: images and labels do not go together, or `test` not with the images.
        ModelError: the model has no BatchNorm layer with a scale, cannot be copied, does not take the images, or
            gives no logits; or unlearning diverged.

    Warns:
        UserWarning: the model's accuracy on the images is near chance, so they are probably fed in the wrong way.
    """
    plans = _settings(settings)
    given, model = model, _copied(model)
    device = next(iter(norm_layers(model).values())).weight.device
    images, labels = _tensor(images, "images"), _tensor(labels, "labels")
    mean, std = _per_channel(mean, "mean", images), _per_channel(std, "std", images)
    images, labels = _checked(images, labels, mean, std)
    images, labels = images.to(device), labels.to(device)
    feed = Preprocess.for_image_size(images.shape[-1], mean or (), std or (), flip)
    classes = _classes(model, images, feed)
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"labels must be from 0 to {classes - 1}, as the model has {classes} classes")
    test = _checked_test(test, images, classes)
    _warn_near_chance(model, images, labels, feed, classes)
    start = plans["unlearn"]
    kept = holdout_indices(labels.cpu(), start.holdout, generator(start.seed, "holdout"))
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
    if images.shape[3] in (1, 3) and images.shape[1] > 4:
        raise DataError(f"images must be NCHW, not NHWC {tuple(images.shape)}: give images.permute(0, 3, 1, 2)")
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise DataError(f"images must be uint8 pixels or floats as the model takes them, not {images.dtype}")
    if images.is_floating_point() and (mean is not None or std is not None):
        raise ConfigError("float images are taken as the model wants them: give uint8 pixels, or no mean and std")
    if mean and std and not (all(0 <= m <= 1 for m in mean) and all(0 < s <= 1 for s in std)):
        raise ConfigError(f"mean and std are for pixels scaled to [0, 1], not 0 to 255: {tuple(mean)}, {tuple(std)}")
    if images.dtype == torch.uint8 and not (mean and std and len(mean) == len(std) == images.shape[1]):
        raise ConfigError(f"uint8 images need the model's mean and std, {images.shape[1]} values each")
    return images.float() if images.is_floating_point() else images, labels.long()


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


def _tensor(values: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{name} must be a tensor or an array of numbers: {reason}") from None


def _per_channel(values: Any, name: str, images: Tensor) -> tuple[float, ...] | None:
    """Return mean or std as a tuple: of a sequence, array or tensor its values; of a number one for each channel.

    Raises:
        ConfigError: it is none of these.
    """
    if values is None:
        return None
    try:
        found = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(f"{name} must be one number per channel, not {str(values)[:60]}") from None
    if found.ndim == 0 and images.ndim == 4:
        found = found.expand(images.shape[1])
    return tuple(found.flatten().tolist())


def _copied(model: nn.Module) -> nn.Module:
    """Return the working copy.

    Raises:
        ModelError: the model cannot be copied, or one mask cannot mean one place in it.
    """
    if isinstance(model, nn.Module) and not isinstance(model, torch.jit.ScriptModule):
        check_copyable(model)
    try:
        return working_copy(model)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(f"the model cannot be copied (copy.deepcopy): {reason}") from None


def _checked_test(test: TestSet | None, images: Tensor, classes: int) -> TestSet | None:
    """Return the test set with float images in float32, as the working copy takes them.

    Raises:
        ConfigError: it is not a `TestSet`.
        DataError: its images are not like `images`, a label is not one of the classes, or a part is missing.
    """
    if test is None:
        return None
    if not isinstance(test, TestSet):
        raise ConfigError(f"test must be a TestSet(images, labels), not {type(test).__name__}")
    parts = (test.triggered, test.true_labels, test.target_labels)
    if len({part is None for part in parts}) > 1:
        raise DataError("test: give triggered, true_labels and target_labels, all three or none of them")
    clean = _test_images(test.images, images, "images"), _test_labels(test.labels, test.images, classes, "labels")
    if test.triggered is None:
        return TestSet(*clean)
    bad = _test_images(test.triggered, images, "triggered")
    truth, target = (_test_labels(getattr(test, k), bad, classes, k) for k in ("true_labels", "target_labels"))
    return TestSet(*clean, bad, truth, target)


def _test_images(values: Any, like: Tensor, name: str) -> Tensor:
    found = _tensor(values, f"test.{name}")
    if found.is_floating_point() != like.is_floating_point() or not (
        found.is_floating_point() or found.dtype == torch.uint8
    ):
        raise DataError(f"test.{name} must be of the kind of images, {like.dtype}, not {found.dtype}")
    if found.shape[1:] != like.shape[1:] or not len(found):
        raise DataError(f"test.{name} must be (N, {', '.join(map(str, like.shape[1:]))}), not {tuple(found.shape)}")
    return found.float() if found.is_floating_point() else found


def _test_labels(values: Any, images: Any, classes: int, name: str) -> Tensor:
    found = _tensor(values, f"test.{name}")
    if found.shape != (len(images),) or found.is_floating_point():
        raise DataError(f"test.{name} must be {len(images)} whole labels, not {found.dtype} {tuple(found.shape)}")
    if found.min() < 0 or found.max() >= classes:
        raise DataError(f"test.{name} must be from 0 to {classes - 1}, as the model has {classes} classes")
    return found.long()


def _warn_near_chance(model: nn.Module, images: Tensor, labels: Tensor, feed: Preprocess, classes: int) -> None:
    """Warn if the model is not better than a constant answer by more than two standard errors."""
    some = spaced(len(labels), CHECKED).to(labels.device)
    acc = accuracy(predict(model, images[some], feed), labels[some])
    chance = max(1 / classes, float(labels[some].bincount().max()) / len(some))
    if acc <= chance + 2 * math.sqrt(chance * (1 - chance) / len(some)):
        warnings.warn(
            f"the model's accuracy on the clean images is {acc:.2f}, near chance ({chance:.2f}): check the order "
            "of the classes, the normalisation (mean, std), and that the logits are the first output of a tuple",
            stacklevel=3,
        )
