"""Step 1: gradient ascent on clean images until clean accuracy collapses (RNP, equation 2).

The backdoor was never in those images, so it survives; what is lost is what recovery must restore.
"""

import copy
import math
from dataclasses import dataclass, field

from torch import Generator, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from rnp_mlflow.core.backoff import CarefulSteps
from rnp_mlflow.core.batches import NO_HOOKS, EpochRecord, TrainingHooks
from rnp_mlflow.core.course import Course, copy_into, prefixed
from rnp_mlflow.core.evaluate import Transform, accuracy, accuracy_with_early_exit, predict
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.keeping import State
from rnp_mlflow.core.neurons import is_finite
from rnp_mlflow.core.params import UnlearnParams
from rnp_mlflow.core.precision import forward_fn
from rnp_mlflow.core.sgd import SGD
from rnp_mlflow.core.units import norm_layers, train_mode
from rnp_mlflow.errors import ModelError

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4  # the reference's


@dataclass(frozen=True)
class StopCheck:
    """What the stop rule saw after a step: accuracy (0 to 1) on the images that it looked at, and how many these were.

    By step, the rule looks at no more images than it needs to know that accuracy is above its limit.
    """

    step: int
    accuracy: float
    images: int


@dataclass(frozen=True)
class UnlearningResult:
    """The unlearned model; its accuracy as the stop rule measured it; whether that reached the threshold.

    checks: everything that the stop rule saw.
    """

    model: nn.Module
    accuracy: float
    reached_threshold: bool
    history: list[EpochRecord]
    checks: list[StopCheck] = field(default_factory=list)


def unlearn(
    model: nn.Module,
    clean: LabeledImages,
    transform: Transform,
    generator: Generator,
    params: UnlearnParams,
    *,
    hooks: TrainingHooks = NO_HOOKS,
) -> UnlearningResult:
    """Maximise cross-entropy over all weights of a copy of `model`, BatchNorm in train mode.

    generator: a CPU one, the source of batch order and augmentation. Unlearning ends at or below
    `params.clean_threshold`; if that is never reached, the last model is returned and `reached_threshold` is False.

    Raises:
        ModelError: the loss or a weight is no longer finite.
    """
    images, labels = clean
    by_step = params.unlearning_stop == "step"
    limit, precision = params.clean_threshold, params.precision
    working = train_mode(copy.deepcopy(model).requires_grad_(True))
    optimizer = SGD(working.parameters(), params.unlearning_lr, MOMENTUM, WEIGHT_DECAY)
    checks: list[StopCheck] = []
    measured, steps = 1.0, 0
    careful = None
    if not norm_layers(model):
        careful = CarefulSteps(
            working, optimizer, lambda: accuracy(predict(working, images, transform, precision), labels)
        )
    step = careful.step if careful else optimizer.step

    def record_check(accuracy_seen: float, images_seen: int) -> None:
        checks.append(StopCheck(steps, accuracy_seen, images_seen))
        hooks.on_model(steps, accuracy_seen, lambda: working)

    def capture() -> State:
        seen = [[c.step, c.accuracy, c.images] for c in checks]
        values = {"lr": optimizer.lr, "measured": measured, "steps": steps, "checks": seen}
        values |= {"careful": careful.last} if careful else {}
        return State(prefixed("model/", working.state_dict()) | optimizer.state(), values)

    def restore(state: State) -> None:
        nonlocal measured, steps
        copy_into(working.state_dict(), state.tensors, "model/")
        optimizer.restore(state.tensors)
        optimizer.lr, measured, steps = (state.values[name] for name in ("lr", "measured", "steps"))
        if careful:
            careful.last = state.values["careful"]
        checks[:] = [StopCheck(*row) for row in state.values["checks"]]

    course = Course(hooks.keeper, generator, capture, restore)
    history = course.history
    with forward_fn(working, precision) as forward:
        for meter in course.epochs(params.unlearning_epochs, hooks.on_step, hooks.on_epoch):
            epoch = meter.epoch
            for index in course.batches(len(images), params.unlearning_batch_size):
                logits = forward(transform(images[index], generator))
                loss = cross_entropy(logits, labels[index])
                (-loss).backward()
                if params.grad_clip_norm:
                    clip_grad_norm_(working.parameters(), params.grad_clip_norm)
                step()
                meter.add(loss, logits, labels[index])
                steps += 1
                if by_step:
                    measured, seen = accuracy_with_early_exit(limit, working, clean, transform, precision)
                    record_check(round(measured * len(images)) / seen, seen)
                    if measured <= limit:
                        break
            optimizer.lr *= 0.1 ** params.schedule.count(epoch)
            history.append(meter.record())
            hooks.on_epoch(history[-1])
            if not math.isfinite(history[-1].loss) or not is_finite(working):
                raise ModelError(f"unlearning diverged in epoch {epoch}; lower unlearning_lr or set grad_clip_norm")
            if not by_step:
                measured = history[-1].accuracy
                record_check(measured, meter.images)
            if measured <= limit:
                break
    if by_step and measured > limit:  # so far a lower bound
        measured = accuracy(predict(working, images, transform, precision), labels)
    return UnlearningResult(working, measured, measured <= limit, history, checks)
