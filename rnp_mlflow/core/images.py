"""Clean images and their labels, as the method takes them."""

from typing import NamedTuple

from torch import Tensor


class LabeledImages(NamedTuple):
    """images: (N, C, H, W), uint8 pixels or floats. labels: int64 (N,). Both on the model's device."""

    images: Tensor
    labels: Tensor

    def select(self, index: Tensor) -> "LabeledImages":
        """Return the images at these positions (int64), or those for which a mask (bool, (N,)) is true."""
        return LabeledImages(self.images[index], self.labels[index])
