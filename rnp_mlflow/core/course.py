"""The epochs and batches of a training loop, which can be saved after any step and gone on from, equal bit for bit."""

from collections.abc import Callable, Iterator
from dataclasses import asdict

import torch
from torch import Generator, Tensor

from rnp_mlflow.core.batches import EpochCallback, EpochMeter, EpochRecord, parts
from rnp_mlflow.core.keeping import Keeper, State


class Course:
    """Where a loop is. history: the records of its finished epochs, which the loop appends to.

    generator: the loop's. capture, restore: what else changes from step to step.
    """

    def __init__(
        self, keeper: Keeper, generator: Generator, capture: Callable[[], State], restore: Callable[[State], None]
    ):
        self.keeper, self.generator, self.capture = keeper, generator, capture
        self.history: list[EpochRecord] = []
        self.meter: EpochMeter | None = None
        self.saved = keeper.load()
        if self.saved:
            restore(self.saved)
            self.history = [EpochRecord(**row) for row in self.saved.values["course/history"]]
            set_random_state(self.saved.tensors, generator)

    def epochs(self, last: int, on_step: EpochCallback, on_epoch: EpochCallback) -> Iterator[EpochMeter]:
        """Yield the meter of each epoch. on_epoch: called for those that an earlier attempt made, too."""
        for record in self.history:
            on_epoch(record)
        for epoch in range(len(self.history) + 1, last + 1):
            self.meter = EpochMeter(epoch, on_step)
            if self.saved:
                self.meter.set_counts(self.saved.values["course/counts"])
            yield self.meter

    def batches(self, count: int, batch_size: int) -> Iterator[Tensor]:
        """Yield the batches of one epoch as `core.batches.batches` does; save between two steps if it is time."""
        first = 0
        if self.saved and self.meter:
            order, first, self.saved = self.saved.tensors["course/order"], self.meter.steps, None
        else:
            order = torch.randperm(count, generator=self.generator)
        for step, index in enumerate(parts(order, batch_size)):
            if step < first:
                continue
            if self.keeper.is_due():
                self.keeper.save(self.state(order))
            yield index

    def state(self, order: Tensor) -> State:
        """Return all that the loop needs to go on."""
        own, history = self.capture(), [asdict(record) for record in self.history]
        counts = self.meter.counts() if self.meter else []
        random = random_state(self.generator)
        return State(
            own.tensors | random | {"course/order": order},
            own.values | {"course/history": history, "course/counts": counts},
        )


def random_state(generator: Generator) -> dict[str, Tensor]:
    """Return the states of the generator and of torch's own."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    found = {"random/own": generator.get_state(), "random/cpu": torch.get_rng_state()}
    return found | {f"random/cuda{k}": state for k, state in enumerate(devices)}


def set_random_state(tensors: dict[str, Tensor], generator: Generator) -> None:
    """Set what `random_state` returned."""
    generator.set_state(tensors["random/own"])
    torch.set_rng_state(tensors["random/cpu"])
    for name in tensors:
        if name.startswith("random/cuda"):
            torch.cuda.set_rng_state(tensors[name], int(name.removeprefix("random/cuda")))


def copy_into(targets: dict[str, Tensor], tensors: dict[str, Tensor], prefix: str) -> None:
    """Set the targets to the saved tensors of these names after the prefix."""
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[prefix + name])


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, detached, with a prefix before each name."""
    return {prefix + name: values.detach() for name, values in tensors.items()}
