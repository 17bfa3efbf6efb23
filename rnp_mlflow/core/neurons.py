"""How a mask is applied to a model's neurons (`core.units`) without changing the model.

A *mask* maps each layer's module path to a float tensor of shape (neurons,) with values in [0, 1]; layers stand in
`state_dict` order, and every function here keeps that order.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rnp_mlflow.core.units import units_of
from rnp_mlflow.errors import MaskError, ModelError

Mask = dict[str, Tensor]


def is_finite(model: nn.Module) -> bool:
    """Return whether every weight and statistic of `model` is a finite number."""
    numbers = (value for value in model.state_dict().values() if value.is_floating_point())
    return all(bool(value.isfinite().all()) for value in numbers)


def copy_sharing_weights(model: nn.Module) -> nn.Module:
    """Return a copy with buffers, and all parameters that a mask scales, of its own; it shares the others with `model`.

    The shared weights lie in the same memory: a change to one model's changes both.
    """
    own = {id(p) for part in model.modules() if isinstance(part, _BatchNorm) for p in part.parameters()}
    own |= {id(model.get_parameter(name)) for name in scaled_parameters(model)}
    shared = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters() if id(p) not in own}
    return copy.deepcopy(model, shared)


def scaled_parameters(model: nn.Module) -> list[str]:
    """Return the names of the parameters that a mask scales; none if the model's neurons are not known."""
    try:
        units = units_of(model)
    except ModelError:
        return []
    return list(dict.fromkeys(part.parameter for layer in units.values() for part in layer.parts))


def ones_mask(model: nn.Module) -> Mask:
    """Return a mask that changes nothing: 1 for every neuron of `model`, on the layers' own device."""
    return {
        name: torch.ones(layer.count, device=model.get_parameter(layer.parts[0].parameter).device)
        for name, layer in units_of(model).items()
    }


def masked_parameters(model: nn.Module, mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return parameters for `torch.func.functional_call`: each that belongs to neurons times their mask."""
    found: dict[str, Tensor] = {}
    for name, layer in units_of(model).items():
        for part in layer.parts:
            plain = found.get(part.parameter)
            plain = model.get_parameter(part.parameter) if plain is None else plain
            found[part.parameter] = plain * part.factor(mask[name], plain.ndim)
    return found


def flatten(mask: Mapping[str, Tensor]) -> Tensor:
    """Return all values of a mask as one CPU vector, shape (neurons,), in layer order, then channel."""
    return torch.cat([values.detach().cpu() for values in mask.values()])


def comparable(model: nn.Module, mask: Mapping[str, Tensor]) -> Mask:
    """Return the mask with values that mean the same for every kind of neuron, and for any number of them.

    A value v says that a share v³ of the neurons of its kind have a value as low: a scale, a channel and a head gain so
    differently in recovery that their values cannot be ranked as they are (Isomorphic Pruning, Fang et al., ECCV 2024,
    has the same reason). The cube spreads the lowest values, where backdoors are, over a sweep: 0.1 is 1 in 1,000.
    """
    units = units_of(model)
    found: Mask = {}
    for kind in sorted({layer.kind for layer in units.values()}):
        own = {name: mask[name] for name, layer in units.items() if layer.kind == kind}
        values = torch.cat(list(own.values()))
        lower = torch.searchsorted(values.sort().values, values, right=True)
        shares = (lower.double() / len(values)).pow(1 / 3).float()
        found |= zip(own, shares.split([len(part) for part in own.values()]), strict=True)
    return {name: found[name] for name in units}


def check_mask(model: nn.Module, mask: Mapping[str, Tensor]) -> None:
    """Check that a mask fits the model.

    Raises:
        MaskError: layers or channel counts differ, or a value is NaN or outside [0, 1].
    """
    layers = units_of(model)
    missing = [name for name in layers if name not in mask]
    foreign = [name for name in mask if name not in layers]
    if missing or foreign:
        fault = f"lacks layer {missing[0]}" if missing else f"names layer {foreign[0]}"
        raise MaskError(f"the mask is not this model's: it {fault} ({len(layers)} layers expected)")
    for name, layer in layers.items():
        values = mask[name]
        if values.shape != (layer.count,):
            raise MaskError(
                f"the mask is not this model's: layer {name} has {layer.count} neurons, the mask {values.numel()}"
            )
        if not bool(((values >= 0) & (values <= 1)).all()):  # False for NaN too
            raise MaskError(f"the mask has a value that is NaN or outside [0, 1] in layer {name}")
