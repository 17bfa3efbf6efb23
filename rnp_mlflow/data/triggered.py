"""Triggered images from the user's files, for measuring ASR and RA."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rnp_mlflow.data import folder, npz
from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.data.pixels import SCALE_HINT, convert_images
from rnp_mlflow.errors import DataError

log = logging.getLogger(__name__)
SAME, CANDIDATES = 0.5, 1000  # of `find_counterparts`


@dataclass(frozen=True)
class Triggered:
    """Images with a trigger, uint8 (M, C, H, W), their true labels and the attacker's labels, int64 (M,).

    The two labels of an image always differ. The field names are the keys of the stored file: do not rename them.

    Raises:
        DataError: a shape or dtype is wrong, or a true label equals the attacker's.
    """

    images: Tensor
    true_labels: Tensor
    target_labels: Tensor

    def __post_init__(self) -> None:
        ImageSet(self.images, self.true_labels)
        ImageSet(self.images, self.target_labels)
        if bool((self.true_labels == self.target_labels).any()):
            raise DataError("a triggered image's true label equals its target: leave such images out, ASR ignores them")

    def check(self, classes: tuple[str, ...], shape: tuple[int, int, int]) -> None:
        """Check that the images match the clean data.

        Raises:
            DataError: the shape differs, or a label is out of range.
        """
        if tuple(self.images.shape[1:]) != shape:
            raise DataError(f"triggered images are {tuple(self.images.shape[1:])}, the clean ones {shape}")
        labels = torch.cat([self.true_labels, self.target_labels])
        if labels.min() < 0 or labels.max() >= len(classes):
            raise DataError(f"a label of the triggered images is not from 0 to {len(classes) - 1}")


def exclude_target_class(images: ImageSet, targets: Tensor) -> Triggered:
    """Pair each image with its target (N,), and exclude images whose true label is that target.

    Raises:
        DataError: no image is left.
    """
    remaining = (images.labels != targets).nonzero().flatten()
    others = images[remaining]
    return Triggered(others.images, others.labels, targets[remaining])


def find_counterparts(triggered: Triggered, clean: ImageSet, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest clean image of the same class for each chosen triggered image, and whether it is the same one.

    chosen: positions (int64, (K,)) in `triggered`. The positions (K,) in `clean` are -1 if it has no image of the
    class. An image counts as the same without its trigger if it is at most `SAME` times as far away as the second
    nearest. At most `CANDIDATES` images of a class are looked at, at most 32 pixels of a row.
    """
    every = max(1, triggered.images.shape[-1] // 32)
    positions, same = torch.full((len(chosen),), -1), torch.zeros(len(chosen), dtype=torch.bool)
    for k, place in enumerate(chosen.tolist()):
        of_class = (clean.labels == triggered.true_labels[place]).nonzero().flatten()[:CANDIDATES]
        if not len(of_class):
            continue
        image = triggered.images[place, :, ::every, ::every].int()
        apart = (clean.images[of_class.to(clean.images.device)][:, :, ::every, ::every].cpu().int() - image).abs()
        nearest, order = apart.flatten(1).double().mean(1).sort(stable=True)
        positions[k] = of_class[order[0]]
        same[k] = bool(len(nearest) > 1 and nearest[0] <= SAME * nearest[1])
    return positions, same


def read(
    path: Path, classes: tuple[str, ...], target: str, shape: tuple[int, int, int], scale: bool = False
) -> Triggered:
    """Read triggered images from a folder `TRUE_CLASS/*`, or from an npz file with `x` and true labels `y`.

    Images of the target class are excluded. target, folder names: see `parse_labels`. shape: (C, H, W) of the clean
    images. scale: whether to scale images of another size; otherwise they are refused.

    Raises:
        DataError: the images are missing, broken or of another shape, or none is left.
    """
    if not path.exists():
        raise DataError(f"triggered={path} does not exist")
    names = folder.class_names(path) if path.is_dir() else ()
    context = f"triggered={path}, target={target}"
    if any(name.isdecimal() for name in classes):
        *labels, aim = parse_labels([*names, target], classes, context)
    else:  # if no class name is a number, a number must be a label
        labels, (aim,) = parse_labels(names, classes, context), parse_labels([target], classes, context)
    side = shape[-1] if scale else None
    if path.is_dir():
        files, positions = folder.list_files(path, names)
        pixels = folder.read_images(files, side, grey=shape[0] == 1)
        found = ImageSet(pixels, torch.tensor(labels)[positions])
    else:
        found = npz.read_one(path)
        if _numbers_are_not_labels(classes):
            log.warning(f"triggered={path}: y are label numbers from 0, so 0 means class {classes[0]!r}")
        found = ImageSet(convert_images(found.images, side, False), found.labels)
    if found.shape[1:] != shape[1:]:
        sizes = f"{found.shape[-1]} × {found.shape[-2]}, the clean ones {shape[-1]} × {shape[-2]}"
        raise DataError(f"triggered={path}: images are {sizes}: {SCALE_HINT}")
    if not (found.labels != aim).any():
        raise DataError(f"triggered={path}: every image is of the target class; ASR needs images of other classes")
    triggered = exclude_target_class(found, torch.full_like(found.labels, aim))
    triggered.check(classes, shape)
    return triggered


def parse_labels(names: Sequence[str], classes: tuple[str, ...], context: str) -> list[int]:
    """Return the labels for names that are either all class names or all label numbers.

    They are class names if every one is a class name. Otherwise they are label numbers if every one is a number below
    the class count. If the classes are numbers other than 0, 1, 2, …, a single name must be a class name. context:
    names the parameter in an error message.

    Raises:
        DataError: a name is neither, or the names are of both kinds.
    """
    as_names = [classes.index(name) for name in names] if set(names) <= set(classes) else None
    as_numbers = [int(name) for name in names if name.isdecimal() and int(name) < len(classes)]
    shown = f"({', '.join(classes[:12])}{', …' if len(classes) > 12 else ''})"
    if as_names is None and len(as_numbers) < len(names):
        odd = next((n for n in names if n not in classes and not (n.isdecimal() and int(n) < len(classes))), None)
        if odd is not None:
            raise DataError(f"{context}: {odd!r} is neither a class {shown} nor a label number")
        raise DataError(
            f"{context}: some of {', '.join(names[:12])} are classes {shown}, others are numbers: give only one kind"
        )
    numeric = _numbers_are_not_labels(classes)
    if as_names is None:
        if numeric and len(names) == 1:
            raise DataError(f"{context}: {names[0]!r} is not a class {shown}; the classes are numbers: give a class")
        if numeric:
            log.warning(f"{context}: {', '.join(names[:12])} are read as label numbers from 0, not as classes {shown}")
        return as_numbers
    if len(as_numbers) == len(names) and as_numbers != as_names:
        log.warning(f"{context}: {', '.join(names[:12])} are read as classes {shown}, not as label numbers from 0")
    return as_names


def _numbers_are_not_labels(classes: tuple[str, ...]) -> bool:
    """Whether the classes are named by numbers that differ from their labels."""
    return all(name.isdecimal() for name in classes) and list(map(int, classes)) != list(range(len(classes)))
