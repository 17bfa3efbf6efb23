"""Label-consistent attack (Turner, Tsipras & Madry, 2019, arXiv 1912.02771); clean-label.

Images of the target class are perturbed so that they are hard to recognise, and then patched: the model learns the
patch instead.
"""

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from rnp_mlflow.attacks.trigger import AttackContext, AttackEntry, BlendTrigger, PoisoningAttack, to_pixels

EPSILON, STEPS = 16.0, 10  # bound of the perturbation in pixel values (ℓ∞), steps of PGD
SIDE = 3


def four_corners(shape: tuple[int, int, int]) -> BlendTrigger:
    """Return a 3 × 3 chessboard, white first, in each of the four corners (the paper's section 4.4)."""
    _, height, width = shape
    board = (torch.arange(SIDE)[:, None] + torch.arange(SIDE)) % 2 == 0
    pattern = torch.zeros(shape, dtype=torch.uint8)
    opacity = torch.zeros(1, height, width)
    for rows in (slice(0, SIDE), slice(height - SIDE, height)):
        for columns in (slice(0, SIDE), slice(width - SIDE, width)):
            pattern[:, rows, columns] = board * 255
            opacity[:, rows, columns] = 1
    return BlendTrigger(pattern, opacity)


def perturb(model: nn.Module, images: Tensor, label: int, generator: Generator, batch_size: int = 256) -> Tensor:
    """Ascend the loss of `label` by projected gradient steps (Madry et al., 2018) from a random start.

    images: uint8 (N, C, H, W), all of class `label`. model: takes float pixels, returns logits.
    """
    device = next(model.parameters()).device
    batches_done = []
    for part in images.split(batch_size):
        clean = part.float().to(device)
        noise = (torch.rand(part.shape, generator=generator).to(device) * 2 - 1) * EPSILON
        labels = torch.full((len(part),), label, device=device)
        for _ in range(STEPS):
            noise.requires_grad_()
            loss = cross_entropy(model((clean + noise).clamp(0, 255)), labels)
            (grad,) = torch.autograd.grad(loss, noise)
            noise = (noise.detach() + 2.5 * EPSILON / STEPS * grad.sign()).clamp(-EPSILON, EPSILON)
        batches_done.append(to_pixels(clean + noise).to(images.dtype).cpu())
    return torch.cat(batches_done)


def build(context: AttackContext) -> PoisoningAttack:
    """Build the attack: training images are perturbed against the surrogate and patched, test images only patched."""
    trigger = four_corners(context.clean.shape)

    def poison(images: Tensor, generator: Generator) -> Tensor:
        return trigger(perturb(context.surrogate(), images, context.target, generator))

    return PoisoningAttack(trigger, poison)


ENTRY = AttackEntry(build, clean_label=True)
