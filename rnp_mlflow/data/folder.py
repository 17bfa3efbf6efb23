"""An image folder: `train/CLASS/*` and `test/CLASS/*`, or `CLASS/*` alone; PNG, JPEG, WebP, TIFF, BMP, GIF or PPM."""

from pathlib import Path

import torch
from torch import Generator

from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.data.layout import class_names, has_table, is_classes, list_files, list_table, parts
from rnp_mlflow.data.pixels import read_images
from rnp_mlflow.data.subset import per_class

__all__ = ["class_names", "is_classes", "list_files", "read", "read_images"]


def read(
    root: Path,
    size: int | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    order: str = "number",
    grey: bool = False,
) -> tuple[ImageSet, ImageSet | None, tuple[str, ...]]:
    """Training part, test part if there is one, and class names.

    size: see `read_images`; without it the parts must be of one size. train_size, test_size: so many images,
    drawn class by class; only those are decoded. order: see `class_names`. grey: one channel instead of RGB.

    Raises:
        DataError: a class folder is missing or empty, an image is broken or of another size.
    """
    train, test = parts(root)
    classes = class_names(train, order)
    files, labels = _drawn(*list_files(train, classes), train_size)
    images = ImageSet(read_images(files, size, grey), labels)
    if test is None:
        return images, None, classes
    listed = list_table(test, classes) if has_table(test, classes) else list_files(test, classes)
    others, answers = _drawn(*listed, test_size)
    return images, ImageSet(read_images(others, size, grey, like=files[0]), answers), classes


def _drawn(files: list[Path], labels: list[int], count: int | None) -> tuple[list[Path], torch.Tensor]:
    """`count` of the files and their labels, int64, the same ones every time; all of them for None."""
    answers = torch.tensor(labels)
    if count is None:
        return files, answers
    drawn = per_class(answers, count, Generator().manual_seed(0))
    return [files[k] for k in drawn.tolist()], answers[drawn]
