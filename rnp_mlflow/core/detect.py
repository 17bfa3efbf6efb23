"""Which class the unlearned model reveals as the target, and a proxy trigger that leads to it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rnp_mlflow.core import verdict
from rnp_mlflow.core.batches import StepCallback, ignore_step
from rnp_mlflow.core.evaluate import Transform, predict
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.params import DetectParams
from rnp_mlflow.core.precision import logits_of
from rnp_mlflow.core.proxy import ProxyTrigger, invert_trigger
from rnp_mlflow.core.seeds import generator
from rnp_mlflow.core.units import norm_layers
from rnp_mlflow.core.unlearn import UnlearningResult
from rnp_mlflow.core.verdict import TargetEstimate

WITHOUT_BATCHNORM = 10  # candidate classes, at most


@torch.inference_mode()
def count_classes(model: nn.Module, images: Tensor, transform: Transform) -> int:
    """Return the number of logits; the model is left in eval mode."""
    return logits_of(model.eval()(transform(images[:2], None))).shape[-1]


def ignore_search(step: int, steps: int, success: float) -> None:
    """Do nothing after a step of the search."""


def detect_target(
    model: nn.Module,
    unlearned: UnlearningResult,
    clean: LabeledImages,
    transform: Transform,
    params: DetectParams,
    *,
    on_step: Callable[[int, int, float], object] = ignore_search,
) -> tuple[TargetEstimate | None, ProxyTrigger | None]:
    """Estimate the target class (`core.verdict`) and find a proxy to it (`core.proxy`), unless `proxy_steps` is 0.

    Of several candidates, the one whose proxy is small and survives unlearning is taken. Without BatchNorm the ascent
    can end by a bias alone, which leads to any class: then up to `WITHOUT_BATCHNORM` classes are candidates, and the
    one with the smallest proxy is taken. (None, None) if unlearning missed its threshold, or for two classes, because
    an error of one is a prediction of the other. on_step: receives the number of steps made, the number there are at
    most, and the share of a batch that the proxy led to its target.
    """
    classes = count_classes(unlearned.model, clean.images, transform)
    if not unlearned.reached_threshold or classes < 3:
        return None, None
    predicted = predict(unlearned.model, clean.images, transform, params.precision)
    shares = verdict.predicted_shares(predicted, clean.labels, classes)
    batchnorm = bool(norm_layers(model))
    most, ratio = (params.proxy_classes, verdict.RIVAL_RATIO) if batchnorm else (WITHOUT_BATCHNORM, 0.0)
    first, *others = verdict.candidate_targets(shares, most, ratio)
    if not params.proxy_steps or bool((clean.labels == first).all()):
        return TargetEstimate(first, shares[first]), None
    models = SuspectPair(model, unlearned.model, predicted)
    candidates, steps = (first, *others), params.proxy_steps

    def score(k: int) -> tuple[float, float, ProxyTrigger]:
        def show(step: int, success: float) -> None:
            on_step(k * steps + step, len(candidates) * steps, success)

        return score_target(models, clean, transform, params, target=candidates[k], on_step=show)

    scored = [score(k) for k in range(len(candidates))]
    _, forgetting_rate, proxy = min(
        scored, key=lambda each: verdict.benign_score(each[0], 1.0, each[1]) if batchnorm else each[0]
    )
    ratio_found = None if batchnorm else verdict.norm_ratio([norm for norm, _, _ in scored])
    return TargetEstimate(proxy.target, shares[proxy.target], forgetting_rate, ratio_found), proxy


@dataclass(frozen=True)
class SuspectPair:
    """The model before and after unlearning. predicted: the unlearned model's predictions (N,) for the clean images."""

    suspect: nn.Module
    unlearned: nn.Module
    predicted: Tensor


def score_target(
    models: SuspectPair,
    clean: LabeledImages,
    transform: Transform,
    params: DetectParams,
    *,
    target: int,
    on_step: StepCallback = ignore_step,
) -> tuple[float, float, ProxyTrigger]:
    """Find a proxy to `target`; return its norm, its forgetting rate (`core.verdict`), and the proxy."""
    seeded = generator(params.seed, "proxy")  # the same for every candidate
    proxy = invert_trigger(models.suspect, clean, transform, seeded, params, target=target, on_step=on_step)
    others = clean.labels != target
    images, plain = clean.images[others], models.predicted[others.cpu()]
    with_proxy = proxy.composed_with(transform)
    before, after = (
        predict(net, images, with_proxy, params.precision) for net in (models.suspect, models.unlearned)
    )  # fmt: skip
    return float(proxy.delta.norm()), verdict.forgetting_rate(plain, before, after, target), proxy
