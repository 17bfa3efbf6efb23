"""Is the model backdoored, and to which class? What the unlearned model answers to clean images.

Unlearning takes the task away and leaves the backdoor (Li et al., ICML 2023, section 3.2): a backdoored
model then calls nearly everything by its target class, a clean one answers this and that.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Verdict:
    """target: the class that is suspected. score: share of the other classes' images that are called so (0 to 1)."""

    target: int
    score: float


def suspected(predictions: Tensor, labels: Tensor, classes: int) -> Verdict:
    """The class that most images of other classes are called by; the lowest of equals.

    predictions: of the unlearned model on clean images; labels: the true ones; int64 (N,), N ≥ 1.
    """
    labels = labels.cpu()
    shares = []
    for label in range(classes):
        others = labels != label
        shares.append(float((predictions[others] == label).double().mean()) if others.any() else 0.0)
    target = int(torch.tensor(shares).argmax())
    return Verdict(target, shares[target])
