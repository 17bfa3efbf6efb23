"""Number formats of training: fp32, or bf16 under autocast in the layout that is fastest with it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rnp_mlflow.core.evaluate import logits_of

NOTHING: Mapping[str, Tensor] = {}


class Forward(Protocol):
    """(images, parameters put in the place of the model's own) → logits, float32."""

    def __call__(self, images: Tensor, scales: Mapping[str, Tensor] = NOTHING, /) -> Tensor: ...


def called(model: nn.Module, images: Tensor, scales: Mapping[str, Tensor]) -> Tensor:
    """The model's logits, with `scales` in the place of its own parameters."""
    return logits_of(functional_call(model, dict(scales), (images,)) if scales else model(images))


@contextmanager
def forwards(model: nn.Module, precision: str) -> Iterator[Forward]:
    """The model as a function, for a training loop, while the context lasts.

    precision: 'fp32', or 'bf16': convolutions and matrix products in bfloat16, the rest in float32
    (torch.autocast), weights and images channels last where that is safe. Weights stay float32.
    """
    if precision == "fp32":
        yield lambda images, scales=NOTHING: called(model, images, scales)
        return
    last = channels_last_is_safe(model)
    if last:
        model.to(memory_format=torch.channels_last)

    def forward(images: Tensor, scales: Mapping[str, Tensor] = NOTHING) -> Tensor:
        if last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16):
            return called(model, images, scales).float()

    try:
        yield forward
    finally:
        model.to(memory_format=torch.contiguous_format)


def channels_last_is_safe(model: nn.Module) -> bool:
    """Whether no layer meets torch's fault with that layout.

    torch 2.15's CPU kernels (AVX-512) write out of bounds in the backward pass of a strided 1 × 1
    convolution of under 16 input channels.
    """
    return not any(
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        and layer.in_channels < 16
        for layer in model.modules()
    )
