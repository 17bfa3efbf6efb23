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
from rnp_mlflow.errors import DataError, ModelError
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
        items, indicator = _items(content.get("bd_test")), (content.get("bd_train") or {}).get("poison_indicator")
        poisoned = torch.from_numpy(np.flatnonzero(indicator)) if indicator is not None else torch.empty(0).long()
        entries = [
            (_place(file, str(item["path"])), int(item["other_info"][0]), int(item["other_info"][1])) for item in items
        ]
        facts = str(content["model_name"]), int(content["num_classes"]), str(content["clean_data"]).lower()
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{file} is no BackdoorBench attack result ({type(error).__name__}: {error})") from None
    if facts[1] < 1 or not 1 <= size <= 4096:
        raise ModelError(f"{file}: {facts[1]} classes and images of {size} pixels are no BackdoorBench attack result")
    return AttackResult(facts[0], facts[1], weights, size, facts[2], _triggered(entries, size, grey), poisoned)


def _items(part: Any) -> list[Mapping[str, Any]]:
    return list(part["bd_data_container"]["data_dict"].values()) if part else []


def _place(file: Path, said: str) -> Path:
    """An image: beside the result file, where it belongs; or below the working folder, as it says.

    Nowhere else: a result file from outside must not choose which of our files are read and logged.
    """
    path = Path(said)
    if ".." in path.parts or path.suffix.lower() != ".png":
        raise ValueError(f"{said} is no place of a triggered image")
    beside = file.parent.joinpath(*path.parts[-3:])
    return beside if beside.is_file() or path.is_absolute() or not path.is_file() else path


def _triggered(entries: list[tuple[Path, int, int]], size: int, grey: bool) -> Triggered | None:
    """(file, target label, true label) of every image; those of the target class itself are left out."""
    used = [entry for entry in entries if entry[1] != entry[2]]
    if not used:
        return None
    if missing := [str(place) for place, _, _ in used if not place.is_file()]:
        raise DataError(f"{len(missing)} of {len(used)} triggered images are missing, the first is {missing[0]}")
    images = folder.read_images([place for place, _, _ in used], size, grey)
    targets, truths = (torch.tensor([entry[k] for entry in used]) for k in (1, 2))
    return Triggered(images, truths, targets)


def write_defense(file: Path, model: nn.Module, architecture: str, classes: int) -> None:
    """`defense_result.pt`: model name, class count, state dict, as BackdoorBench's loaders want them."""
    weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    name = architecture.removeprefix("torchvision/")
    torch.save({"model_name": name, "num_classes": classes, "model": weights}, file)
