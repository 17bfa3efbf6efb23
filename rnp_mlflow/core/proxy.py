"""A stand-in for the unknown trigger: the smallest perturbation, the same for all images, that leads to one class.

If a backdoor is a shortcut to that class, such a perturbation takes it (Wang et al., Neural Cleanse, IEEE S&P
2019; universal perturbations: Moosavi-Dezfooli et al., CVPR 2017). Here it is additive and bounded in ℓ2, so
that it can be a patch as well as a pattern over the whole image.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from rnp_mlflow.core.batches import StepCallback, ignore_step
from rnp_mlflow.core.evaluate import Transform, predict
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.params import DetectParams, Precision
from rnp_mlflow.core.precision import forward_fn, frozen_copy

STEP_SIZE, MOMENTUM, GROWTH = 0.2, 0.9, 1.05
BATCH_SIZE = 32
SUCCESS = 0.9  # share of a batch that the proxy has to lead to its target
PATIENCE = 20  # steps without growth after which the search ends


@dataclass(frozen=True)
class ProxyTrigger:
    """x' = clip(x + delta) in the model's own input space.

    target: the class it leads to. delta (C, H, W); low, high (C, 1, 1): the range of clean inputs per channel.
    """

    target: int
    delta: Tensor
    low: Tensor
    high: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """Add the proxy to inputs (N, C, H, W) as the model takes them."""
        return torch.minimum(torch.maximum(inputs + self.delta, self.low), self.high)

    def moved(
        self, forward: Callable[[Tensor], Tensor], inputs: Tensor, radius: Tensor | None = None
    ) -> "ProxyTrigger":
        """Return a proxy one step of size `STEP_SIZE` closer to success, with a norm of at most `radius`.

        forward: (inputs) → logits of the model as it is now. inputs: of other classes than the target, (N, C, H, W).
        radius: None for the norm that it has. The step is relative to it.
        """
        if not len(inputs):
            return self
        radius = self.delta.norm() if radius is None else radius
        trial = replace(self, delta=self.delta.detach().requires_grad_())
        logits = forward(trial(inputs))
        loss = cross_entropy(logits, torch.full((len(inputs),), self.target, device=logits.device))
        (grad,) = torch.autograd.grad(loss, trial.delta)
        delta = self.delta - STEP_SIZE * radius * grad / (grad.norm() + 1e-12)
        return replace(self, delta=(delta * (radius / delta.norm()).clamp(max=1)).detach())

    def scaled(self, factor: float) -> "ProxyTrigger":
        """Return the proxy with a norm of `factor` times its own."""
        return replace(self, delta=self.delta * factor)

    def composed_with(self, transform: Transform) -> Transform:
        """Return a transform that applies `transform`, then the proxy."""
        return lambda images, generator: self(transform(images, generator))

    def success_rate(
        self,
        model: nn.Module,
        clean: LabeledImages,
        transform: Transform,
        precision: Precision = "fp32",
        *,
        plain: Tensor | None = None,
    ) -> float:
        """Return the share of the other classes' images that the proxy flips to `target`.

        Images that are classified as `target` without it do not count as flipped. 0 if there are no such images.
        plain: the predictions (N,) for the images without the proxy, if they are known.
        """
        others = clean.labels != self.target
        if not bool(others.any()):
            return 0.0
        images = clean.images[others]
        before = predict(model, images, transform, precision) if plain is None else plain[others.cpu()]
        after = predict(model, images, self.composed_with(transform), precision)
        return float(((after == self.target) & (before != self.target)).double().mean())


def add_proxy(inputs: Tensor, labels: Tensor, proxy: ProxyTrigger, share: float, generator: Generator) -> Tensor:
    """Add the proxy to a random `share` of the inputs (B, C, H, W) whose label is not its target."""
    has_proxy = torch.rand(len(labels), generator=generator) < share
    has_proxy = has_proxy.to(labels.device) & (labels != proxy.target)
    return torch.where(has_proxy[:, None, None, None], proxy(inputs), inputs)


def invert_trigger(
    model: nn.Module,
    clean: LabeledImages,
    transform: Transform,
    generator: Generator,
    params: DetectParams,
    *,
    target: int,
    on_step: StepCallback = ignore_step,
) -> ProxyTrigger:
    """Find a proxy that leads `SUCCESS` of a batch to `target`, with a norm as small as possible.

    Momentum ascent with normalised gradients inside an ℓ2 ball that grows by 5 % after every step whose batch
    falls short; the search ends `PATIENCE` steps after the ball last grew, and after `params.proxy_steps` in any case.
    Images of `target` are not used. generator: a CPU one. model: left unchanged, used in eval mode.
    on_step: receives the number of steps made, and the share of the last batch that the proxy led to the target.
    """
    inputs = transform(clean.images, None)
    low, high = (edge(inputs.transpose(0, 1).flatten(1), 1)[:, None, None] for edge in (torch.amin, torch.amax))
    inputs = inputs[clean.labels != target]
    delta = torch.randn(inputs.shape[1:], generator=generator).to(inputs)
    radius = 0.01 * delta[0].numel() ** 0.5
    delta, velocity = delta / delta.norm() * radius, torch.zeros_like(delta)
    last_growth = 0
    with frozen_copy(model, params.precision) as working, forward_fn(working.eval(), params.precision) as forward:
        for step in range(params.proxy_steps):
            if step - last_growth == PATIENCE:
                break
            index = torch.randint(len(inputs), (BATCH_SIZE,), generator=generator)
            proxy = ProxyTrigger(target, delta.detach().requires_grad_(), low, high)
            logits = forward(proxy(inputs[index]))
            loss = cross_entropy(logits, torch.full((BATCH_SIZE,), target, device=logits.device))
            (grad,) = torch.autograd.grad(loss, proxy.delta)
            success = float((logits.argmax(1) == target).float().mean())
            on_step(step + 1, success)
            if success < SUCCESS:
                radius *= GROWTH
                last_growth = step + 1
            velocity = MOMENTUM * velocity - grad / (grad.norm() + 1e-12)
            delta = delta + STEP_SIZE * radius * velocity
            delta = delta * (radius / delta.norm()).clamp(max=1)
    return ProxyTrigger(target, delta.detach(), low, high)
