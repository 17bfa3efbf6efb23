"""BatchNorm statistics of a pruned model, corrected with a few clean images.

Pruning shifts what every later layer sees; the stored running statistics then no longer fit
(as in 'BatchNorm calibration' after pruning: Li et al., EagleEye, ECCV 2020).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rnp_mlflow.core.evaluate import Transform
from rnp_mlflow.core.params import Precision
from rnp_mlflow.core.precision import forward_fn, frozen_copy
from rnp_mlflow.core.units import norm_layers

PIXELS = 64 * 32 * 32  # of images at once; of more, activations fall out of the cache and memory grows
Statistics = list[tuple[Tensor, Tensor]]  # a layer's running mean and variance, (channels,) each


def layers_with_running_stats(model: nn.Module) -> list[_BatchNorm]:
    """Return the layers that keep running statistics."""
    return [layer for layer in norm_layers(model).values() if layer.track_running_stats]


@torch.no_grad()
def reestimate_(model: nn.Module, images: Tensor, transform: Transform, precision: Precision = "fp32") -> nn.Module:
    """Replace running means and variances in place by the plain average over `images`; return the model.

    images: uint8 (N, C, H, W) on the model's device, in batches as equal as possible of about `PIXELS` pixels, at
    least 32 images. All other layers stay in eval mode. Weights do not change.
    """
    layers = layers_with_running_stats(model)
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average
        layer.train()
    batch_size = max(32, PIXELS // (images.shape[2] * images.shape[3]))
    with forward_fn(model, precision) as forward:
        for part in images.tensor_split(max(1, -(-len(images) // batch_size))):
            forward(transform(part, None))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    return model.eval()


def statistics(model: nn.Module) -> Statistics:
    """Return a copy of the running mean and variance of every layer that has them."""
    return [(x.running_mean.clone(), x.running_var.clone()) for x in layers_with_running_stats(model)]  # type: ignore[union-attr]


@torch.no_grad()
def bn_shift_fn(
    model: nn.Module, images: Tensor, transform: Transform, precision: Precision = "fp32"
) -> Callable[[nn.Module], nn.Module]:
    """Return a function that shifts a pruned copy's statistics by as much as pruning shifted them on `images`.

    With (m, v) estimated on the images for the unpruned model, (m', v') for the pruned one, and (M, V)
    stored, the pruned model gets variance V · v'/v and mean m' + (M - m) · √(v'/v): the stored mean stays
    as many standard deviations from the estimated one as it was. The error of a few
    hundred images is in both estimates and cancels; a model that is not pruned keeps its own statistics.

    images: uint8 (N, C, H, W) on the model's device; a few hundred clean ones.
    """
    stored = statistics(model)
    with frozen_copy(model, precision) as working:
        before = statistics(reestimate_(working, images, transform, precision))

    @torch.no_grad()
    def shift(pruned: nn.Module) -> nn.Module:
        after = statistics(reestimate_(pruned, images, transform, precision))
        for layer, (mean, var), (m, v), (m_new, v_new) in zip(
            layers_with_running_stats(pruned), stored, before, after, strict=True
        ):
            ratio = torch.where(v > 0, v_new / v, 1.0)
            layer.running_mean.copy_(m_new + (mean - m) * ratio.sqrt())  # type: ignore[union-attr]
            layer.running_var.copy_(var * ratio)  # type: ignore[union-attr]
        return pruned

    return shift
