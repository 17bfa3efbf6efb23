"""Steps of gradient descent without `torch.optim`'s classes, whose first use imports the compiler: 3 s and 180 MB."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.sgd import sgd


class Descent:
    """SGD with heavy-ball momentum over `params`, as `torch.optim.SGD`: the same update, by torch's own function.

    lr may be set between steps.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float, weight_decay: float = 0.0):
        self.params = list(params)
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.velocities: list[Tensor | None] = [None] * len(self.params)

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient, and drop the gradients."""
        reached = [k for k, values in enumerate(self.params) if values.grad is not None]
        velocities = [self.velocities[k] for k in reached]
        sgd(
            [self.params[k] for k in reached],
            [self.params[k].grad for k in reached],  # type: ignore[misc]
            velocities,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            dampening=0,
            nesterov=False,
            maximize=False,
        )
        for k, velocity in zip(reached, velocities, strict=True):
            self.velocities[k] = velocity
        for values in self.params:
            values.grad = None
