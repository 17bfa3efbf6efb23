"""BackdoorBench's result files: `attack_result.pt` in, `defense_result.pt` out (formats: its repository)."""

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
from rnp_mlflow.loading import Array, read_torch, state_dict

DEFENSE = "defense_result.pt"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AttackResult:
    """What an `attack_result.pt` says, or a `defense_result.pt`, which says less.

    triggered: its test images, None if it lists none. image_size: pixels a side, None if it does not say. dataset:
    of the clean images, in its words (`cifar10`), or None. poisoned: indices of the training images that got the
    trigger, int64, empty if unknown.
    """

    model_name: str
    classes: int
    weights: dict[str, Tensor]
    image_size: int | None
    dataset: str | None
    triggered: Triggered | None
    poisoned: Tensor


def read(file: Path) -> AttackResult:
    """Read it without executing anything in it.

    Raises:
        ModelError: it is refused, broken, or no such result.
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
            raise TypeError("a name in it is no text")
        if classes < 1 or not 1 <= (size or 1) <= 4096:
            raise ValueError(f"{classes} classes, images of {size} pixels")
        triggered = _triggered(entries, size, grey)
    except RnpError:
        raise
    except Exception as error:  # whatever a broken or hostile file makes of the reader
        raise ModelError(f"{file} is no BackdoorBench attack result: {str(error)[:160]}") from None
    if triggered is None:
        log.warning(f"  {file.name} lists no triggered images")
    return AttackResult(model_name, classes, weights, size, dataset and dataset.lower(), triggered, poisoned)


def _image_size(said: Any) -> tuple[int | None, bool]:
    """(pixels a side, whether the images are grey) from `img_size`: H, W and C, a plain number, or nothing."""
    if said is None:
        return None, False
    values = [int(value) for value in np.atleast_1d(_decoded(said)).tolist()]
    return values[0], len(values) > 2 and values[2] == 1


def _poisoned(part: Any) -> Tensor:
    """Indices of the training images that `poison_indicator` marks: a list or array of any numbers, or absent."""
    indicator = part.get("poison_indicator") if part else None
    if indicator is None:
        return torch.empty(0).long()
    return torch.from_numpy(np.flatnonzero(_decoded(indicator)))


def _decoded(values: Any) -> np.ndarray:
    """A numeric array from what the file holds: numpy's, torch's, or a list of numbers."""
    found = values.decode() if isinstance(values, Array) else np.asarray(values)
    if found.dtype.kind not in "biuf":
        raise TypeError(f"an array of {found.dtype} where numbers belong")
    return found


def _entry(file: Path, item: Mapping[str, Any]) -> tuple[Path, int, int]:
    """(place, target label, true label) of one triggered image."""
    if not isinstance(item["path"], str):
        raise TypeError("an image's path is no text")
    labels = item["other_info"]
    labels = labels.decode() if isinstance(labels, Array) else labels
    target, truth = (int(each.decode() if isinstance(each, Array) else each) for each in list(labels)[:2])
    return _place(file, item["path"]), target, truth


def _items(part: Any) -> list[Mapping[str, Any]]:
    return list(part["bd_data_container"]["data_dict"].values()) if part else []


def _place(file: Path, said: str) -> Path:
    """An image: beside the result file, where it belongs; or below the working folder, as it says.

    Nowhere else: a result file from outside must not choose which of our files are read and logged.
    """
    path: PurePath = PureWindowsPath(said) if "\\" in said else PurePosixPath(said)  # as the machine wrote it
    parts = [part for part in path.parts if part != path.anchor]
    if ".." in parts or path.suffix.lower() != ".png":
        raise ValueError(f"{said[:80]!r} is no place of a triggered image")
    beside, below = file.parent.joinpath(*parts[-3:]), Path(*parts)
    place = beside if beside.is_file() or path.anchor or not below.is_file() else below
    root = file.parent if place is beside else Path.cwd()
    if not place.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{said[:80]!r} leads out of {root}")
    return place


def _triggered(entries: list[tuple[Path, int, int]], size: int | None, grey: bool) -> Triggered | None:
    """(file, target label, true label) of every image; those of the target class itself are left out."""
    used = [entry for entry in entries if entry[1] != entry[2]]
    if not used:
        return None
    if missing := [str(place) for place, _, _ in used if not place.is_file()]:
        raise DataError(
            f"{len(missing)} of {len(used)} triggered images are missing, the first is {missing[0]}; "
            "put their folder beside the file or, to go without ASR, give checkpoint=FILE and model=NAME"
        )
    images = folder.read_images([place for place, _, _ in used], size, grey, scale=False)
    targets, truths = (torch.tensor([entry[k] for entry in used]) for k in (1, 2))
    return Triggered(images, truths, targets)


def write_defense(
    file: Path, model: nn.Module, architecture: str, classes: int, width: int | None = None, channels: int = 3
) -> None:
    """`defense_result.pt`: BackdoorBench's name of the model, class count, state dict, as its loaders want them.

    Raises:
        ConfigError: BackdoorBench has no such model.
    """
    weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    name = backdoorbench_name(architecture, width, channels)
    torch.save({"model_name": name, "num_classes": classes, "model": weights}, file)
