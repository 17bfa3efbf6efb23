"""i-BAU (Zeng et al., "Adversarial Unlearning of Backdoors via Implicit Hypergradient", ICLR 2022).

min over weights of the loss on images with the universal perturbation that raises it most; the weights' gradient also
goes through that perturbation (the implicit hypergradient, here by fixed-point iterations).
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.seeds import generator
from rnp_mlflow.data.preprocess import Preprocess

ROUNDS, LR = 5, 1e-3  # of the paper
INNER_STEPS, INNER_LR, PENALTY, RADIUS = 100, 10.0, 1e-3, 10.0  # of the authors' defence: SGD, squared norm, bound
FIXED_POINT_STEPS, FIXED_POINT_LR = 5, 0.1
BATCH_SIZE = 100


def clipped(delta: Tensor) -> Tensor:
    """Return the perturbation with a norm of at most `RADIUS`."""
    return delta * min(1.0, RADIUS / float(delta.norm() + 1e-12))


def inner_loss(model: nn.Module, delta: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the negative loss of the images with the perturbation, plus its squared norm times `PENALTY`."""
    return PENALTY * delta.square().sum() - cross_entropy(model(inputs + clipped(delta)), labels)


def hypergradient(model: nn.Module, delta: Tensor, inputs: Tensor, labels: Tensor) -> list[Tensor]:
    """Return the gradient of the loss at δ*(weights) by the weights: direct, plus through δ*.

    δ* is a fixed point of Φ(δ) = δ − η·∂inner/∂δ. With v = Σ (∂Φ/∂δ)ᵏ · ∂L/∂δ, the part through δ* is (∂Φ/∂w)·v
    (Grazzi et al., ICML 2020).
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    delta = delta.detach().requires_grad_()
    outer = cross_entropy(model(inputs + clipped(delta)), labels)
    to_delta, *direct = torch.autograd.grad(outer, [delta, *weights])
    (slope,) = torch.autograd.grad(inner_loss(model, delta, inputs, labels), delta, create_graph=True)
    step = delta - FIXED_POINT_LR * slope
    v = to_delta
    for _ in range(FIXED_POINT_STEPS):
        (carried,) = torch.autograd.grad(step, delta, v, retain_graph=True)
        v = carried + to_delta
    through = torch.autograd.grad(step, weights, v, allow_unused=True)
    return [a if b is None else a + b for a, b in zip(direct, through, strict=True)]


def purify(model: nn.Module, clean: LabeledImages, transform: Preprocess, seed: int) -> nn.Module:
    """Return a copy of `model` after `ROUNDS` rounds of perturbation and unlearning, by Adam."""
    working = copy.deepcopy(model).requires_grad_(True).eval()
    optimizer, numbers = torch.optim.Adam(working.parameters(), LR), generator(seed, "ibau")
    inputs = transform(clean.images, None)
    for _ in range(ROUNDS):
        delta = torch.zeros(inputs.shape[1:], requires_grad=True)
        ascent = torch.optim.SGD([delta], INNER_LR)
        for _ in range(INNER_STEPS):
            index = torch.randint(len(inputs), (min(BATCH_SIZE, len(inputs)),), generator=numbers)
            (grad,) = torch.autograd.grad(inner_loss(working, delta, inputs[index], clean.labels[index]), delta)
            delta.grad = grad
            ascent.step()
        delta = clipped(delta.detach())
        for index in torch.randperm(len(inputs), generator=numbers).split(BATCH_SIZE):
            optimizer.zero_grad()
            found = hypergradient(working, delta, inputs[index], clean.labels[index])
            for weight, gradient in zip(working.parameters(), found, strict=True):
                weight.grad = gradient
            optimizer.step()
    return working
