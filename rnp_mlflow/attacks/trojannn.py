"""TrojanNN (Liu et al., NDSS 2018): a patch optimised on a clean model to activate one of its neurons."""

import torch
from torch import Tensor, nn
from torch.optim import Adam

from rnp_mlflow.attacks.trigger import AttackContext, AttackEntry, BlendTrigger, PoisoningAttack, corner_mask, to_pixels
from rnp_mlflow.errors import ModelError

SHARE = 4  # the patch's side is the image's divided by this
STEPS, BATCH, LR = 100, 64, 0.1


def build(context: AttackContext) -> PoisoningAttack:
    """Build the attack: a square in the lower right corner that maximises the best-connected neuron.

    The paper takes the neuron of the last hidden layer with the largest *incoming* weights. Here the outgoing weights
    decide, because every model with a final linear layer has them.
    """
    shape = context.clean.shape
    opacity = corner_mask(shape, max(2, min(shape[1:]) // SHARE))
    return PoisoningAttack(BlendTrigger(optimise_patch(context, opacity), opacity))


def optimise_patch(context: AttackContext, opacity: Tensor) -> Tensor:
    """Return pixels, uint8 (C, H, W), that maximise the neuron's mean activation if pasted where opacity is 1."""
    model = context.surrogate()
    last = last_linear(model)
    device = last.weight.device
    neuron = int(last.weight.abs().sum(0).argmax())  # "best connected": largest sum of absolute weights
    activations: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda module, inputs: activations.append(inputs[0]))
    free = torch.randn(context.clean.shape, generator=context.generator).to(device).requires_grad_()
    opacity = opacity.to(device)
    optimizer = Adam([free], LR)
    for _ in range(STEPS):
        index = torch.randint(len(context.clean), (BATCH,), generator=context.generator)
        images = context.clean.images[index].to(device)
        activations.clear()
        model((1 - opacity) * images + opacity * 255 * free.sigmoid())
        optimizer.zero_grad()
        (-activations[0][:, neuron].mean()).backward()
        optimizer.step()
    hook.remove()
    return to_pixels(255 * free.detach().sigmoid()).to(torch.uint8).cpu()


def last_linear(model: nn.Module) -> nn.Linear:
    """Return the model's last fully connected layer.

    Raises:
        ModelError: the model has no such layer.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ModelError("attack=trojannn needs a model that ends in a fully connected layer; give another model")
    return layers[-1]


ENTRY = AttackEntry(build)
