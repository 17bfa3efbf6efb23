"""A model that takes pixels and normalises them itself, for use outside this project."""

import torch
from torch import Tensor, nn

from rnp_mlflow.models.store import ModelSpec


class PixelInputModel(nn.Module):
    """Map pixels (N, C, H, W), uint8 or float from 0 to 255, to logits (N, classes).

    The state dict contains only keys below `model.`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, spec: ModelSpec):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model((images.float() / 255 - self.mean) / self.std)
        return logits
