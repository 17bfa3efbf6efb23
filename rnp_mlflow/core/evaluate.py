"""Predictions, and the four metrics computed from them: ACC, ASR, RA, DER (all 0 to 1)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.params import Precision
from rnp_mlflow.core.precision import device_of, forward_fn, has_bf16, memory_format

# (images uint8 NCHW, generator) -> float NCHW. Without a generator: normalise only.
# With one: also augment, with random numbers from that generator alone.
Transform = Callable[[Tensor, Generator | None], Tensor]
# Images at once. Activations of more fall out of a CPU's cache: 512 of 32 × 32 are half as fast as 128 (PreActResNet18,
# width 16), and 64 are as fast in half the memory. Larger images go in smaller batches, so that memory stays bounded.
CPU_PIXELS, CUDA_PIXELS = 64 * 32 * 32, 1024 * 32 * 32
# Images whose top-2 margin is under 1 % of the mean logit range are re-evaluated in fp32 (about 2 %). At most 0.04 % of
# the others differ from fp32 (six models).
LOW_MARGIN = 0.01
PRECISION_PROBE = 250  # images on which bf16 has to agree with fp32


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor, transform: Transform, precision: Precision = "fp32") -> Tensor:
    """Return predicted labels, int64 (N,) on the CPU, with the model in eval mode (its mode is restored).

    images: uint8 (N, C, H, W), moved to the model's device batch by batch. precision: see
    `core.precision.forward_fn`; bf16 re-evaluates images with a low margin in fp32.
    """
    was_training = model.training
    model.eval()
    try:
        with memory_format(model, precision):
            labels, margins, ranges = _predictions(model, images, transform, precision)
            if precision == "bf16" and len(images):
                close = (margins < LOW_MARGIN * ranges.mean()).nonzero()[:, 0].to(images.device)
                labels[close] = _predictions(model, images[close], transform, "fp32")[0]
    finally:
        model.train(was_training)
    return labels.cpu()


def _predictions(
    model: nn.Module, images: Tensor, transform: Transform, precision: Precision
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the highest logit's index, its margin over the second, and over the lowest; (N,) on the model's device."""
    found = []
    device = device_of(model)
    with forward_fn(model, precision) as forward:
        for part in images.split(batch_for(images, device)):
            logits = forward(transform(part.to(device), None))
            first, second = logits.topk(min(2, logits.shape[1]), 1).values[:, [0, -1]].unbind(1)
            found.append((logits.argmax(1), first - second, first - logits.amin(1)))
    if not found:
        return torch.empty(0, dtype=torch.int64), torch.empty(0), torch.empty(0)
    labels, margins, ranges = (torch.cat(column) for column in zip(*found, strict=True))
    return labels, margins, ranges


