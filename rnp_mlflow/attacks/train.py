"""Ordinary supervised training; it plants the backdoor if the data are poisoned."""

import math
from dataclasses import dataclass

from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, AdamW, Optimizer
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
    """lr: the peak of the one-cycle schedule. precision: see `core.precision.forward_fn`. adamw: instead of SGD."""

    epochs: int
    lr: float
    batch_size: int
    weight_decay: float = 5e-4
    precision: Precision = "fp32"
    adamw: bool = False

    @property
    def peak(self) -> float:
        """Return the peak learning rate: AdamW takes a hundredth of SGD's."""
        return self.lr / 100 if self.adamw else self.lr


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
    """Train `model` in place with a one-cycle schedule (Smith, 2018).

    data: on any device. generator: on the CPU; it determines the order of batches and the augmentation.
    on_step: receives the record of the epoch so far. keeper: saves the state, so that training can go on after a kill.

    Raises:
        ModelError: training diverged: its loss or the weights are infinite or not a number.
    """
    steps = params.epochs * max(1, -(-len(data) // params.batch_size))
    optimizer = make_optimizer(model, params)
    rate = OneCycleLR(optimizer, params.peak, total_steps=steps + 1, cycle_momentum=False)
    model.train()
    device = next(model.parameters()).device

    def capture() -> State:
        saved = optimizer.state_dict()
        own = {f"{k}/{name}": v for k, found in saved["state"].items() for name, v in found.items() if v is not None}
        values = {"rate": rate.state_dict(), "groups": saved["param_groups"]}
        return State(prefixed("model/", model.state_dict()) | prefixed("optimizer/", own), values)

    def restore(state: State) -> None:
        copy_into(model.state_dict(), state.tensors, "model/")
        own: dict[int, dict[str, Tensor]] = {}
        for name, values in state.tensors.items():
            if name.startswith("optimizer/"):
                _, k, entry = name.split("/")
                own.setdefault(int(k), {})[entry] = values
        optimizer.load_state_dict({"state": own, "param_groups": state.values["groups"]})
        rate.load_state_dict(state.values["rate"])

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
                if params.adamw:
                    clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                rate.step()
                meter.add(loss, logits, labels)
            history.append(meter.record())
            on_epoch(history[-1])
            refuse_diverged(model, history[-1], params.lr)
    return history


def make_optimizer(model: nn.Module, params: TrainParams) -> Optimizer:
    """Return SGD with Nesterov momentum 0.9, or AdamW with a hundred times the weight decay."""
    if params.adamw:
        return AdamW(model.parameters(), params.peak, weight_decay=100 * params.weight_decay)
    return SGD(model.parameters(), params.peak, 0.9, weight_decay=params.weight_decay, nesterov=True)


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
