"""BatchNorm statistics of a pruned model, estimated anew from a few clean images.

Pruning shifts what every later layer sees; the stored running statistics then no longer fit
(as in 'BatchNorm calibration' after pruning: Li et al., EagleEye, ECCV 2020).
"""

import torch
from torch import Tensor, nn

from rnp_mlflow.core.evaluate import Transform
from rnp_mlflow.core.neurons import norm_layers


@torch.no_grad()
def reestimate_(model: nn.Module, images: Tensor, transform: Transform, batch_size: int = 512) -> nn.Module:
    """Replace running means and variances, in place, by the plain average over `images`; returns model.

    images: uint8 (N, C, H, W) on the model's device, in batches as equal as can be. Dropout and all
    else stay in eval mode. Weights do not change.
    """
    layers = [layer for layer in norm_layers(model).values() if layer.track_running_stats]
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average
        layer.train()
    for part in images.tensor_split(max(1, -(-len(images) // batch_size))):
        model(transform(part, None))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    return model.eval()
