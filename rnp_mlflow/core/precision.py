"""How a model's passes are made: in fp32, or in bf16 under autocast, and in the memory layout that is fastest."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rnp_mlflow.core.neurons import light_copy
from rnp_mlflow.errors import ModelError

NOTHING: Mapping[str, Tensor] = {}


def device_of(model: nn.Module) -> torch.device:
    """Where its weights are; the CPU for a model without any."""
    return next((weight.device for weight in model.parameters()), torch.device("cpu"))


def has_bf16(device: torch.device) -> bool:
    """Whether the processor multiplies bfloat16 matrices itself (AMX, AVX-512 BF16; Ampere and later)."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    found = torch.cpu.get_capabilities()
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))


class Forward(Protocol):
    """(images, parameters put in the place of the model's own) → logits, float32."""

    def __call__(self, images: Tensor, scales: Mapping[str, Tensor] = NOTHING, /) -> Tensor: ...


def logits_of(output: Any) -> Tensor:
    """The logits (N, classes) in what a model gave: itself, its `logits`, or the first of a tuple or list.

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
            f"the model answers with {type(output).__name__}{shape}: wanted are logits (N, classes), alone, first of a "
            "tuple, or as `logits` of a dict or object"
        )
    return found


def called(model: nn.Module, images: Tensor, scales: Mapping[str, Tensor]) -> Tensor:
    """The model's logits, with `scales` in the place of its own parameters."""
    return logits_of(functional_call(model, dict(scales), (images,)) if scales else model(images))


@contextmanager
def forwards(model: nn.Module, precision: str) -> Iterator[Forward]:
    """The model as a function, while the context lasts.

    precision: 'fp32', or 'bf16': convolutions in bfloat16, linear layers (so the logits) and the rest in
    float32 (torch.autocast); weights stay float32. Weights and images are channels last where that pays.
    """
    own_linear = linear_in_fp32(model) if precision == "bf16" else nullcontext()
    with own_linear, laid_out(model, precision) as layout:

        def forward(images: Tensor, scales: Mapping[str, Tensor] = NOTHING) -> Tensor:
            with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
                return called(model, images.contiguous(memory_format=layout), scales).float()

        yield forward


@contextmanager
def linear_in_fp32(model: nn.Module) -> Iterator[None]:
    """Linear layers leave autocast: bfloat16 logits of about 10 would be multiples of a sixteenth, and tie."""

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
def laid_out(model: nn.Module, precision: str) -> Iterator[torch.memory_format]:
    """The layout that pays, the weights in it while the context lasts; left alone where they are so already.

    `forwards` does it; who runs many of them does it once around them.
    """
    layout = torch.channels_last if channels_last_pays(model, precision) else torch.contiguous_format
    there = any(p.ndim == 4 and not p.is_contiguous() for p in model.parameters())
    if layout == torch.contiguous_format or there:
        yield layout
        return
    lay_out(model, layout)
    try:
        yield layout
    finally:
        lay_out(model, torch.contiguous_format)


@contextmanager
def frozen(model: nn.Module, precision: str) -> Iterator[nn.Module]:
    """A `light_copy` without gradients that shares the model's weights in the layout that pays, while that lasts."""
    with laid_out(model, precision):
        yield light_copy(model).requires_grad_(False)


def lay_out(model: nn.Module, layout: torch.memory_format) -> None:
    """Weights in that layout; outside inference mode, which would leave tensors that cannot be trained."""
    with torch.inference_mode(False), torch.no_grad():
        model.to(memory_format=layout)


def channels_last_pays(model: nn.Module, precision: str) -> bool:
    """Whether that layout is fast here (on CPUs, where plain tensors are laid anew by every convolution; for bf16
    everywhere), and no layer meets torch's fault with it.

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
