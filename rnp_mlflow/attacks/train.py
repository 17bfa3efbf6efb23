"""Ordinary supervised training; it plants the backdoor if the data are poisoned."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from rnp_mlflow.core.batches import EpochCallback, EpochRecord, ignore_epoch
from rnp_mlflow.core.course import Course, copy_into, prefixed
from rnp_mlflow.core.evaluate import Transform
from rnp_mlflow.core.keeping import NOWHERE, Keeper, State
from rnp_mlflow.core.neurons import is_finite
from rnp_mlflow.core.params import Precision
from rnp_mlflow.core.precision import forward_fn
from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.errors import ModelError


@dataclass(frozen=True)
class TrainParams:
    """lr: the peak of the one-cycle schedule. precision: see `core.precision.forward_fn`."""

    epochs: int
    lr: float
    batch_size: int
    weight_decay: float = 5e-4
    precision: Precision = "fp32"


def train(
    model: nn.Module,
    data: ImageSet,
    transform: Transform,
    generator: Generator,
    params: TrainParams,
    *,
    on_epoch: EpochCallback = ignore_epoch,
    on_step: EpochCallback = ignore_epoch,
    keeper: Keeper = NOWHERE,
) -> list[EpochRecord]:
    """Train `model` in place with SGD, Nesterov momentum 0.9 and a one-cycle schedule (Smith, 2018) peaking at lr.

    data: on any device. generator: on the CPU; it determines the order of batches and the augmentation.
    on_step: receives the record of the epoch so far. keeper: saves the state, so that training can go on after a kill.

    Raises:
        ModelError: training diverged: its loss or the weights are infinite or not a number.
    """
    steps = params.epochs * max(1, -(-len(data) // params.batch_size))
    weights = list(model.parameters())
    optimizer = SGD(weights, params.lr, 0.9, weight_decay=params.weight_decay, nesterov=True)
    rate = OneCycleLR(optimizer, params.lr, total_steps=steps + 1, cycle_momentum=False)
    model.train()
    device = next(model.parameters()).device

    def capture() -> State:
        values = {"rate": rate.state_dict(), "groups": [{**g, "params": None} for g in optimizer.param_groups]}
        buffers = {f"{k}": optimizer.state[p]["momentum_buffer"] for k, p in enumerate(weights) if optimizer.state[p]}
        return State(prefixed("model/", model.state_dict()) | prefixed("velocity/", buffers), values)

    def restore(state: State) -> None:
        copy_into(model.state_dict(), state.tensors, "model/")
        for k, parameter in enumerate(weights):
            if (found := state.tensors.get(f"velocity/{k}")) is not None:
                optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(found).detach()
        rate.load_state_dict(state.values["rate"])
        for group, saved in zip(optimizer.param_groups, state.values["groups"], strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})

    course = Course(keeper, generator, capture, restore)
    history = course.history
    with forward_fn(model, params.precision) as forward:
        for meter in course.epochs(params.epochs, on_step, on_epoch):
            for index in course.batches(len(data), params.batch_size):
                images, labels = data.images[index].to(device), data.labels[index].to(device)
                logits = forward(transform(images, generator))
                loss = cross_entropy(logits, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rate.step()
                meter.add(loss, logits, labels)
            history.append(meter.record())
            on_epoch(history[-1])
            refuse_diverged(model, history[-1], params.lr)
    return history


def refuse_diverged(model: nn.Module, last: EpochRecord, lr: float) -> None:
    """Refuse a model that is of no use to anyone: it gives every image the same label.

    Raises:
        ModelError: the loss or a weight is infinite or not a number.
    """
    reason = f"the loss of epoch {last.epoch} is {last.loss:g}" if not math.isfinite(last.loss) else ""
    if not reason and not is_finite(model):
        reason = f"a weight is not a finite number after epoch {last.epoch}"
    if reason:
        raise ModelError(f"training diverged: {reason}; give a training_lr below {lr:g}")