def batch_for(images: Tensor, device: torch.device) -> int:
    """Return how many of these images (N, C, H, W) to process at once: 8 to 64 on a CPU, 8 to 1024 on a GPU."""
    pixels = CUDA_PIXELS if device.type == "cuda" else CPU_PIXELS
    return max(8, pixels // max(32 * 32, images.shape[2] * images.shape[3]))


def resolve_precision(precision: Precision, model: nn.Module, images: Tensor, transform: Transform) -> Precision:
    """Replace auto by bf16 if the processor supports it and the model predicts the same with it, else by fp32.

    That is measured on up to 250 of the images, evenly spaced: no prediction may differ. fp32 and bf16 are returned.
    """
    if precision != "auto":
        return precision
    if not has_bf16(device_of(model)):
        return "fp32"
    some = images[:: -(-len(images) // PRECISION_PROBE) or 1]
    exact, quick = predict(model, some, transform, "fp32"), predict(model, some, transform, "bf16")
    return "bf16" if torch.equal(exact, quick) else "fp32"


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Return the share of predictions that equal their label; both int64 (N,), N ≥ 1."""
    return int((predictions == labels.cpu()).sum()) / len(predictions)


def accuracy_with_early_exit(
    limit: float, model: nn.Module, clean: LabeledImages, transform: Transform, precision: Precision = "fp32"
) -> tuple[float, int]:
    """Return the exact accuracy if it is at most `limit`; otherwise stop early and return a lower bound above it.

    The images are evaluated batch by batch, in their order. Also return how many were evaluated.
    """
    images, labels = clean
    right, seen, size = 0, 0, batch_for(images, device_of(model))
    for part, truth in zip(images.split(size), labels.cpu().split(size), strict=True):
        right += int((predict(model, part, transform, precision) == truth).sum())
        seen += len(part)
        if right / len(images) > limit:
            break
    return right / len(images), seen


def ahead(first: Tensor, second: Tensor, errors: float = 2.0) -> bool:
    """Return whether `first` is right on more images than `second` by over `errors` standard errors.

    Both bool (N,), of the same images. With b images that only the first has right and c that only the second has,
    the difference b - c has a standard error of √(b + c) if the two are equally good (McNemar, 1947).
    """
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    return b - c > errors * math.sqrt(b + c)


def chance_accuracy(labels: Tensor, classes: int) -> float:
    """Return the accuracy that needs no model: the share of the largest class, at least 1 / classes."""
    return max(1 / classes, float(labels.bincount().max()) / len(labels))


@dataclass(frozen=True)
class Scores:
    """ACC; ASR and RA if triggered images are known (else None); each 0 to 1."""

    acc: float
    asr: float | None = None
    ra: float | None = None


@dataclass(frozen=True)
class EvalSet:
    """Clean and triggered test images, on the model's device or memory-mapped.

    images uint8 (N, C, H, W), labels int64 (N,); triggered images uint8 (M, C, H, W) with their
    true labels and the attacker's (M,) each. The triggered ones leave out the target class's own images; they are
    None if no trigger is known.
    """

    images: Tensor
    labels: Tensor
    triggered: Tensor | None = None
    true_labels: Tensor | None = None
    target_labels: Tensor | None = None

    def subset(self, count: int) -> "EvalSet":
        """Return at most `count` of the images, evenly spaced, and as many triggered ones; itself if that is all."""
        if count >= max(len(self.images), 0 if self.triggered is None else len(self.triggered)):
            return self
        clean = evenly_spaced(len(self.images), count)
        some = self.images[clean], self.labels[clean]
        if self.triggered is None or self.true_labels is None or self.target_labels is None:
            return EvalSet(*some)
        bad = evenly_spaced(len(self.triggered), count)
        return EvalSet(*some, *(values[bad] for values in (self.triggered, self.true_labels, self.target_labels)))


@dataclass(frozen=True)
class Predictions:
    """The labels that a model predicts for an `EvalSet`: (N,) for the clean images, (M,) for the triggered ones."""

    clean: Tensor
    triggered: Tensor | None = None

    def scores(self, eval_set: EvalSet) -> Scores:
        """Return ACC, ASR and RA."""
        acc = accuracy(self.clean, eval_set.labels)
        if self.triggered is None or eval_set.true_labels is None or eval_set.target_labels is None:
            return Scores(acc)
        asr, ra = (accuracy(self.triggered, labels) for labels in (eval_set.target_labels, eval_set.true_labels))
        return Scores(acc, asr, ra)


def predict_all(
    model: nn.Module, eval_set: EvalSet, transform: Transform, precision: Precision = "fp32"
) -> Predictions:
    """Predict the clean images and, if there are any, the triggered ones."""
    clean = predict(model, eval_set.images, transform, precision)
    if eval_set.triggered is None:
        return Predictions(clean)
    return Predictions(clean, predict(model, eval_set.triggered, transform, precision))


def evenly_spaced(size: int, count: int) -> Tensor:
    """Return at most `count` of the indices 0 to size - 1, evenly spaced from 0; int64 (min(size, count),)."""
    few = min(size, count)
    return torch.arange(few) * size // few


def evaluate(model: nn.Module, eval_set: EvalSet, transform: Transform, precision: Precision = "fp32") -> Scores:
    """Measure ACC on the clean images; ASR and RA on the triggered ones, if there are any."""
    return predict_all(model, eval_set, transform, precision).scores(eval_set)


def der(before: Scores, after: Scores) -> float | None:
    """Return the defence effectiveness rating, [max(0, ΔASR) + 1 - max(0, ΔACC)] / 2; 0.5 = nothing changed.

    Source: BackdoorBench (Wu et al., NeurIPS 2022 D&B). None if ASR is unknown.
    """
    if before.asr is None or after.asr is None:
        return None
    return (max(0.0, before.asr - after.asr) + 1 - max(0.0, before.acc - after.acc)) / 2
