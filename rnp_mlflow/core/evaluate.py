"""Predictions, and the four figures made from them: ACC, ASR, RA, DER (all 0 to 1)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from rnp_mlflow.core.precision import device_of, forwards, has_bf16, laid_out

# (images uint8 NCHW, generator) -> float NCHW. Without a generator: normalise only.
# With one: also augment, with draws from that generator alone.
Transform = Callable[[Tensor, Generator | None], Tensor]
# Images at once. Activations of more fall out of a CPU's cache: 512 of 32 × 32 are half as fast as 128 (PreActResNet18,
# width 16), and 64 are as fast in half the memory. Larger images go in smaller batches, so that memory stays bounded.
CPU_PIXELS, CUDA_PIXELS = 64 * 32 * 32, 1024 * 32 * 32
# In bf16, images whose two highest logits lie nearer than this share of the mean range of all logits are looked at
# again in fp32: 2 % of the images. Of the rest 0.4 ‰ at most are called otherwise than in fp32 (six models).
CLOSE = 0.01
CHECKED = 250  # images on which bf16 has to agree with fp32


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor, transform: Transform, precision: str = "fp32") -> Tensor:
    """Predicted labels, int64 (N,) on the CPU, with the model in eval mode (mode restored after).

    images: uint8 (N, C, H, W), batch by batch taken to the model's device. precision: as `core.precision.forwards`
    takes it; what is close in bf16 is settled in fp32.
    """
    was_training = model.training
    model.eval()
    try:
        with laid_out(model, precision):
            answers, margins, ranges = _answers(model, images, transform, precision)
            if precision == "bf16" and len(images):
                close = (margins < CLOSE * ranges.mean()).nonzero()[:, 0].to(images.device)
                answers[close] = _answers(model, images[close], transform, "fp32")[0]
    finally:
        model.train(was_training)
    return answers.cpu()


def _answers(model: nn.Module, images: Tensor, transform: Transform, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    """Highest logit's index, by how much it is higher than the second, and than the lowest; (N,) on their device."""
    found = []
    device = device_of(model)
    with forwards(model, precision) as forward:
        for part in images.split(batch_for(images, device)):
            logits = forward(transform(part.to(device), None))
            first, second = logits.topk(min(2, logits.shape[1]), 1).values[:, [0, -1]].unbind(1)
            found.append((logits.argmax(1), first - second, first - logits.amin(1)))
    if not found:
        return torch.empty(0, dtype=torch.int64), torch.empty(0), torch.empty(0)
    answers, margins, ranges = (torch.cat(column) for column in zip(*found, strict=True))
    return answers, margins, ranges


def batch_for(images: Tensor, device: torch.device) -> int:
    """How many of these images (N, C, H, W) to take at once: 8 to 64 on a CPU, 8 to 1024 on a GPU."""
    pixels = CUDA_PIXELS if device.type == "cuda" else CPU_PIXELS
    return max(8, pixels // max(32 * 32, images.shape[2] * images.shape[3]))


def settled(precision: str, model: nn.Module, images: Tensor, transform: Transform) -> str:
    """What 'auto' means for this model: 'bf16' where the processor is made for it, and it predicts as fp32 does.

    That is measured on up to 250 of the images, evenly spaced: none may be called otherwise. Other words come back.
    """
    if precision != "auto":
        return precision
    if not has_bf16(device_of(model)):
        return "fp32"
    some = images[:: -(-len(images) // CHECKED) or 1]
    exact, quick = (predict(model, some, transform, kind) for kind in ("fp32", "bf16"))
    return "bf16" if torch.equal(exact, quick) else "fp32"


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Share of predictions that equal their label; both int64 (N,), N ≥ 1."""
    return int((predictions == labels.cpu()).sum()) / len(predictions)


def accuracy_down_to(
    limit: float, model: nn.Module, images: Tensor, labels: Tensor, transform: Transform, precision: str = "fp32"
) -> float:
    """Accuracy on the images if it is at most `limit`, else a lower bound of it that is above.

    No more images are looked at than it takes to know that, batch by batch in their order.
    """
    right, size = 0, batch_for(images, device_of(model))
    for part, truth in zip(images.split(size), labels.cpu().split(size), strict=True):
        right += int((predict(model, part, transform, precision) == truth).sum())
        if right / len(images) > limit:
            break
    return right / len(images)


@dataclass(frozen=True)
class Scores:
    """ACC, and ASR and RA where triggered images are known (else None); each 0 to 1."""

    acc: float
    asr: float | None = None
    ra: float | None = None


@dataclass(frozen=True)
class TestSet:
    """What a model is judged by, on the model's device or where memory maps it.

    images uint8 (N, C, H, W), labels int64 (N,); triggered images uint8 (M, C, H, W) with their
    true labels and the attacker's (M,) each. The target class's own images are left out of the
    triggered ones; they are None where no trigger is known.
    """

    __test__ = False  # not a pytest class

    images: Tensor
    labels: Tensor
    triggered: Tensor | None = None
    true_labels: Tensor | None = None
    target_labels: Tensor | None = None

    def part(self, count: int) -> "TestSet":
        """At most `count` of the images, evenly spaced, and as many of the triggered ones; itself where that is all."""
        if count >= max(len(self.images), 0 if self.triggered is None else len(self.triggered)):
            return self
        clean = spaced(len(self.images), count)
        some = self.images[clean], self.labels[clean]
        if self.triggered is None or self.true_labels is None or self.target_labels is None:
            return TestSet(*some)
        bad = spaced(len(self.triggered), count)
        return TestSet(*some, *(values[bad] for values in (self.triggered, self.true_labels, self.target_labels)))


def spaced(size: int, count: int) -> Tensor:
    """At most `count` of the indices 0 to size - 1, evenly spaced from 0 on; int64 (min(size, count),)."""
    few = min(size, count)
    return torch.arange(few) * size // few


def evaluate(model: nn.Module, test: TestSet, transform: Transform, precision: str = "fp32") -> Scores:
    """ACC on the clean images; ASR and RA on the triggered ones, if there are any."""
    acc = accuracy(predict(model, test.images, transform, precision), test.labels)
    if test.triggered is None or test.true_labels is None or test.target_labels is None:
        return Scores(acc)
    answers = predict(model, test.triggered, transform, precision)
    return Scores(acc, accuracy(answers, test.target_labels), accuracy(answers, test.true_labels))


def der(before: Scores, after: Scores) -> float | None:
    """Defence effectiveness rating, [max(0, ΔASR) + 1 - max(0, ΔACC)] / 2; 0.5 = nothing changed.

    Source: BackdoorBench (Wu et al., NeurIPS 2022 D&B). None where ASR is unknown.
    """
    if before.asr is None or after.asr is None:
        return None
    return (max(0.0, before.asr - after.asr) + 1 - max(0.0, before.acc - after.acc)) / 2
