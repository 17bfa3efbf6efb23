"""Gradient descent without `torch.optim`'s classes, whose first use imports the compiler: 3 s and 180 MB."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.optim.sgd import sgd


class SGD:
    """SGD with heavy-ball momentum: the same update as `torch.optim.SGD`, by torch's own function.

    lr may be set between steps.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float, weight_decay: float = 0.0):
        self.params = list(params)
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.velocities: list[Tensor | None] = [None] * len(self.params)

    def state(self) -> dict[str, Tensor]:
        """Return the velocities, by the number of their parameter."""
        return {f"velocity/{k}": values for k, values in enumerate(self.velocities) if values is not None}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the velocities from what `state` returned."""
        for k, values in enumerate(self.params):
            if (found := tensors.get(f"velocity/{k}")) is not None:
                self.velocities[k] = torch.empty_like(values).copy_(found)

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient, then drop the gradients."""
        with_grad = [k for k, values in enumerate(self.params) if values.grad is not None]
        velocities = [self.velocities[k] for k in with_grad]
        sgd(
            [self.params[k] for k in with_grad],
            [self.params[k].grad for k in with_grad],  # type: ignore[misc]
            velocities,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            dampening=0,
            nesterov=False,
            maximize=False,
        )
        for k, velocity in zip(with_grad, velocities, strict=True):
            self.velocities[k] = velocity
        for values in self.params:
            values.grad = None
