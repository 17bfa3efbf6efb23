"""Images as one uint8 tensor with labels, and the digest that identifies them."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from rnp_mlflow.errors import DataError


@dataclass(frozen=True)
class ImageSet:
    """Images, uint8 (N, C, H, W), with labels, int64 (N,), from 0; both on one device.

    Raises:
        DataError: a shape or dtype is wrong, or there are no images.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise DataError(f"images must be uint8 (N, C, H, W), not {self.images.dtype} {tuple(self.images.shape)}")
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64:
            raise DataError(f"{len(self.images)} images need as many int64 labels")
        if not len(self.images):
            raise DataError("the image set is empty: give at least one image")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (C, H, W) of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """Return (images, labels)."""
        return self.images, self.labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor) -> "ImageSet":
        return ImageSet(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> "ImageSet":
        return ImageSet(self.images.to(device), self.labels.to(device))

    def digest(self) -> str:
        """Return the SHA-256 (hex) of shape, pixels and labels."""
        sha = hashlib.sha256(str(tuple(self.images.shape)).encode())
        sha.update(self.images.cpu().contiguous().numpy().data)
        sha.update(self.labels.cpu().contiguous().numpy().data)
        return sha.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """A training and a test set, with what a model needs to know about them.

    test: None if only the defender's clean images exist; they are then `train`. mean, std: per channel, for pixels
    scaled to [0, 1]. flip: whether a mirrored image keeps its label.
    """

    name: str
    train: ImageSet
    test: ImageSet | None
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = True

    def __post_init__(self) -> None:
        if self.test is not None and self.train.shape != self.test.shape:
            raise DataError(f"{self.name}: training images are {self.train.shape}, test images {self.test.shape}")
        for part, images in (("training", self.train), ("test", self.test)):
            if images is None:
                continue
            counts = torch.bincount(images.labels, minlength=len(self.classes))
            if len(counts) > len(self.classes):
                raise DataError(f"{self.name}: a {part} label is above {len(self.classes) - 1}, the last class")
            if not counts.all():
                empty = self.classes[int(counts.argmin())]
                raise DataError(f"{self.name}: class {empty!r} has no {part} image")

    def digest(self) -> str:
        """Return the SHA-256 (hex) of both sets."""
        parts = [self.train.digest(), self.test.digest() if self.test is not None else "no test set"]
        return hashlib.sha256("".join(parts).encode()).hexdigest()
