"""Step 1: gradient ascent on clean images until clean accuracy collapses (RNP, equation 2).

The backdoor was never in those images, so it survives; what is lost is what recovery must restore.
"""

import copy
import math
from dataclasses import dataclass

from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from rnp_mlflow.core.batches import EpochRecord, OnEpoch, Tally, Watch, batches
from rnp_mlflow.core.descent import Descent
from rnp_mlflow.core.evaluate import Transform, accuracy, accuracy_down_to, predict
from rnp_mlflow.core.precision import forwards
from rnp_mlflow.errors import ModelError


@dataclass(frozen=True)
class Unlearned:
    """The unlearned model; its accuracy as the stop rule saw it; whether that reached the threshold."""

    model: nn.Module
    accuracy: float
    reached: bool
    history: list[EpochRecord]


def unlearn(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    transform: Transform,
    generator: Generator,
    *,
    lr: float = 0.01,
    epochs: int = 20,
    clean_threshold: float = 0.2,
    schedule: tuple[int, ...] = (10, 20),
    batch_size: int = 64,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    clip: float = 20.0,
    stop: str = "step",
    precision: str = "fp32",
    watch: Watch | None = None,
    on_epoch: OnEpoch = lambda record: None,
) -> Unlearned:
    """Maximise cross-entropy over all weights of a copy of `model`, BatchNorm in train mode.

    images: uint8 (N, C, H, W), labels int64 (N,), both on the model's device. generator: a CPU one,
    the source of batch order and augmentation. schedule: epochs after which lr is divided by 10.
    clip: bound on the gradient's norm (0: none). stop: 'step' measures accuracy on the images after
    every step, in eval mode; 'epoch' takes the epoch's running accuracy in train mode, as the
    reference does. Either ends unlearning at or below `clean_threshold`; a threshold never reached
    leaves the last model and `reached` False. watch: scores the model after an epoch.

    Raises:
        ModelError: the loss is no longer finite.
    """
    working = copy.deepcopy(model).requires_grad_(True).train()
    descent = Descent(working.parameters(), lr, momentum, weight_decay)
    history: list[EpochRecord] = []
    seen = 1.0
    with forwards(working, precision) as forward:
        for epoch in range(1, epochs + 1):
            tally = Tally(epoch)
            for index in batches(len(images), batch_size, generator):
                logits = forward(transform(images[index], generator))
                loss = cross_entropy(logits, labels[index])
                (-loss).backward()
                if clip:
                    clip_grad_norm_(working.parameters(), clip)
                descent.step()
                tally.add(loss, logits, labels[index])
                if stop == "step":
                    seen = accuracy_down_to(clean_threshold, working, images, labels, transform, precision)
                    if seen <= clean_threshold:
                        break
            descent.lr *= 0.1 ** schedule.count(epoch)
            history.append(tally.record(watch(epoch, working) if watch else None))
            on_epoch(history[-1])
            if not math.isfinite(history[-1].loss):
                raise ModelError(f"unlearning diverged in epoch {epoch}; lower unlearning_lr or set clip")
            if stop == "epoch":
                seen = history[-1].accuracy
            if seen <= clean_threshold:
                break
    if stop == "step" and seen > clean_threshold:  # so far a bound
        seen = accuracy(predict(working, images, transform, precision), labels)
    return Unlearned(working, seen, seen <= clean_threshold, history)
