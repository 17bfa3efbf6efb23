"""Which neurons a model has, and how a mask is applied to them without changing the model.

A *neuron* is one output channel of a normalisation layer with a scale γ (Li et al., ICML 2023,
section 3). A *mask* maps each layer's module path to a float tensor of shape (channels,) with
values in [0, 1]; layers stand in `state_dict` order, and every function here keeps that order.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rnp_mlflow.errors import MaskError, ModelError

Mask = dict[str, Tensor]


def norm_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers of `model` that carry a scale, by module path, in `state_dict` order.

    Raises:
        ModelError: there is none, so RNP has nothing to mask.
    """
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm) and module.affine
    }
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no BatchNorm layer with a scale, so it has no neurons to "
            "prune; RNP needs one (vgg19_bn instead of vgg19, for example)"
        )
    return layers


def is_finite(model: nn.Module) -> bool:
    """Return whether every weight and statistic of `model` is a finite number."""
    numbers = (value for value in model.state_dict().values() if value.is_floating_point())
    return all(bool(value.isfinite().all()) for value in numbers)


def copy_sharing_weights(model: nn.Module) -> nn.Module:
    """Return a copy with BatchNorm layers and buffers of its own; it shares all other weights with `model`.

    The shared weights lie in the same memory: a change to one model's changes both.
    """
    own = {id(p) for part in model.modules() if isinstance(part, _BatchNorm) for p in part.parameters()}
    shared = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters() if id(p) not in own}
    return copy.deepcopy(model, shared)


def ones_mask(model: nn.Module) -> Mask:
    """Return a mask that changes nothing: 1 for every neuron of `model`, on the layers' own device."""
    return {name: torch.ones_like(layer.weight.detach()) for name, layer in norm_layers(model).items()}


def masked_scales(model: nn.Module, mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return parameters for `torch.func.functional_call`: each layer's γ times its mask; β is untouched."""
    return {f"{name}.weight": layer.weight * mask[name] for name, layer in norm_layers(model).items()}


def flatten(mask: Mapping[str, Tensor]) -> Tensor:
    """Return all values of a mask as one CPU vector, shape (neurons,), in layer order, then channel."""
    return torch.cat([values.detach().cpu() for values in mask.values()])


def check_mask(model: nn.Module, mask: Mapping[str, Tensor]) -> None:
    """Check that a mask fits the model.

    Raises:
        MaskError: layers or channel counts differ, or a value is NaN or outside [0, 1].
    """
    layers = norm_layers(model)
    missing = [name for name in layers if name not in mask]
    foreign = [name for name in mask if name not in layers]
    if missing or foreign:
        fault = f"lacks layer {missing[0]}" if missing else f"names layer {foreign[0]}"
        raise MaskError(f"the mask is not this model's: it {fault} ({len(layers)} layers expected)")
    for name, layer in layers.items():
        values = mask[name]
        if values.shape != layer.weight.shape:
            raise MaskError(
                f"the mask is not this model's: layer {name} has {layer.weight.numel()} neurons, "
                f"the mask {values.numel()}"
            )
        if not bool(((values >= 0) & (values <= 1)).all()):  # False for NaN too
            raise MaskError(f"the mask has a value that is NaN or outside [0, 1] in layer {name}")
