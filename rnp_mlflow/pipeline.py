"""The steps of the method with their random numbers and augmentation: tensors in, tensors out, no files, no MLflow.

`core` takes a generator and a transform and knows neither how images are cropped nor what each random number is for.
That is said here once, for `defend` and for the entry points.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from rnp_mlflow.core.batches import NO_HOOKS, StepCallback, TrainingHooks, ignore_step
from rnp_mlflow.core.bn_stats import bn_shift_fn, reestimate_
from rnp_mlflow.core.curve import CurvePoint, Evaluator
from rnp_mlflow.core.evaluate import EvalSet, evenly_spaced
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.neurons import Mask
from rnp_mlflow.core.params import RecoverParams, RepairParams, SweepParams, UnlearnParams
from rnp_mlflow.core.proxy import ProxyTrigger
from rnp_mlflow.core.prune import BNCalibration
from rnp_mlflow.core.pruning_curve import PruningCurve
from rnp_mlflow.core.recover import RecoveryResult, recover
from rnp_mlflow.core.repair import is_kept, is_needed, repair
from rnp_mlflow.core.seeds import generator, seeded
from rnp_mlflow.core.trace import trace_curve
from rnp_mlflow.core.units import norm_layers
from rnp_mlflow.core.unlearn import UnlearningResult, unlearn
from rnp_mlflow.core.verdict import TargetEstimate
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.data.subset import holdout_indices

STATISTICS = 200  # clean images that a pruned model's BatchNorm statistics are calibrated with, at most
VIEWS = 1000  # held-out images that held-out accuracy is measured on, at most; crops of one image count


class CurveImages(NamedTuple):
    """train: the clean images that trained the mask, for `bn_stats`. holdout: those that trained nothing."""

    train: LabeledImages
    holdout: LabeledImages
    eval_set: EvalSet


def holdout_split(labels: Tensor, share: float, seed: int) -> Tensor:
    """Return the positions (int64, sorted) of the clean images that are held out; labels: of all, on the CPU."""
    return holdout_indices(labels, share, generator(seed, "holdout"))


def unlearn_model(
    model: nn.Module,
    clean: LabeledImages,
    transform: Preprocess,
    params: UnlearnParams,
    *,
    hooks: TrainingHooks = NO_HOOKS,
) -> UnlearningResult:
    """Run step 1 (`core.unlearn`)."""
    seen = transform.with_augmentation(params.unlearning_augment)
    with seeded(params.seed, "unlearn") as numbers:
        return unlearn(model, clean, seen, numbers, params, hooks=hooks)


def recover_mask(
    unlearned: nn.Module,
    clean: LabeledImages,
    transform: Preprocess,
    params: RecoverParams,
    *,
    suspect: nn.Module,
    proxy: ProxyTrigger | None = None,
    hooks: TrainingHooks = NO_HOOKS,
) -> RecoveryResult:
    """Run step 2 (`core.recover`)."""
    seen = transform.with_augmentation(params.recovering_augment)
    with seeded(params.seed, "recover") as numbers:
        return recover(unlearned, clean, seen, numbers, params, proxy=proxy, suspect=suspect, hooks=hooks)


def draw_curve(
    model: nn.Module,
    mask: Mask,
    images: CurveImages,
    transform: Preprocess,
    params: SweepParams,
    *,
    detected: tuple[TargetEstimate | None, ProxyTrigger | None] = (None, None),
    on_point: Callable[[CurvePoint], object] = lambda point: None,
) -> PruningCurve:
    """Run step 3's sweep (`core.trace`).

    detected: what `core.detect` found. on_point: receives each point.
    """
    estimate, proxy = detected
    calibrate = bn_calibration(model, images.train, transform, params)
    holdout = holdout_views(images.holdout, transform, params)
    evaluator = Evaluator(images.eval_set, holdout, transform, proxy, params.precision)
    return trace_curve(model, mask, evaluator, params, calibrate=calibrate, estimate=estimate, on_point=on_point)


def repair_pruned(
    pruned: nn.Module,
    suspect: nn.Module,
    clean: LabeledImages,
    transform: Preprocess,
    params: RepairParams,
    *,
    curve: PruningCurve,
    point: CurvePoint,
    on_step: StepCallback = ignore_step,
) -> tuple[nn.Module, CurvePoint | None]:
    """Repair what `point` prunes (`core.repair`); return the model, and its figures on all test images.

    The model is `pruned` itself, and the point None, if no repair is wanted, or it is not needed or did not help.
    """
    if not (params.repair_steps and is_needed(point, curve.points[0])):
        return pruned, None
    with seeded(params.seed, "repair") as numbers:
        repaired = repair(pruned, suspect, clean, transform, numbers, params=params, on_step=on_step)
    found = curve.measure(point, repaired)
    return (repaired, found) if is_kept(point, found, curve.points[0]) else (pruned, None)


def bn_calibration(
    model: nn.Module, clean: LabeledImages, transform: Preprocess, params: SweepParams
) -> BNCalibration | None:
    """Return what `bn_stats` does to a pruned copy of `model`, with these clean images.

    None for keep, and for a model without BatchNorm, which has no statistics.
    """
    if not norm_layers(model):
        return None
    some = clean.select(evenly_spaced(len(clean.labels), STATISTICS))
    if params.bn_stats == "shift":
        return bn_shift_fn(model, some.images, transform, params.precision)
    if params.bn_stats == "reestimate":
        crops, _ = transform.random_crops(*some, params.holdout_crops, generator(params.seed, "crops"))
        return lambda pruned: reestimate_(pruned, crops, transform, params.precision)
    return None


def views_of(params: SweepParams, count: int) -> tuple[int, int]:
    """Return how many of `count` held-out images are evaluated, and how many random crops of each (0 = itself)."""
    some = min(count, VIEWS)
    return some, min(params.holdout_crops, max(1, VIEWS // some))


def holdout_views(holdout: LabeledImages, transform: Preprocess, params: SweepParams) -> LabeledImages:
    """Return random crops for held-out accuracy: `holdout_crops` per image, capped at VIEWS in total."""
    count, crops = views_of(params, len(holdout.labels))
    some = holdout.select(evenly_spaced(len(holdout.labels), count))
    return LabeledImages(*transform.random_crops(*some, crops, generator(params.seed, "views")))
