"""What `defend` is given, checked before any work."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from rnp_mlflow.core.copyable import check_copyable
from rnp_mlflow.core.detect import count_classes
from rnp_mlflow.core.evaluate import EvalSet, accuracy, chance_accuracy, evenly_spaced, predict
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.wrapped import working_copy
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.errors import ConfigError, DataError, ModelError

CHECKED = 1000  # clean images, at most, on which the model's accuracy is compared with chance


def checked(images: Tensor, labels: Tensor, mean: Any, std: Any) -> LabeledImages:
    """Check images, labels and normalisation; return floats as float32 and labels as int64."""
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
    return LabeledImages(images.float() if images.is_floating_point() else images, labels.long())


def check_labels(labels: Tensor, classes: int, name: str = "labels") -> None:
    """Check that labels are classes of the model.

    Raises:
        DataError: one is not.
    """
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"{name} must be from 0 to {classes - 1}, as the model has {classes} classes")


def classes_of(model: nn.Module, images: Tensor, transform: Preprocess) -> int:
    """Return how many classes the model has.

    Raises:
        ModelError: it does not take these images, or returns no logits.
    """
    try:
        return count_classes(model, images, transform)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"the model cannot take images of {tuple(images.shape[1:])}: {reason}") from None


def as_tensor(values: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{name} must be a tensor or an array of numbers: {reason}") from None


def per_channel(values: Any, name: str, images: Tensor) -> tuple[float, ...] | None:
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


def copied(model: nn.Module) -> nn.Module:
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


def checked_test(test: EvalSet | None, images: Tensor, classes: int) -> EvalSet | None:
    """Return the test set with float images in float32, as the working copy takes them.

    Raises:
        ConfigError: it is not an `EvalSet`.
        DataError: its images are not like `images`, a label is not one of the classes, or a part is missing.
    """
    if test is None:
        return None
    if not isinstance(test, EvalSet):
        raise ConfigError(f"test must be an EvalSet(images, labels), not {type(test).__name__}")
    parts = (test.triggered, test.true_labels, test.target_labels)
    if len({part is None for part in parts}) > 1:
        raise DataError("test: give triggered, true_labels and target_labels, all three or none of them")
    clean = _test_images(test.images, images, "images"), _test_labels(test.labels, test.images, classes, "labels")
    if test.triggered is None:
        return EvalSet(*clean)
    bad = _test_images(test.triggered, images, "triggered")
    truth, target = (_test_labels(getattr(test, k), bad, classes, k) for k in ("true_labels", "target_labels"))
    return EvalSet(*clean, bad, truth, target)


def _test_images(values: Any, like: Tensor, name: str) -> Tensor:
    found = as_tensor(values, f"test.{name}")
    if found.is_floating_point() != like.is_floating_point() or not (
        found.is_floating_point() or found.dtype == torch.uint8
    ):
        raise DataError(f"test.{name} must be of the kind of images, {like.dtype}, not {found.dtype}")
    if found.shape[1:] != like.shape[1:] or not len(found):
        raise DataError(f"test.{name} must be (N, {', '.join(map(str, like.shape[1:]))}), not {tuple(found.shape)}")
    return found.float() if found.is_floating_point() else found


def _test_labels(values: Any, images: Any, classes: int, name: str) -> Tensor:
    found = as_tensor(values, f"test.{name}")
    if found.shape != (len(images),) or found.is_floating_point():
        raise DataError(f"test.{name} must be {len(images)} whole labels, not {found.dtype} {tuple(found.shape)}")
    check_labels(found, classes, f"test.{name}")
    return found.long()


def warn_near_chance(model: nn.Module, images: Tensor, labels: Tensor, transform: Preprocess, classes: int) -> None:
    """Warn if the model is not better than a constant answer by more than two standard errors."""
    some = evenly_spaced(len(labels), CHECKED).to(labels.device)
    acc = accuracy(predict(model, images[some], transform), labels[some])
    chance = chance_accuracy(labels[some], classes)
    if acc <= chance + 2 * math.sqrt(chance * (1 - chance) / len(some)):
        warnings.warn(
            f"the model's accuracy on the clean images is {acc:.2f}, near chance ({chance:.2f}): check the order "
            "of the classes, the normalisation (mean, std), and that the logits are the first output of a tuple",
            stacklevel=3,
        )
