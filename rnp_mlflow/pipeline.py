"""The steps of the method with their random numbers and augmentation: tensors in, tensors out, no files, no MLflow.

`core` takes a generator and a transform and knows neither how images are cropped nor what each random number is for.
That is said here once, for `defend` and for the entry points.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor, nn

from rnp_mlflow.core.batches import NO_HOOKS, TrainingHooks
from rnp_mlflow.core.bn_stats import bn_shift_fn, reestimate_
from rnp_mlflow.core.curve import CurvePoint, Evaluator
from rnp_mlflow.core.detect import ignore_search
from rnp_mlflow.core.evaluate import EvalSet, evenly_spaced
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.neurons import Mask
from rnp_mlflow.core.params import RecoverParams, RepairParams, SweepParams, UnlearnParams
from rnp_mlflow.core.proxy import ProxyTrigger
from rnp_mlflow.core.prune import BNCalibration, pruned_copy
from rnp_mlflow.core.pruning_curve import PruningCurve
from rnp_mlflow.core.recover import RecoveryResult, recover
from rnp_mlflow.core.repair import is_gone, is_kept, is_needed, least_acc_ratio, repair, steps_of, thorough
from rnp_mlflow.core.seeds import generator, seeded
from rnp_mlflow.core.selectors import backdoor_suspected, by_rule, confidence_of
from rnp_mlflow.core.trace import trace_curve
from rnp_mlflow.core.units import norm_layers
from rnp_mlflow.core.unlearn import UnlearningResult, unlearn
from rnp_mlflow.core.verdict import TargetEstimate
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.data.subset import holdout_indices

NORMS = (1.0, 0.75, 0.5)  # of `repair_proxy`, tried in this order
STATISTICS = 200  # clean images that a pruned model's BatchNorm statistics are calibrated with, at most
VIEWS = 1000  # held-out images that held-out accuracy is measured on, at most; crops of one image count


class Repaired(NamedTuple):
    """A repaired model, and its figures on all test images."""

    model: nn.Module
    point: CurvePoint


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
    repair: RepairParams | None = None,
    on_point: Callable[[CurvePoint], object] = lambda point: None,
) -> PruningCurve:
    """Run step 3's sweep (`core.trace`).

    Without BatchNorm, what the verdict asks is the cost of a repair with the proxy, which is tried here.
    detected: what `core.detect` found. on_point: receives each point.
    """
    estimate, proxy = detected
    calibrate = bn_calibration(model, images.train, transform, params)
    holdout = holdout_views(images.holdout, transform, params)
    evaluator = Evaluator(images.eval_set, holdout, transform, proxy, params.precision)
    careful = bool(proxy and repair and repair.repair_steps and repair.repair_proxy and not norm_layers(model))
    curve = trace_curve(
        model, mask, evaluator, params, calibrate=calibrate, estimate=estimate, careful=careful, on_point=on_point
    )  # fmt: skip
    if not (curve.careful and repair and proxy):
        return curve
    point = by_rule(curve, params)
    task = Repair(model, images.train, transform, repair, curve)
    return curve.tried(task.repaired(pruned_copy(model, mask, point.num_pruned).eval(), point, proxy).point)


@dataclass(frozen=True)
class Repair:
    """A repair (`core.repair`) with its random numbers. suspect: the model before pruning.

    on_step: receives the number of steps made, how many there are, and the loss.
    """

    suspect: nn.Module
    clean: LabeledImages
    transform: Preprocess
    params: RepairParams
    curve: PruningCurve
    on_step: Callable[[int, int, float], object] = ignore_search

    def repaired(
        self, pruned: nn.Module, point: CurvePoint, proxy: ProxyTrigger | None = None, share: float = 1.0
    ) -> Repaired:
        """Repair `pruned`, which `point` describes. proxy: to be ignored with a norm of `share` × `repair_proxy`."""
        carried = proxy.scaled(share * self.params.repair_proxy) if proxy else None
        steps = steps_of(self.params, carried)
        with seeded(self.params.seed, "repair") as numbers:
            model = repair(
                pruned, self.suspect, self.clean, self.transform, numbers,
                params=self.params, proxy=carried, on_step=lambda step, loss: self.on_step(step, steps, loss),
            )  # fmt: skip
        return Repaired(model, self.curve.measure(point, model))

    def with_proxy(
        self, pruned: nn.Module, point: CurvePoint, proxy: ProxyTrigger, min_acc_ratio: float
    ) -> Repaired | None:
        """Repair thoroughly with the proxy, at the largest of the norms that accuracy allows; None if it allows none.

        min_acc_ratio: minimum held-out accuracy, as a fraction of the unpruned model's.
        """
        task, unpruned = replace(self, params=thorough(self.params)), self.curve.points[0]
        for share in NORMS:
            found = task.repaired(pruned, point, proxy, share)
            if found.point.holdout_acc >= min_acc_ratio * unpruned.holdout_acc and is_gone(found.point, unpruned):
                return found
        return None


def repair_pruned(
    pruned: nn.Module, task: Repair, point: CurvePoint, sweep: SweepParams, proxy: ProxyTrigger | None = None
) -> tuple[nn.Module, CurvePoint | None]:
    """Repair what `point` prunes; return the model, and its figures on all test images.

    The model is `pruned` itself, and the point None, if no repair is wanted, or it is not needed or did not help.
    Without BatchNorm, a suspected backdoor is removed with the proxy, as far as held-out accuracy allows
    (`core.repair.least_acc_ratio`).
    """
    params, curve = task.params, task.curve
    if proxy and curve.careful and backdoor_suspected(curve, sweep):
        borderline = confidence_of(curve, sweep) == "borderline"
        return task.with_proxy(pruned, point, proxy, least_acc_ratio(sweep, borderline)) or (pruned, None)
    if not (params.repair_steps and is_needed(point, curve.points[0])):
        return pruned, None
    plain = task.repaired(pruned, point)
    return plain if is_kept(point, plain.point, curve.points[0]) else (pruned, None)


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
