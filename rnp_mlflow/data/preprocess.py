"""Normalisation and augmentation of whole batches, on the device of the images."""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

CROP_SHARE = 8  # random crops shift by up to an eighth of the side: 4 of 32 pixels, as in RNP


@dataclass(frozen=True)
class Preprocess:
    """Map uint8 (N, C, H, W) to normalised float32; a `core.evaluate.Transform`.

    mean, std: per channel, for pixels scaled to [0, 1]. crop: zero padding in pixels before a random crop back to
    size. flip: mirror at random. Crop and flip apply only if a generator is given. Float images are not normalised:
    they must already be what the model expects.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: int = 0
    flip: bool = False

    @classmethod
    def for_image_size(cls, side: int, mean: tuple[float, ...], std: tuple[float, ...], flip: bool) -> "Preprocess":
        """Return the preprocessing for images whose shorter side is `side`, with random crops as large as RNP's."""
        return cls(mean, std, side // CROP_SHARE, flip)

    def __call__(self, images: Tensor, generator: Generator | None) -> Tensor:
        if generator is not None:
            images = self.augment(images, generator)
        if images.is_floating_point():
            return images
        mean, std = self._statistics(images.device)
        return (images.float() / 255 - mean) / std

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return mean, std

    def pixels(self, inputs: Tensor) -> Tensor:
        """Undo the normalisation: return the uint8 images that correspond to inputs (N, C, H, W)."""
        mean, std = self._statistics(inputs.device)
        return ((inputs * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def augment(self, images: Tensor, generator: Generator) -> Tensor:
        """Crop and mirror each image at random, independently; `generator` is a CPU generator."""
        count, channels, height, width = images.shape
        if self.crop:
            shifts = torch.randint(2 * self.crop + 1, (2, count), generator=generator)
            rows, cols = shifts.to(images.device)
            padded = pad(images, (self.crop,) * 4)
            # Index all four dimensions, so that the result is plain NCHW. A permuted tensor would select the
            # channels-last kernels. Those of torch 2.15 (CPU, AVX-512) write out of bounds in a strided 1 × 1
            # convolution with fewer than 16 input channels: heap corruption, observed with width=4 and 8.
            row = rows[:, None, None, None] + torch.arange(height, device=images.device)[:, None]
            col = cols[:, None, None, None] + torch.arange(width, device=images.device)
            picture = torch.arange(count, device=images.device)[:, None, None, None]
            channel = torch.arange(channels, device=images.device)[:, None, None]
            images = padded[picture, channel, row, col]
        if self.flip:
            mirrored = (torch.rand(count, generator=generator) < 0.5).to(images.device)
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return images

    def with_augmentation(self, wanted: bool) -> "Preprocess":
        """Return self if augmentation is wanted, else a copy that never crops or mirrors."""
        return self if wanted else replace(self, crop=0, flip=False)

    def random_crops(self, images: Tensor, labels: Tensor, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Return `count` random crops of each image, as in training, and their labels; 0: the images unchanged.

        Accuracy: the suspect has often memorised the defender's images, so it fails on them later than on new images.
        Crops behave more like new images. BatchNorm statistics: those of training come from crops as well, and
        statistics of the plain images cost ACC (6.8 points on a quarter-width PreActResNet18, CIFAR-10).
        """
        if not count:
            return images, labels
        return torch.cat([self.augment(images, generator) for _ in range(count)]), labels.repeat(count)
