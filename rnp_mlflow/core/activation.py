"""What the trigger changes in each neuron."""

from typing import Any

import torch
from torch import Tensor, nn

from rnp_mlflow.core.evaluate import Transform, batch_for
from rnp_mlflow.core.precision import device_of
from rnp_mlflow.core.units import norm_layers


@torch.inference_mode()
def trigger_change(model: nn.Module, clean: Tensor, triggered: Tensor, transform: Transform) -> dict[str, Tensor]:
    """Return layer → (channels,): the mean over images and places of |activation with the trigger - without|.

    clean, triggered: uint8 (N, C, H, W), the same images without and with the trigger. Activations are the BatchNorm
    layers' outputs, in eval mode, which is left on. (Compare the trigger-activated change of Zheng et al., ECCV 2022.)
    """
    layers, device = norm_layers(model.eval()), device_of(model)
    total = {name: torch.zeros(layer.num_features, dtype=torch.float64) for name, layer in layers.items()}

    def adder(name: str) -> Any:
        def add(layer: nn.Module, inputs: object, output: Tensor) -> None:
            without, with_trigger = output.chunk(2)
            apart = (with_trigger - without).abs().transpose(0, 1).flatten(2).mean(2)
            total[name] += apart.double().sum(1).cpu()

        return add

    handles = [layer.register_forward_hook(adder(name)) for name, layer in layers.items()]
    try:
        size = max(1, batch_for(clean, device) // 2)
        for pair in zip(clean.split(size), triggered.split(size), strict=True):
            model(transform(torch.cat([part.to(device) for part in pair]), None))
    finally:
        for handle in handles:
            handle.remove()
    return {name: (values / len(clean)).float() for name, values in total.items()}
