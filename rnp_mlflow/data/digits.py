"""The embedded default: scikit-learn's handwritten digits, which need no download."""

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from rnp_mlflow.data.imageset import ImageSet

SIZE = 16
TEST_IMAGES = 500
COPIES = 3
CLASSES = tuple(str(digit) for digit in range(10))


def read() -> tuple[ImageSet, ImageSet]:
    """Read 1,797 real digits (E. Alpaydin & C. Kaynak, UCI, 1998), enlarged from 8 × 8 to 16 × 16, grey.

    A fixed random choice of 500 digits is the test set. The other 1,297 are the training set, each with three fixed
    copies that are slightly rotated, scaled and shifted: 5,188 images, so that a tenth of them is about the 500 clean
    images of RNP's paper.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    small = torch.from_numpy(raw.images).float()[:, None] * (255 / 16)  # (1797, 1, 8, 8), 0 to 255
    large = interpolate(small, SIZE, mode="bilinear", align_corners=False)
    labels, generator = torch.from_numpy(raw.target).long(), Generator().manual_seed(0)
    order = torch.randperm(len(labels), generator=generator)
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    versions = torch.cat([large[train], *(jitter(large[train], generator) for _ in range(COPIES))])
    training = ImageSet(to_uint8(versions), labels[train].repeat(COPIES + 1))
    return training, ImageSet(to_uint8(large[test]), labels[test])


def to_uint8(images: Tensor) -> Tensor:
    return images.round().clamp(0, 255).to(torch.uint8)


def jitter(images: Tensor, generator: Generator) -> Tensor:
    """Rotate each image by up to 12°, scale it by up to 10 % and shift it by up to 1.5 pixels."""

    def draw(limit: float) -> Tensor:
        return (torch.rand(len(images), generator=generator) * 2 - 1) * limit

    angle, scale, shift = draw(math.radians(12)), 1 + draw(0.1), 3 / SIZE  # in grid units; a pixel is 2 / SIZE
    rows = [
        torch.stack([scale * angle.cos(), -scale * angle.sin(), draw(shift)], 1),
        torch.stack([scale * angle.sin(), scale * angle.cos(), draw(shift)], 1),
    ]
    grid = affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return grid_sample(images, grid, align_corners=False)
