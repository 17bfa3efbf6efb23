"""BackdoorBench's result files: read `attack_result.pt`, write `defense_result.pt` (formats: its repository)."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rnp_mlflow.data import folder
from rnp_mlflow.data.triggered import Triggered
from rnp_mlflow.errors import DataError, ModelError, RnpError
from rnp_mlflow.interop.architectures import backdoorbench_name
from rnp_mlflow.loading import SafeNdarray, read_torch, state_dict

LONGEST_PATH, MOST_NUMBERS = 1024, 10_000_000  # characters; in lists of a list
DEFENSE = "defense_result.pt"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AttackResult:
    """The content of an `attack_result.pt`, or of a `defense_result.pt`, which has fewer fields.

    image_size: side in pixels, None if not stored. dataset: BackdoorBench's name for the clean images (`cifar10`), or
    None. triggered: the triggered test images, None if the file lists none. poisoned: indices of the training images
    that got the trigger, int64, empty if unknown.
    """

    model_name: str
    classes: int
    weights: dict[str, Tensor]
    image_size: int | None
    dataset: str | None
    triggered: Triggered | None
    poisoned: Tensor


def read(file: Path) -> AttackResult:
    """Read a result file without executing anything in it.

    Raises:
        ModelError: the file is refused, broken, or not such a result.
        DataError: a triggered image is missing or broken.
    """
    content = read_torch(file)
    try:
        weights = state_dict({"model": content["model"]}, file)
        size, grey = _image_size(content.get("img_size"))
        poisoned = _poisoned(content.get("bd_train"))
        entries = [_entry(file, item) for item in _items(content.get("bd_test"))]
        model_name, dataset, classes = content["model_name"], content.get("clean_data"), int(content["num_classes"])
        if not isinstance(model_name, str) or not isinstance(dataset, str | None):
            raise TypeError("model_name or clean_data is not text")
        if classes < 1 or not 1 <= (size or 1) <= 4096:
            raise ValueError(f"{classes} classes, images of {size} pixels")
        triggered = _triggered(entries, size, grey)
    except RnpError:
        raise
    except Exception as error:  # a broken or hostile file can raise anything
        raise ModelError(f"{file} is not a BackdoorBench attack result: {str(error)[:160]}") from None
    if triggered is None:
        log.warning(f"  {file.name} lists no triggered images")
    return AttackResult(model_name, classes, weights, size, dataset and dataset.lower(), triggered, poisoned)


def _image_size(stored: Any) -> tuple[int | None, bool]:
    """Return (side in pixels, whether the images are grey) from `img_size`: H, W and C, a plain number, or None."""
    if stored is None:
        return None, False
    values = [int(value) for value in np.atleast_1d(_to_array(stored)).tolist()]
    if len(values) > 1 and values[0] != values[1]:
        raise ValueError(f"img_size {tuple(values[:3])} is not square, and only square images are taken")
    return values[0], len(values) > 2 and values[2] == 1


def _poisoned(part: Any) -> Tensor:
    """Return the indices of the training images that `poison_indicator` (0 or 1 per image, or absent) marks.

    Any other content is logged and means that they are unknown, as if it was absent: no figure depends on them.
    """
    indicator = part.get("poison_indicator") if part else None
    if indicator is None:
        return torch.empty(0).long()
    marks = _to_array(indicator)
    if marks.ndim != 1 or not np.isin(marks, (0, 1)).all() or len(marks) <= max(_train_keys(part), default=-1):
        log.warning("  poison_indicator is not one 0 or 1 per training image: which are poisoned is taken as unknown")
        return torch.empty(0).long()
    return torch.from_numpy(np.flatnonzero(marks))


def _train_keys(part: Mapping[str, Any]) -> list[int]:
    """Return the indices of the training images that the part lists, if it does."""
    container = part.get("bd_data_container")
    data = container.get("data_dict") if isinstance(container, Mapping) else None
    return [key for key in data if isinstance(key, int)] if isinstance(data, Mapping) else []


def _to_array(values: Any) -> np.ndarray:
    """Convert a numpy array, a tensor or a list of numbers, or of lists of them, to a numeric array."""
    if isinstance(values, (list, tuple)):
        inner = [each for each in values if isinstance(each, (list, tuple))]
        if sum(map(len, inner)) > MOST_NUMBERS or any(
            isinstance(part, (list, tuple)) for each in inner for part in each
        ):
            raise TypeError("a list that is too long, or has lists of lists")
    array = values.decode() if isinstance(values, SafeNdarray) else np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"an array of {array.dtype} instead of numbers")
    return array


def _entry(file: Path, item: Mapping[str, Any]) -> tuple[Path, int, int]:
    """Return (path, target label, true label) of one triggered image."""
    if not isinstance(item["path"], str):
        raise TypeError("an image's path is not text")
    labels = item["other_info"]
    labels = labels.decode() if isinstance(labels, SafeNdarray) else labels
    target, truth = (_whole(each) for each in labels[:2])
    return _image_path(file, item["path"]), target, truth


def _whole(label: Any) -> int:
    """Return a label of `other_info` as an int."""
    value = label.decode() if isinstance(label, SafeNdarray) else label
    if isinstance(value, str | bytes) or not float(value).is_integer():
        raise ValueError(f"a label in other_info is {str(value)[:20]!r}, not a whole number")
    return int(value)


def _items(part: Any) -> list[Mapping[str, Any]]:
    return list(part["bd_data_container"]["data_dict"].values()) if part else []


def _image_path(file: Path, stored: str) -> Path:
    """Return the path of a triggered image: next to the result file, or else below the working directory.

    Other locations are refused: an untrusted result file must not choose which of the user's files are read and logged.
    """
    if len(stored) > LONGEST_PATH:
        raise ValueError(f"the path of a triggered image has {len(stored):,} characters")
    path: PurePath = PureWindowsPath(stored) if "\\" in stored else PurePosixPath(stored)  # Windows or POSIX
    parts = [part for part in path.parts if part != path.anchor]
    if ".." in parts or path.suffix.lower() != ".png":
        raise ValueError(f"{stored[:80]!r} is not a valid path of a triggered image")
    beside, below = file.parent.joinpath(*parts[-3:]), Path(*parts)
    image = beside if beside.is_file() or path.anchor or not below.is_file() else below
    root = file.parent if image is beside else Path.cwd()
    if not image.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{stored[:80]!r} is outside {root}")
    return image


def _triggered(entries: list[tuple[Path, int, int]], size: int | None, grey: bool) -> Triggered | None:
    """Read the images of (path, target label, true label) entries, except images of the target class itself."""
    used = [entry for entry in entries if entry[1] != entry[2]]
    if not used:
        return None
    if len({path for path, _, _ in used}) < len(used):
        raise DataError("a triggered image is listed twice: each entry of bd_test must name another file")
    if missing := [str(path) for path, _, _ in used if not path.is_file()]:
        raise DataError(
            f"{len(missing)} of {len(used)} triggered images are missing, the first is {missing[0]}; "
            "put their folder next to the file or, to continue without ASR, give checkpoint=FILE and model=NAME"
        )
    images = folder.read_images([path for path, _, _ in used], size, grey, scale=False)
    targets, truths = (torch.tensor([entry[k] for entry in used]) for k in (1, 2))
    return Triggered(images, truths, targets)


def write_defense(
    file: Path, model: nn.Module, architecture: str, classes: int, *, width: int | None = None, channels: int = 3
) -> None:
    """Write `defense_result.pt` (model name, class count, state dict) for BackdoorBench's loaders.

    Raises:
        ConfigError: BackdoorBench has no such model.
    """
    name = backdoorbench_name(architecture, width, channels)
    prefix = "1." if name.startswith("vit_") else ""  # 0 is its Resize
    weights = {f"{prefix}{key}": value.detach().cpu().clone() for key, value in model.state_dict().items()}
    torch.save({"model_name": name, "num_classes": classes, "model": weights}, file)
