"""Image folders: `train/CLASS/*` and `test/CLASS/*`, or only `CLASS/*`; PNG, JPEG, WebP, TIFF, BMP, GIF or PPM."""

from pathlib import Path

import torch
from torch import Generator

from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.data.layout import class_names, find_parts, has_table, is_image_folder, list_files, list_table
from rnp_mlflow.data.pixels import read_images
from rnp_mlflow.data.subset import stratified_indices

__all__ = ["class_names", "is_image_folder", "list_files", "read", "read_images"]


def read(
    root: Path,
    size: int | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    *,
    order: str = "number",
    grey: bool = False,
) -> tuple[ImageSet, ImageSet | None, tuple[str, ...]]:
    """Read the training part, the test part (None if there is none) and the class names.

    size: see `read_images`; without it all images must have the same size. train_size, test_size: number of images to
    draw class by class; only those are decoded. order: see `class_names`. grey: one channel instead of RGB.

    Raises:
        DataError: a class folder is missing or empty, or an image is broken or of another size.
    """
    train, test = find_parts(root)
    classes = class_names(train, order)
    files, labels = _draw_subset(*list_files(train, classes), train_size)
    images = ImageSet(read_images(files, size, grey), labels)
    if test is None:
        return images, None, classes
    listed = list_table(test, classes) if has_table(test, classes) else list_files(test, classes)
    test_files, test_labels = _draw_subset(*listed, test_size)
    return images, ImageSet(read_images(test_files, size, grey, like=files[0]), test_labels), classes


def _draw_subset(files: list[Path], labels: list[int], count: int | None) -> tuple[list[Path], torch.Tensor]:
    """Return `count` files, always the same ones, and their labels (int64); all files if `count` is None."""
    all_labels = torch.tensor(labels)
    if count is None:
        return files, all_labels
    drawn = stratified_indices(all_labels, count, Generator().manual_seed(0))
    return [files[k] for k in drawn.tolist()], all_labels[drawn]
