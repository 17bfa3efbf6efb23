"""Images that carry a trigger, from outside: what ASR and RA are measured on."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rnp_mlflow.data import folder, npz
from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.errors import DataError


@dataclass(frozen=True)
class Triggered:
    """images uint8 (M, C, H, W); their true labels and the attacker's, int64 (M,), which differ everywhere.

    Raises:
        DataError: shapes or types are not those, or a true label is the attacker's.
    """

    images: Tensor
    true_labels: Tensor
    target_labels: Tensor

    def __post_init__(self) -> None:
        ImageSet(self.images, self.true_labels)
        ImageSet(self.images, self.target_labels)
        if bool((self.true_labels == self.target_labels).any()):
            raise DataError("a triggered image's true label is its target; such images say nothing of ASR")

    def check(self, classes: tuple[str, ...], shape: tuple[int, int, int]) -> None:
        """Hold them to the data they go with.

        Raises:
            DataError: other shape, or a label that is no class.
        """
        if tuple(self.images.shape[1:]) != shape:
            raise DataError(f"triggered images are {tuple(self.images.shape[1:])}, the clean ones {shape}")
        labels = torch.cat([self.true_labels, self.target_labels])
        if labels.min() < 0 or labels.max() >= len(classes):
            raise DataError(f"a label of the triggered images is not from 0 to {len(classes) - 1}")


def aimed_at(images: ImageSet, targets: Tensor) -> Triggered:
    """All of them, each aimed at its target (N,); those whose own label that is are left out.

    Raises:
        DataError: nothing is left.
    """
    kept = (images.labels != targets).nonzero().flatten()
    others = images[kept]
    return Triggered(others.images, others.labels, targets[kept])


def read(place: Path, classes: tuple[str, ...], target: int, shape: tuple[int, int, int]) -> Triggered:
    """A folder `TRUE_CLASS/*` (class names, or labels as numbers) or an npz of `x` and true labels `y`.

    Images of the target class are left out. shape: (C, H, W) of the clean images; a folder's are scaled.

    Raises:
        DataError: missing, broken, of another shape, or nothing is left.
    """
    if not place.exists():
        raise DataError(f"triggered={place} does not exist")
    found = read_folder(place, classes, shape) if place.is_dir() else npz.read_one(place)
    if not (found.labels != target).any():
        raise DataError(f"{place}: every image is of the target class; ASR needs images of the others")
    triggered = aimed_at(found, torch.full_like(found.labels, target))
    triggered.check(classes, shape)
    return triggered


def read_folder(place: Path, classes: tuple[str, ...], shape: tuple[int, int, int]) -> ImageSet:
    names = folder.class_names(place)
    files, positions = folder.list_files(place, names)
    labels = torch.tensor([label_of(name, classes, place) for name in names])
    return ImageSet(folder.read_images(files, shape[-1], grey=shape[0] == 1), labels[positions])


def label_of(name: str, classes: tuple[str, ...], where: Path | str = "target") -> int:
    """The label that a class name, or a label written as a number, stands for.

    Raises:
        DataError: it is neither.
    """
    if name in classes:
        return classes.index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    raise DataError(f"{where}: {name!r} is neither a class ({', '.join(classes[:12])}) nor its number")
