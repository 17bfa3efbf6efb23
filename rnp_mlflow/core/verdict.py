"""Is the model backdoored, and to which class? From clean images alone.

*Which class:* unlearning takes the task away and leaves the backdoor (Li et al., ICML 2023, section 3.2): a backdoored
model then calls more images by its target class than by any other. *Whether:* a backdoor is a shortcut, so a small
change (the proxy, `core.proxy`) leads there; it is made by few neurons, without which the task stays; and the change
still leads there when the task is unlearned. On a clean model the change that leads to a class must be large, and what
it uses is the task's own: it fails no sooner than accuracy, and is unlearned with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rnp_mlflow.core.select import Seen, trades

RIVAL, SURE = 1 / 3, 0.1


@dataclass(frozen=True)
class Verdict:
    """target: the class that is suspected. score: share of the other classes' images that are called so (0 to 1).

    faded: share of the proxy's effect that unlearning took (`faded`); None without a proxy.
    """

    target: int
    score: float
    faded: float | None = None


def shares(predictions: Tensor, labels: Tensor, classes: int) -> list[float]:
    """For each class, the share of the other classes' images that are called so (0 to 1); 0 where there are none.

    predictions: of the unlearned model on clean images; labels: the true ones; int64 (N,).
    """
    labels = labels.cpu()
    found = []
    for label in range(classes):
        others = labels != label
        found.append(float((predictions[others] == label).double().mean()) if others.any() else 0.0)
    return found


def rivals(found: Sequence[float], most: int) -> list[int]:
    """Classes that may be the target, at most `most`: by share, those of at least RIVAL of the largest."""
    order = sorted(range(len(found)), key=lambda label: -found[label])
    return [label for label in order[:most] if found[label] >= RIVAL * found[order[0]]]


def faded(plain: Tensor, suspect: Tensor, unlearned: Tensor, target: int) -> float:
    """Of the images that the proxy leads to `target` in the suspect, the share that it no longer does when unlearned.

    plain: answers of the unlearned model to the other classes' images; suspect, unlearned: of both to these with
    the proxy on them; int64 (N,). Images that the unlearned model calls `target` anyway say nothing and are left
    out; of the few that may then be left the share is estimated by the rule of succession, ½ where there are none.
    """
    told = (plain != target) & (suspect == target)
    return float(((unlearned != target) & told).sum() + 1) / float(told.sum() + 2)


def doubt(size: float, cost: float, faded: float) -> float:
    """How little speaks for a backdoor, 0 to about 1. A share that faded of 0 is not taken for proof: SURE is added."""
    return size * cost * (SURE + faded)


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
