"""How a model is run: in fp32, or in bf16 under autocast, and in the fastest memory layout."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rnp_mlflow.core.neurons import copy_sharing_weights
from rnp_mlflow.core.params import Precision
from rnp_mlflow.errors import ModelError

NOTHING: Mapping[str, Tensor] = {}


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's weights; the CPU if it has none."""
    return next((weight.device for weight in model.parameters()), torch.device("cpu"))


def has_bf16(device: torch.device) -> bool:
    """Return whether the processor has bfloat16 matrix instructions (AMX, AVX-512 BF16; Ampere and later)."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            supported: bool = torch.cuda.is_bf16_supported(including_emulation=False)
            return supported
    if device.type != "cpu":
        return False
    found = torch.cpu.get_capabilities()
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))


class Forward(Protocol):
    """(images, parameters in place of the model's own) → logits, float32."""

    def __call__(self, images: Tensor, scales: Mapping[str, Tensor] = NOTHING, /) -> Tensor: ...


def logits_of(output: Any) -> Tensor:
    """Extract the logits (N, classes) from a model's output: itself, its `logits`, or the first of a tuple or list.

    (torchvision's googlenet and inception_v3 in training mode, Hugging Face's classifiers, models with features.)

    Raises:
        ModelError: it is anything else.
    """
    found = output
    if not isinstance(output, Tensor):
        if hasattr(output, "logits"):
            found = output.logits
        elif isinstance(output, Mapping):
            found = output.get("logits")
        elif isinstance(output, tuple | list):
            found = output[0] if output else None
    if not isinstance(found, Tensor) or found.ndim != 2:
        shape = f" of shape {tuple(found.shape)}" if isinstance(found, Tensor) else ""
        raise ModelError(
            f"the model returns {type(output).__name__}{shape}; expected logits (N, classes), alone, first of a "
            "tuple, or as `logits` of a dict or object"
        )
    return found


def functional_logits(model: nn.Module, images: Tensor, scales: Mapping[str, Tensor]) -> Tensor:
    """Return the model's logits, with `scales` in place of its own parameters."""
    return logits_of(functional_call(model, dict(scales), (images,)) if scales else model(images))


@contextmanager
def forward_fn(model: nn.Module, precision: Precision) -> Iterator[Forward]:
    """Yield the model as a function that is valid inside the context.

    precision: bf16 runs convolutions in bfloat16, linear layers (so the logits) and the rest in float32
    (torch.autocast); fp32 and auto run all in float32. Weights stay float32. Weights and images are channels-last if
    that is faster (`prefer_channels_last`).
    """
    own_linear = linear_in_fp32(model) if precision == "bf16" else nullcontext()
    with own_linear, memory_format(model, precision) as layout:

        def forward(images: Tensor, scales: Mapping[str, Tensor] = NOTHING) -> Tensor:
            with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
                return functional_logits(model, images.contiguous(memory_format=layout), scales).float()

        yield forward


@contextmanager
def linear_in_fp32(model: nn.Module) -> Iterator[None]:
    """Run linear layers outside autocast: bfloat16 logits of about 10 would be multiples of a sixteenth, and tie."""

    def own(layer: nn.Linear) -> Any:
        def forward(inputs: Tensor) -> Tensor:
            with torch.autocast(inputs.device.type, enabled=False):
                return nn.Linear.forward(layer, inputs.float())

        return forward

    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and "forward" not in vars(layer)]
    for layer in layers:
        layer.forward = own(layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@contextmanager
def memory_format(model: nn.Module, precision: Precision) -> Iterator[torch.memory_format]:
    """Put the weights into the faster memory format inside the context, unless they already are in it.

    `forward_fn` does this; a caller that needs it many times enters this context once around them.
    """
    layout = torch.channels_last if prefer_channels_last(model, precision) else torch.contiguous_format
    there = any(p.ndim == 4 and not p.is_contiguous() for p in model.parameters())
    if layout == torch.contiguous_format or there:
        yield layout
        return
    to_memory_format(model, layout)
    try:
        yield layout
    finally:
        to_memory_format(model, torch.contiguous_format)


@contextmanager
def frozen_copy(model: nn.Module, precision: Precision) -> Iterator[nn.Module]:
    """Yield a `copy_sharing_weights` without gradients, its weights in the faster memory format inside the context."""
    with memory_format(model, precision):
        yield copy_sharing_weights(model).requires_grad_(False)


def to_memory_format(model: nn.Module, layout: torch.memory_format) -> None:
    """Convert the weights outside inference mode, which would leave tensors that cannot be trained."""
    with torch.inference_mode(False), torch.no_grad():
        model.to(memory_format=layout)


def prefer_channels_last(model: nn.Module, precision: Precision) -> bool:
    """Return whether channels-last is faster here and safe.

    It is faster on CPUs, where every convolution reorders contiguous tensors each time, and for bf16 everywhere.

    torch 2.15's CPU kernels (AVX-512) write out of bounds in the backward pass of a strided 1 × 1
    convolution of under 16 input channels.
    """
    return (device_of(model).type == "cpu" or precision == "bf16") and not any(
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        and layer.in_channels < 16
        for layer in model.modules()
    )
