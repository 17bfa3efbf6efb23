"""Random batches from one generator, the record of an epoch, and the hooks that are called after it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from rnp_mlflow.core.keeping import NOWHERE, Keeper


def batches(count: int, batch_size: int, generator: Generator) -> Iterator[Tensor]:
    """Yield one epoch: a random order of `count` indices in parts as equal as possible, none over `batch_size`.

    Equal parts, because a small last batch would give BatchNorm poor statistics (and one image in
    train mode none at all). int64 indices on the CPU; the generator is a CPU one.
    """
    yield from parts(torch.randperm(count, generator=generator), batch_size)


def parts(order: Tensor, batch_size: int) -> Sequence[Tensor]:
    """Return an order in batches (`batches`)."""
    return order.tensor_split(max(1, -(-len(order) // batch_size)))


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: mean loss and accuracy (0 to 1) on its batches in training; steps made."""

    epoch: int
    loss: float
    accuracy: float
    steps: int


EpochCallback = Callable[[EpochRecord], None]
StepCallback = Callable[[int, float], object]  # (steps made, loss or success)
ModelCallback = Callable[[int, float, Callable[[], nn.Module]], None]


def ignore_epoch(record: EpochRecord) -> None:
    """Do nothing after an epoch or a step."""


def ignore_step(steps: int, figure: float) -> None:
    """Do nothing after a step."""


def ignore_model(step: int, accuracy: float, model: Callable[[], nn.Module]) -> None:
    """Do nothing with a model in training."""


@dataclass(frozen=True)
class TrainingHooks:
    """What training calls. None of them changes its result.

    on_epoch: receives the record of every epoch; on_step, after every step, that of the epoch so far. on_model:
    receives the number of steps made so far, an accuracy, and a function that returns the model as it now is.
    Unlearning calls it whenever its stop rule looks, with the accuracy that the rule saw; recovery after every epoch,
    with the epoch's. keeper: saves the loop's state, so that it can go on after a kill.
    """

    on_epoch: EpochCallback = ignore_epoch
    on_model: ModelCallback = ignore_model
    on_step: EpochCallback = ignore_epoch
    keeper: Keeper = NOWHERE


NO_HOOKS = TrainingHooks()


class EpochMeter:
    """Accumulates loss and accuracy over an epoch, weighted by batch size. on_step: called after each batch."""

    def __init__(self, epoch: int, on_step: EpochCallback = ignore_epoch):
        self.epoch, self.steps, self.images = epoch, 0, 0
        self.on_step = on_step
        self.loss, self.right = 0.0, 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch. loss: mean over the batch; logits (B, classes); labels (B,)."""
        self.steps += 1
        self.images += len(labels)
        self.loss += loss.item() * len(labels)
        self.right += int((logits.argmax(1) == labels).sum())
        self.on_step(self.record())

    def counts(self) -> tuple[int, int, float, int]:
        """Return what `set_counts` sets."""
        return self.steps, self.images, self.loss, self.right

    def set_counts(self, counts: Sequence[Any]) -> None:
        """Go on from what another meter had counted."""
        self.steps, self.images, self.loss, self.right = counts

    def record(self) -> EpochRecord:
        """Return the epoch's record."""
        return EpochRecord(self.epoch, self.loss / self.images, self.right / self.images, self.steps)
