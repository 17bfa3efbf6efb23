"""A step of unlearning that is taken back, and made again at half the step size, if it overshoots.

A step that loses the task at once moves every weight, and the backdoor with it. BatchNorm bounds what a step can do;
other networks need another step size each.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rnp_mlflow.core.neurons import is_finite
from rnp_mlflow.core.sgd import SGD

MOST_FALL = 0.1  # of accuracy, in one step
HALVINGS = 15  # of one step, at most


class CarefulSteps:
    """Makes steps of an optimizer that overshoot by no more than `MOST_FALL` of accuracy.

    accuracy: measures the model as it is. last: what it was after the step before.
    """

    def __init__(self, model: nn.Module, optimizer: SGD, accuracy: Callable[[], float]):
        self.model, self.optimizer, self.accuracy = model, optimizer, accuracy
        self.last = accuracy()

    def step(self) -> None:
        """Make a step that is small enough; the gradients are dropped, and the step size stays as small."""
        before = self.state()
        for _ in range(HALVINGS):
            self.optimizer.step()
            found = self.accuracy() if is_finite(self.model) else -1.0
            if found >= self.last - MOST_FALL:
                break
            self.restore(before)
            self.optimizer.lr /= 2
        else:
            self.optimizer.step()
            found = self.accuracy()
        self.last = found

    def state(self) -> list[tuple[Tensor, Tensor | None, Tensor | None]]:
        """Return copies of each weight, its gradient and its velocity."""
        columns = zip(self.optimizer.params, self.optimizer.velocities, strict=True)
        return [(p.detach().clone(), copied(p.grad), copied(v)) for p, v in columns]

    @torch.no_grad()
    def restore(self, state: list[tuple[Tensor, Tensor | None, Tensor | None]]) -> None:
        """Put back what `state` returned."""
        for values, (before, grad, _) in zip(self.optimizer.params, state, strict=True):
            values.copy_(before)
            values.grad = copied(grad)
        self.optimizer.velocities = [copied(velocity) for _, _, velocity in state]


def copied(values: Tensor | None) -> Tensor | None:
    """Return a copy of a tensor, if there is one."""
    return None if values is None else values.clone()
