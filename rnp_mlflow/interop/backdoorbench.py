"""BackdoorBench's result files: `attack_result.pt` in, `defense_result.pt` out (formats: its repository)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rnp_mlflow.data import folder
from rnp_mlflow.data.triggered import Triggered
from rnp_mlflow.errors import DataError, ModelError, RnpError
from rnp_mlflow.loading import read_torch, state_dict

DEFENSE = "defense_result.pt"


@dataclass(frozen=True)
class AttackResult:
    """What an `attack_result.pt` says. triggered: its test images, None where it lists none.

    image_size: pixels a side. dataset: of the clean images, in its words (`cifar10`). poisoned: indices
    of the training images that got the trigger, int64, empty where unknown.
    """

    model_name: str
    classes: int
    weights: dict[str, Tensor]
    image_size: int
    dataset: str
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
        weights = state_dict(content["model"], file)
        size, grey = int(content["img_size"][0]), int(content["img_size"][2]) == 1
        indicator = (content.get("bd_train") or {}).get("poison_indicator")
        poisoned = torch.from_numpy(np.flatnonzero(indicator.decode())) if indicator else torch.empty(0).long()
        entries = [_entry(file, item) for item in _items(content.get("bd_test"))]
        model_name, dataset, classes = content["model_name"], content["clean_data"], int(content["num_classes"])
        if not isinstance(model_name, str) or not isinstance(dataset, str):
            raise TypeError("a name in it is no text")
        if classes < 1 or not 1 <= size <= 4096:
            raise ValueError(f"{classes} classes, images of {size} pixels")
        triggered = _triggered(entries, size, grey)
    except RnpError:
        raise
    except Exception as error:  # whatever a broken or hostile file makes of the reader
        raise ModelError(f"{file} is no BackdoorBench attack result: {str(error)[:160]}") from None
    return AttackResult(model_name, classes, weights, size, dataset.lower(), triggered, poisoned)


def _entry(file: Path, item: Mapping[str, Any]) -> tuple[Path, int, int]:
    """(place, target label, true label) of one triggered image."""
    if not isinstance(item["path"], str):
        raise TypeError("an image's path is no text")
    return _place(file, item["path"]), int(item["other_info"][0]), int(item["other_info"][1])


def _items(part: Any) -> list[Mapping[str, Any]]:
    return list(part["bd_data_container"]["data_dict"].values()) if part else []


def _place(file: Path, said: str) -> Path:
    """An image: beside the result file, where it belongs; or below the working folder, as it says.

    Nowhere else: a result file from outside must not choose which of our files are read and logged.
    """
    path = Path(said)
    if ".." in path.parts or path.suffix.lower() != ".png":
        raise ValueError(f"{said[:80]!r} is no place of a triggered image")
    beside = file.parent.joinpath(*[part for part in path.parts if part != path.anchor][-3:])
    place = beside if beside.is_file() or path.is_absolute() or not path.is_file() else path
    root = file.parent if place is beside else Path.cwd()
    if not place.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{said[:80]!r} leads out of {root}")
    return place


def _triggered(entries: list[tuple[Path, int, int]], size: int, grey: bool) -> Triggered | None:
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


def write_defense(file: Path, model: nn.Module, architecture: str, classes: int) -> None:
    """`defense_result.pt`: model name, class count, state dict, as BackdoorBench's loaders want them."""
    weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    name = architecture.removeprefix("torchvision/")
    torch.save({"model_name": name, "num_classes": classes, "model": weights}, file)
