"""Label-consistent (Turner, Tsipras & Madry, 2019, arXiv 1912.02771): patched images of the target class that
were first made hard to recognise, so that the patch is what is learnt; clean-label."""

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from rnp_mlflow.attacks.trigger import Material, Planted, Stamp, pixels

EPSILON, STEPS = 16.0, 10  # bound of the perturbation in pixel values (ℓ∞), steps of PGD
SIDE = 3


def corners(shape: tuple[int, int, int]) -> Stamp:
    """A 3 × 3 chessboard, white first, in each of the four corners (the paper's section 4.4)."""
    _, height, width = shape
    board = (torch.arange(SIDE)[:, None] + torch.arange(SIDE)) % 2 == 0
    pattern = torch.zeros(shape, dtype=torch.uint8)
    opacity = torch.zeros(1, height, width)
    for rows in (slice(0, SIDE), slice(height - SIDE, height)):
        for columns in (slice(0, SIDE), slice(width - SIDE, width)):
            pattern[:, rows, columns] = board * 255
            opacity[:, rows, columns] = 1
    return Stamp(pattern, opacity)


def perturbed(model: nn.Module, images: Tensor, label: int, generator: Generator, batch_size: int = 256) -> Tensor:
    """Projected gradient ascent on the loss of `label` (Madry et al., 2018), from a random start.

    images: uint8 (N, C, H, W), all of class `label`. model: float pixels in, logits out.
    """
    device = next(model.parameters()).device
    done = []
    for part in images.split(batch_size):
        clean = part.float().to(device)
        noise = (torch.rand(part.shape, generator=generator).to(device) * 2 - 1) * EPSILON
        labels = torch.full((len(part),), label, device=device)
        for _ in range(STEPS):
            noise.requires_grad_()
            loss = cross_entropy(model((clean + noise).clamp(0, 255)), labels)
            (slope,) = torch.autograd.grad(loss, noise)
            noise = (noise.detach() + 2.5 * EPSILON / STEPS * slope.sign()).clamp(-EPSILON, EPSILON)
        done.append(pixels(clean + noise).to(images.dtype).cpu())
    return torch.cat(done)


def make(material: Material) -> Planted:
    """Training images are perturbed against the surrogate, then patched; test images are patched."""
    stamp = corners(material.clean.shape)

    def poison(images: Tensor, generator: Generator) -> Tensor:
        return stamp(perturbed(material.surrogate(), images, material.target, generator))

    return Planted(stamp, poison)
