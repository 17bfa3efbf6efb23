"""An image folder: `train/CLASS/*` and `test/CLASS/*`, or `CLASS/*` alone; PNG, JPEG, WebP, TIFF, BMP, GIF or PPM."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.data.spill import room
from rnp_mlflow.data.subset import per_class
from rnp_mlflow.errors import DataError

# Plain raster formats alone: for others Pillow starts programs (Ghostscript for EPS, under any file name).
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")


def is_folder(root: Path) -> bool:
    """Whether `root` is one with a training and a test part."""
    return (root / "train").is_dir() and (root / "test").is_dir()


def is_classes(root: Path) -> bool:
    """Whether `root` is one without parts: its folders hold images themselves, or all is in `train`."""
    folders = [p for p in root.iterdir() if p.is_dir()] if root.is_dir() else []
    return (root / "train").is_dir() or any(is_image(file) for folder in folders for file in folder.iterdir())


def is_image(file: Path) -> bool:
    """Whether the name ends as those of images do that are read here."""
    return file.is_file() and Image.registered_extensions().get(file.suffix.lower()) in FORMATS


def read_split(part: Path, classes: tuple[str, ...], size: int | None, count: int | None) -> ImageSet:
    """The images of `part/CLASS` as RGB; `count` of them, drawn class by class, where given.

    Only the images that are drawn are decoded.

    Raises:
        DataError: a class folder is missing or empty, an image is broken or of another size.
    """
    files, labels = list_files(part, classes)
    if count is not None:
        drawn = per_class(labels, count, Generator().manual_seed(0)).tolist()
        files, labels = [files[k] for k in drawn], labels[drawn]
    return ImageSet(read_images(files, size), labels)


def read_images(files: list[Path], size: int | None, grey: bool = False, scale: bool = True) -> Tensor:
    """uint8 (N, C, size, size), C = 3, or 1 for `grey`, on disk where they are many; size: the first image's for None.

    scale: whether images of another size are scaled to it, or refused before they are decoded.
    """
    size = size or read_image(files[0], None).shape[0]
    images = room(len(files), (1 if grey else 3, size, size))

    def read(place: int) -> None:
        images[place] = read_image(files[place], size, grey, scale).transpose(2, 0, 1)

    with ThreadPoolExecutor() as pool:
        list(pool.map(read, range(len(files))))
    return torch.from_numpy(images)


def class_names(part: Path) -> tuple[str, ...]:
    """The class folders of `part`, sorted (as numbers where all are): their order is the label.

    Raises:
        DataError: there is none.
    """
    names = sorted(p.name for p in part.iterdir() if p.is_dir()) if part.is_dir() else []
    if not names:
        raise DataError(f"{part} has no class folder: an image folder is train/CLASS/ and test/CLASS/, or CLASS/ alone")
    return tuple(sorted(names, key=int) if all(name.isdecimal() for name in names) else names)


def list_files(part: Path, classes: tuple[str, ...]) -> tuple[list[Path], Tensor]:
    """Every image file below `part/CLASS`, sorted, and its label."""
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        folder = part / name
        found = sorted(f for f in folder.rglob("*") if is_image(f))
        if not found:
            raise DataError(f"class {name!r} is empty: no image in {folder}")
        files += found
        labels += [label] * len(found)
    return files, torch.tensor(labels)


def read_image(file: Path, size: int | None, grey: bool = False, scale: bool = True) -> np.ndarray:
    """uint8 (size, size, C); other squares are scaled, bilinear, or refused; size: its own for None."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            if not scale and image.size != (size, size):
                raise DataError(f"{file} is {image.size[0]} × {image.size[1]}, not {size} × {size}")
            picture = image.convert("L" if grey else "RGB")
    except DataError:
        raise
    except Exception as error:  # whatever a broken file makes of the reader
        raise DataError(f"{file} is no image that can be read: {str(error)[:160]}") from None
    if picture.size[0] != picture.size[1]:
        raise DataError(f"{file} is {picture.size[0]} × {picture.size[1]}: images must be square")
    if size and picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    return pixels[..., None] if grey else pixels
