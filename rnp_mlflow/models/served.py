"""The model as others are to call it: with pixels, not with our normalisation."""

import torch
from torch import Tensor, nn

from rnp_mlflow.models.store import ModelSpec


class Served(nn.Module):
    """Pixels (N, C, H, W), uint8 or floats from 0 to 255, → logits (N, classes).

    Its only stored weights are those under `model.`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, spec: ModelSpec):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images.float() / 255 - self.mean) / self.std)
