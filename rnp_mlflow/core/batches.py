"""Random batches from one generator, the record of an epoch, and the hooks that are called after it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from rnp_mlflow.core.evaluate import Scores


def batches(count: int, batch_size: int, generator: Generator) -> Iterator[Tensor]:
    """Yield one epoch: a random order of `count` indices in parts as equal as possible, none over `batch_size`.

    Equal parts, because a small last batch would give BatchNorm poor statistics (and one image in
    train mode none at all). int64 indices on the CPU; the generator is a CPU one.
    """
    order = torch.randperm(count, generator=generator)
    yield from order.tensor_split(max(1, -(-count // batch_size)))


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: mean loss and accuracy (0 to 1) on its batches in training; steps made; test scores after it."""

    epoch: int
    loss: float
    accuracy: float
    steps: int
    scores: Scores | None = None


EpochCallback = Callable[[EpochRecord], None]
EvalCallback = Callable[[int, nn.Module], Scores | None]  # (epoch, model after it) → scores, None if not evaluated


def ignore_epoch(record: EpochRecord) -> None:
    """Do nothing after an epoch or a step."""


@dataclass(frozen=True)
class TrainingHooks:
    """What training calls after every epoch, and after every step. None of them changes its result.

    evaluate: scores the model. on_epoch: receives the epoch's record. on_step: receives that of the epoch so far.
    """

    evaluate: EvalCallback | None = None
    on_epoch: EpochCallback = ignore_epoch
    on_step: EpochCallback = ignore_epoch


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

    def record(self, scores: Scores | None = None) -> EpochRecord:
        """Return the epoch's record, with the test scores after it."""
        return EpochRecord(self.epoch, self.loss / self.images, self.right / self.images, self.steps, scores)
