"""TrojanNN (Liu et al., NDSS 2018): a patch optimised on a clean model to excite one of its neurons."""

import torch
from torch import Tensor, nn
from torch.optim import Adam

from rnp_mlflow.attacks.trigger import Material, Planted, Stamp, corner, pixels
from rnp_mlflow.errors import ModelError

SHARE = 4  # the patch's side is the image's divided by this
STEPS, BATCH, LR = 100, 64, 0.1


def make(material: Material) -> Planted:
    """A square in the lower right corner that maximises the best-connected neuron of the last hidden layer.

    The paper takes the neuron with the largest weights *into* it; here they are those out of it, which any model
    with a linear layer at its end has.
    """
    shape = material.clean.shape
    opacity = corner(shape, max(2, shape[1] // SHARE))
    return Planted(Stamp(excite(material, opacity), opacity))


def excite(material: Material, opacity: Tensor) -> Tensor:
    """Pixels, uint8 (C, H, W), that maximise the neuron's mean activation on clean images where opacity is 1."""
    model = material.surrogate()
    last = last_linear(model)
    device = last.weight.device
    neuron = int(last.weight.abs().sum(0).argmax())  # "best connected": largest sum of absolute weights
    seen: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    free = torch.randn(material.clean.shape, generator=material.generator).to(device).requires_grad_()
    opacity = opacity.to(device)
    optimizer = Adam([free], LR)
    for _ in range(STEPS):
        index = torch.randint(len(material.clean), (BATCH,), generator=material.generator)
        images = material.clean.images[index].to(device)
        seen.clear()
        model((1 - opacity) * images + opacity * 255 * free.sigmoid())
        optimizer.zero_grad()
        (-seen[0][:, neuron].mean()).backward()
        optimizer.step()
    hook.remove()
    return pixels(255 * free.detach().sigmoid()).to(torch.uint8).cpu()


def last_linear(model: nn.Module) -> nn.Linear:
    """The classifier's last fully connected layer.

    Raises:
        ModelError: it has none.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ModelError("trojannn needs a model with a fully connected layer at its end")
    return layers[-1]
