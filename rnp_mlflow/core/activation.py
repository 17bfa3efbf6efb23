"""What the trigger changes in each neuron."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rnp_mlflow.core.evaluate import Transform, batch_for
from rnp_mlflow.core.flow import CHANNELS_LAST, LayerWatch
from rnp_mlflow.core.precision import device_of
from rnp_mlflow.core.units import UnitLayer, attention_in_full, norm_layers, units_of


@torch.inference_mode()
def trigger_change(model: nn.Module, clean: Tensor, triggered: Tensor, transform: Transform) -> dict[str, Tensor]:
    """Return layer → (neurons,): the mean over images and places of |activation with the trigger - without|.

    clean, triggered: uint8 (N, C, H, W), the same images without and with the trigger. Activations are what a norm, a
    convolution or a linear layer gives, and for a head what it hands to its projection, in eval mode, which is left on.
    (Compare the trigger-activated change of Zheng et al., ECCV 2022.)
    """
    device = device_of(model.eval())
    size = max(1, batch_for(clean, device) // 2)
    batches = list(zip(clean.split(size), triggered.split(size), strict=True))
    if layers := norm_layers(model):
        total = {name: torch.zeros(layer.num_features, dtype=torch.float64) for name, layer in layers.items()}
        handles = [layer.register_forward_hook(adder(total, name)) for name, layer in layers.items()]
        try:
            for pair in batches:
                model(transform(torch.cat([part.to(device) for part in pair]), None))
        finally:
            for handle in handles:
                handle.remove()
    else:
        units = units_of(model)
        total = {name: torch.zeros(layer.count, dtype=torch.float64) for name, layer in units.items()}
        for pair in batches:
            without, with_trigger = (activations(model, units, transform(part.to(device), None)) for part in pair)
            for (name, before), (_, after) in zip(without, with_trigger, strict=True):
                total[name] += len(pair[0]) * per_neuron((after - before).abs(), units[name])
    return {name: (values / len(clean)).float() for name, values in total.items()}


def adder(total: dict[str, Tensor], name: str) -> Callable[[nn.Module, object, Tensor], None]:
    """Return a forward hook that adds the change in a batch: images with the trigger after those without."""

    def add(layer: nn.Module, inputs: object, output: Tensor) -> None:
        without, with_trigger = output.chunk(2)
        apart = (with_trigger - without).abs().transpose(0, 1).flatten(2).mean(2)
        total[name] += apart.double().sum(1).cpu()

    return add


def activations(model: nn.Module, units: dict[str, UnitLayer], inputs: Tensor) -> list[tuple[str, Tensor]]:
    """Return (layer, activations with channels first) of every call in one forward pass, in order."""
    names = {id(model.get_parameter(layer.parts[0].parameter)): name for name, layer in units.items()}
    found: list[tuple[str, Tensor]] = []

    def keep(name: str, operation: str, taken: Tensor, given: Tensor) -> None:
        values = given if units[name].parts[0].owner is None else taken
        found.append((name, values.movedim(-1 if operation in CHANNELS_LAST else 1, 0)))

    with attention_in_full(), LayerWatch(names, keep):
        model(inputs)
    return found


def per_neuron(values: Tensor, layer: UnitLayer) -> Tensor:
    """Return the mean of values (channels, …) for each neuron, float64 on the CPU."""
    means = values.flatten(1).double().mean(1).cpu()
    owner = layer.parts[0].owner
    if owner is None:
        return means
    heads = torch.tensor(owner)
    return torch.stack([means[heads == k].mean() for k in range(layer.count)])
