"""A stand-in for the unknown trigger: the smallest change, the same for all images, that leads to one class.

Where a backdoor is a shortcut to that class, such a change takes it (Wang et al., Neural Cleanse, IEEE S&P
2019; universal perturbations: Moosavi-Dezfooli et al., CVPR 2017). Here it is additive and bounded in ℓ2, so
that it can be a patch as well as a pattern over the whole image.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from rnp_mlflow.core.evaluate import Transform, predict
from rnp_mlflow.core.precision import forwards, frozen

STEP, MOMENTUM, GROWTH = 0.2, 0.9, 1.05
PATIENCE = 20  # steps without growth after which no better proxy is to be found


@dataclass(frozen=True)
class Proxy:
    """x' = clip(x + change) in the model's own input space.

    target: the class it leads to. change (C, H, W); low, high (C, 1, 1): the range of clean inputs, a channel each.
    """

    target: int
    change: Tensor
    low: Tensor
    high: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """inputs: (N, C, H, W) as the model takes them."""
        return torch.minimum(torch.maximum(inputs + self.change, self.low), self.high)

    def after(self, transform: Transform) -> Transform:
        """The transform with the proxy put on what it gives."""
        return lambda images, generator: self(transform(images, generator))

    def rate(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        transform: Transform,
        precision: str = "fp32",
        plain: Tensor | None = None,
    ) -> float:
        """Share of the other classes' images that the proxy turns to `target`, and that are not called so without it.

        0 where there are no such images. images (N, C, H, W), labels (N,), on the model's device. plain: the
        answers (N,) to the images without it, where they are known.
        """
        others = labels != self.target
        if not bool(others.any()):
            return 0.0
        before = predict(model, images[others], transform, precision) if plain is None else plain[others.cpu()]
        after = predict(model, images[others], self.after(transform), precision)
        return float(((after == self.target) & (before != self.target)).double().mean())


def invert(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    target: int,
    transform: Transform,
    generator: Generator,
    *,
    steps: int = 100,
    batch_size: int = 32,
    success: float = 0.9,
    precision: str = "fp32",
) -> Proxy:
    """Find a proxy that leads `success` of a batch to `target` (0 to 1), with a norm as small as can be.

    Momentum ascent with normalised gradients inside an ℓ2 ball that grows by 5 % after every step whose batch
    falls short; the search ends `PATIENCE` steps after it last grew, and after `steps` in any case.
    images: (N, C, H, W) with labels (N,), on the model's device; those of `target` are not used.
    generator: a CPU one. model: left as it was, taken in eval mode.
    """
    inputs = transform(images, None)
    low, high = (edge(inputs.transpose(0, 1).flatten(1), 1)[:, None, None] for edge in (torch.amin, torch.amax))
    inputs = inputs[labels != target]
    change = torch.randn(inputs.shape[1:], generator=generator).to(inputs)
    radius = 0.01 * change[0].numel() ** 0.5
    change, velocity = change / change.norm() * radius, torch.zeros_like(change)
    grown = 0
    with frozen(model, precision) as working, forwards(working.eval(), precision) as forward:
        for step in range(steps):
            if step - grown == PATIENCE:
                break
            index = torch.randint(len(inputs), (batch_size,), generator=generator)
            proxy = Proxy(target, change.detach().requires_grad_(), low, high)
            logits = forward(proxy(inputs[index]))
            loss = cross_entropy(logits, torch.full((batch_size,), target, device=logits.device))
            (slope,) = torch.autograd.grad(loss, proxy.change)
            if (logits.argmax(1) == target).float().mean() < success:
                radius *= GROWTH
                grown = step + 1
            velocity = MOMENTUM * velocity - slope / (slope.norm() + 1e-12)
            change = change + STEP * radius * velocity
            change = change * (radius / change.norm()).clamp(max=1)
    return Proxy(target, change.detach(), low, high)
