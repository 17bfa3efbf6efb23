"""An image folder: `train/CLASS/*`, `test/CLASS/*`, any format that Pillow reads."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Generator, Tensor

from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.data.subset import per_class
from rnp_mlflow.errors import DataError


def is_folder(root: Path) -> bool:
    """Whether `root` looks like one."""
    return (root / "train").is_dir() and (root / "test").is_dir()


def read_split(root: Path, part: str, classes: tuple[str, ...], size: int | None, count: int | None) -> ImageSet:
    """One part of the folder as RGB; `count` images of it, drawn class by class, where given.

    Only the images that are drawn are decoded.

    Raises:
        DataError: a class folder is missing or empty, an image is broken or of another size.
    """
    files, labels = list_files(root / part, classes)
    if count is not None:
        drawn = per_class(labels, count, Generator().manual_seed(0)).tolist()
        files, labels = [files[k] for k in drawn], labels[drawn]
    size = size or Image.open(files[0]).size[0]
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(lambda file: read_image(file, size), files))
    return ImageSet(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), labels)


def class_names(root: Path) -> tuple[str, ...]:
    """The class folders of `root/train`, sorted: their order is the label.

    Raises:
        DataError: there is no such folder, or none in it.
    """
    if not is_folder(root):
        raise DataError(f"{root} is no image folder: it needs train/CLASS/ and test/CLASS/")
    names = tuple(sorted(p.name for p in (root / "train").iterdir() if p.is_dir()))
    if not names:
        raise DataError(f"{root / 'train'} has no class folder")
    return names


def list_files(part: Path, classes: tuple[str, ...]) -> tuple[list[Path], Tensor]:
    """Every image file below `part/CLASS`, sorted, and its label."""
    known = {ending for ending, name in Image.registered_extensions().items() if name in Image.OPEN}
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        folder = part / name
        found = sorted(f for f in folder.rglob("*") if f.suffix.lower() in known)
        if not found:
            raise DataError(f"class {name!r} is empty: no image in {folder}")
        files += found
        labels += [label] * len(found)
    return files, torch.tensor(labels)


def read_image(file: Path, size: int) -> np.ndarray:
    """uint8 (size, size, 3); larger or smaller squares are scaled, bilinear."""
    try:
        with Image.open(file) as image:
            picture = image.convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{file} is no image that can be read: {error}") from None
    if picture.size[0] != picture.size[1]:
        raise DataError(f"{file} is {picture.size[0]} × {picture.size[1]}: images must be square")
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture)
