"""Is the model backdoored, and to which class? From clean images alone.

*Which class:* unlearning takes the task away and leaves the backdoor (Li et al., ICML 2023, section 3.2): a backdoored
model then calls more images by its target class than by any other. *Whether:* a backdoor is a shortcut, so a small
change (the proxy, `core.proxy`) leads there, and it is made by few neurons, without which the task stays. On a clean
model the change that leads to a class must be large, and what it uses is the task's own: it fails no sooner than
accuracy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rnp_mlflow.core.select import Seen, trades


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


def cost(points: Sequence[Seen]) -> float:
    """What it takes to stop the proxy by pruning: the least of (share of its success left) + (share of accuracy lost).

    points: of the pruning curve, the unpruned model first, on held-out images. 0 to 1; 1 where there is no proxy that
    works on the unpruned model.
    """
    return min(map(sum, trades(points))) if points[0].proxy_asr else 1.0


def relative_size(change: Tensor, inputs: Tensor) -> float:
    """ℓ2 norm of a change (C, H, W), as a share of how far clean inputs (N, C, H, W) lie from their mean.

    That is the root of the mean square. 1: as large as what tells one image from another. 0: all inputs are the same.
    """
    spread = float((inputs - inputs.mean(0)).square().sum((1, 2, 3)).mean().sqrt())
    return float(change.norm()) / spread if spread else 0.0
