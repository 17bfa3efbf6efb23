"""Is the model backdoored, and to which class? From clean images alone.

*Which class:* unlearning removes the task and leaves the backdoor (Li et al., ICML 2023, section 3.2): a backdoored
model then classifies more images as its target class than as any other. *Whether:* a backdoor is a shortcut, so a small
perturbation (the proxy, `core.proxy`) leads there; few neurons make it, and pruning them keeps the task; and the
perturbation still leads there when the task is unlearned. On a clean model the perturbation that leads to a class must
be large, and it relies on task features, so pruning breaks it no earlier than accuracy, and unlearning removes both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from statistics import NormalDist, median
from typing import Literal

from torch import Tensor

from rnp_mlflow.core.select import TriggerFreeMetrics, proxy_accuracy_tradeoff

RIVAL_RATIO, FORGETTING_OFFSET = 1 / 3, 0.1
NORM_FREE_FACTOR = 0.4  # makes the limits of the score without BatchNorm those of the other
# Natural logarithms of the benign scores of clean models (benchmarks/clean_scores.json): nearly normal
CLEAN_SCORES = NormalDist(-3.8307, 0.7075)
NORM_FREE_CLEAN_SCORES = NormalDist(-4.3060, 0.3976)  # benchmarks/clean_scores_norm_free.json

Confidence = Literal["clear", "borderline", "no sign"]


@dataclass(frozen=True)
class TargetEstimate:
    """target: the suspected class. target_share: share of the other classes' images classified as it (0 to 1).

    forgetting_rate: share of the proxy's effect that unlearning removed (0 to 1); None without a proxy.
    norm_ratio: norm of the proxy relative to the median of the other classes' proxies; None with BatchNorm, if
    fewer than two others were searched for.
    """

    target: int
    target_share: float
    forgetting_rate: float | None = None
    norm_ratio: float | None = None


def predicted_shares(predictions: Tensor, labels: Tensor, classes: int) -> list[float]:
    """Return for each class the share of the other classes' images classified as it (0 to 1); 0 if there are none.

    predictions: of the unlearned model on clean images; labels: the true ones; int64 (N,).
    """
    labels = labels.cpu()
    found = []
    for label in range(classes):
        others = labels != label
        found.append(float((predictions[others] == label).double().mean()) if others.any() else 0.0)
    return found


def candidate_targets(shares: Sequence[float], most: int, ratio: float = RIVAL_RATIO) -> list[int]:
    """Return at most `most` classes that may be the target: largest share first, none below `ratio` of it."""
    order = sorted(range(len(shares)), key=lambda label: -shares[label])
    return [label for label in order[:most] if shares[label] >= ratio * shares[order[0]]]


def forgetting_rate(plain: Tensor, suspect: Tensor, unlearned: Tensor, target: int) -> float:
    """Return the share of the images flipped by the proxy in the suspect that it no longer flips after unlearning.

    plain: predictions of the unlearned model for the other classes' images; suspect, unlearned: of both models for
    the same images with the proxy; int64 (N,). Images already classified as `target` without the proxy are excluded.
    The rate is Laplace-smoothed, (k+1)/(n+2), so it is 0.5 if none remain.
    """
    counted = (plain != target) & (suspect == target)
    return float(((unlearned != target) & counted).sum() + 1) / float(counted.sum() + 2)


def benign_score(relative_norm: float, removal_cost: float, forgetting_rate: float) -> float:
    """Return the benign score, 0 to about 1 (low = backdoored).

    FORGETTING_OFFSET keeps a forgetting rate of 0 from forcing the score to 0.
    """
    return relative_norm * removal_cost * (FORGETTING_OFFSET + forgetting_rate)


def norm_free_score(norm_ratio: float, removal_cost: float) -> float:
    """Return the benign score of a network without BatchNorm, 0 to about 1 (low = backdoored).

    The control is the model itself: the proxies to its other classes. The ratio separates better than the cost, so it
    counts twice. What unlearning removes says little there, because the ascent may end by a bias alone.
    """
    return norm_ratio**2 * removal_cost * NORM_FREE_FACTOR


def norm_ratio(norms: Sequence[float]) -> float | None:
    """Return the lowest norm of the classes' proxies relative to the median of the others; None if these are too few.

    norms: of the proxies to at least three classes.
    """
    lowest, *others = sorted(norms)
    return lowest / median(others) if len(others) > 1 else None


def confidence(score: float, clear_threshold: float, benign_threshold: float) -> Confidence:
    """Return how sure it is that the model is backdoored, by its benign score."""
    if score > benign_threshold:
        return "no sign"
    return "clear" if score <= clear_threshold else "borderline"


def false_alarm_rate(score: float, norm_free: bool = False) -> float:
    """Return the estimated share of clean models whose benign score is at most this (0 to 1).

    It is the distribution function of `CLEAN_SCORES`, so a rate far below 1 / their number is extrapolated.
    norm_free: whether it is a `norm_free_score`.
    """
    scores = NORM_FREE_CLEAN_SCORES if norm_free else CLEAN_SCORES
    return scores.cdf(log(score)) if score > 0 else 0.0


def removal_cost(points: Sequence[TriggerFreeMetrics]) -> float:
    """Return the minimum over the curve of (share of the proxy's success left) + (share of accuracy lost).

    points: the unpruned model first, on held-out images. 0 to 1; 1 if no proxy works on the unpruned model.
    """
    return min(map(sum, proxy_accuracy_tradeoff(points))) if points[0].proxy_asr else 1.0


def relative_norm(delta: Tensor, inputs: Tensor) -> float:
    """Return the ℓ2 norm of `delta` (C, H, W) divided by the root mean square distance of inputs from their mean.

    inputs: clean ones, (N, C, H, W). 1: as large as the difference between images. 0: all inputs are the same.
    """
    typical_norm = float((inputs - inputs.mean(0)).square().sum((1, 2, 3)).mean().sqrt())
    return float(delta.norm()) / typical_norm if typical_norm else 0.0
