"""Images that carry a trigger, from outside: what ASR and RA are measured on."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rnp_mlflow.data import folder, npz
from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.data.pixels import HOW_TO_SCALE, converted
from rnp_mlflow.errors import DataError

log = logging.getLogger(__name__)


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


def read(
    place: Path, classes: tuple[str, ...], target: str, shape: tuple[int, int, int], scale: bool = False
) -> Triggered:
    """A folder `TRUE_CLASS/*` or an npz of `x` and true labels `y`, aimed at `target`.

    Images of the target class are left out. target, folder names: see `labels_of`. shape: (C, H, W) of the clean
    images. scale: scale images of another size to it, or refuse them.

    Raises:
        DataError: missing, broken, of another shape, or nothing is left.
    """
    if not place.exists():
        raise DataError(f"triggered={place} does not exist")
    names = folder.class_names(place) if place.is_dir() else ()
    where = f"triggered={place}, target={target}"
    if any(name.isdecimal() for name in classes):
        *labels, aim = labels_of([*names, target], classes, where)
    else:  # a number among names can only be a label
        labels, (aim,) = labels_of(names, classes, where), labels_of([target], classes, where)
    side = shape[-1] if scale else None
    if place.is_dir():
        files, positions = folder.list_files(place, names)
        pixels = folder.read_images(files, side, grey=shape[0] == 1)
        found = ImageSet(pixels, torch.tensor(labels)[positions])
    else:
        found = npz.read_one(place)
        if _odd_numbers(classes):
            log.warning(f"triggered={place}: y are label numbers from 0, so that 0 is class {classes[0]!r}")
        found = ImageSet(converted(found.images, side, False, f"triggered={place}"), found.labels)
    if found.shape[1:] != shape[1:]:
        sizes = f"{found.shape[-1]} × {found.shape[-2]}, the clean ones {shape[-1]} × {shape[-2]}"
        raise DataError(f"triggered={place}: images are {sizes}: {HOW_TO_SCALE}")
    if not (found.labels != aim).any():
        raise DataError(f"{place}: every image is of the target class; ASR needs images of the others")
    triggered = aimed_at(found, torch.full_like(found.labels, aim))
    triggered.check(classes, shape)
    return triggered


def labels_of(names: Sequence[str], classes: tuple[str, ...], where: str) -> list[int]:
    """The labels that names stand for, all of which are read the same way: as class names or as label numbers.

    If every one is a class name they are class names, else if every one is a number below the class count they are
    numbers. A single name among classes that are numbers, but not their own positions, must be a class name.

    Raises:
        DataError: neither, or both mixed.
    """
    as_names = [classes.index(name) for name in names] if set(names) <= set(classes) else None
    as_numbers = [int(name) for name in names if name.isdecimal() and int(name) < len(classes)]
    shown = f"({', '.join(classes[:12])}{', …' if len(classes) > 12 else ''})"
    if as_names is None and len(as_numbers) < len(names):
        odd = next((n for n in names if n not in classes and not (n.isdecimal() and int(n) < len(classes))), None)
        if odd is not None:
            raise DataError(f"{where}: {odd!r} is neither a class {shown} nor its number")
        raise DataError(
            f"{where}: some of {', '.join(names[:12])} are classes {shown}, others are numbers: give one kind"
        )
    numeric = _odd_numbers(classes)
    if as_names is None:
        if numeric and len(names) == 1:
            raise DataError(f"{where}: {names[0]!r} is not a class {shown}, and classes are numbers: give a class")
        if numeric:
            log.warning(f"{where}: {', '.join(names[:12])} are read as label numbers from 0, not as classes {shown}")
        return as_numbers
    if len(as_numbers) == len(names) and as_numbers != as_names:
        log.warning(f"{where}: {', '.join(names[:12])} are read as classes {shown}, not as label numbers from 0")
    return as_names


def _odd_numbers(classes: tuple[str, ...]) -> bool:
    """Whether the classes are numbers, and other ones than their labels."""
    return all(name.isdecimal() for name in classes) and list(map(int, classes)) != list(range(len(classes)))
