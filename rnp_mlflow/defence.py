"""All three steps in one call: tensors in, tensors out, no files, no MLflow."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from rnp_mlflow.config import PRESETS, Prune, Recover, Unlearn, params_of, parse, rename_hint
from rnp_mlflow.core.curve import CurvePoint
from rnp_mlflow.core.detect import count_classes, detect_target
from rnp_mlflow.core.evaluate import EvalSet, resolve_precision
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.neurons import Mask, norm_layers
from rnp_mlflow.core.params import (
    BatchNormStats,
    DetectParams,
    MaskAveraging,
    Precision,
    PruningBy,
    RecoverParams,
    SelectBy,
    StopRule,
    SweepParams,
    UnlearnParams,
)
from rnp_mlflow.core.proxy import ProxyTrigger
from rnp_mlflow.core.prune import pruned_copy
from rnp_mlflow.core.pruning_curve import select_point
from rnp_mlflow.core.unlearn import UnlearningResult
from rnp_mlflow.core.verdict import TargetEstimate
from rnp_mlflow.core.wrapped import as_given, working_copy
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.errors import ConfigError, DataError, ModelError
from rnp_mlflow.pipeline import CurveImages, draw_curve, holdout_split, recover_mask, unlearn_model


class DefenseSettings(TypedDict, total=False):
    """What `defend` takes by name; defaults are those of `core/params.py`, bounds and meanings those of `config`."""

    preset: str  # "default", or "reference": behave as BackdoorBench's rnp.py
    seed: int
    precision: Precision
    # unlearning
    holdout: float
    unlearning_lr: float
    unlearning_epochs: int
    unlearning_batch_size: int
    clean_threshold: float
    schedule: tuple[int, ...]
    unlearning_stop: StopRule
    unlearning_augment: bool
    grad_clip_norm: float
    # detection
    proxy_steps: int
    proxy_classes: int
    # recovery
    alpha: float
    recovering_lr: float
    recovering_epochs: int
    recovering_batch_size: int
    recovering_augment: bool
    mask_averaging: MaskAveraging
    proxy_share: float
    suspect_steps: int
    suspect_weight: float
    # the pruning curve and the choice of a point
    pruning_by: PruningBy
    pruning_max: float
    pruning_step: float
    pruning_stride: int
    pruning_number: float
    curve_eval_size: int
    acc_ratio: float
    refine: int
    holdout_crops: int
    proxy_ratio: float
    min_acc_ratio: float
    margin_ratio: float
    benign_threshold: float
    select_by: SelectBy
    bn_stats: BatchNormStats


@dataclass(frozen=True)
class DefenseResult:
    """What `defend` returns.

    model: the purified model, in eval mode, of the type and dtypes of the model given. mask: layer → (channels,), by
    module path without a wrapper's prefix, low for neurons of a backdoor. curve: the unpruned model first. chosen: the
    point it was pruned at. estimate: the suspected target class, None if unlearning missed `clean_threshold` or there
    are two classes. benign_score: low if backdoored (up to `benign_threshold` a backdoor is suspected), None without a
    proxy.
    """

    model: nn.Module = field(repr=False)
    mask: Mask = field(repr=False)
    curve: list[CurvePoint] = field(repr=False)
    chosen: CurvePoint
    unlearned: UnlearningResult = field(repr=False)
    estimate: TargetEstimate | None
    proxy: ProxyTrigger | None = field(repr=False)
    benign_score: float | None


def defend(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    flip: bool = False,
    test: EvalSet | None = None,
    **settings: Unpack[DefenseSettings],
) -> DefenseResult:
    """Find a backdoor's neurons with clean images, and prune them; `model` is left unchanged.

        result = defend(model, images, labels, mean=(0.5,) * 3, std=(0.25,) * 3, seed=1, acc_ratio=0.98)
        result.model(inputs)

    model: any classifier with BatchNorm (torchvision's, timm's, your own), on any device. It returns logits alone,
    first of a tuple, or as `logits` of a dict or object. For a float64, half or bfloat16 model the work is done on a
    float32 copy; the purified model has the given dtypes again. DataParallel is removed and put back; a compiled or
    DistributedDataParallel model comes back as the plain module.
    images, labels: clean images (N, C, H, W) with labels int64 (N,), tensors or arrays; some hundred images of all
    classes. mean, std: the model's normalisation, one value per channel, for pixels scaled to 0 to 1. uint8 images need
    them; float images are taken as the model's own input, without them.
    flip: whether a mirrored image keeps its label, so that mirrored images may be used. test: the images that the curve
    is measured on, of the same kind; without it ACC is measured on the held-out images, and ASR is None.

    Any of these may be given by name, as `seed=1` (defaults: `rnp_mlflow.UnlearnParams` and so on; meanings:
    `python -m rnp_mlflow main --help-all`):
    general: seed, precision, preset ("reference": behave as BackdoorBench's rnp.py);
    unlearning: holdout, unlearning_lr, unlearning_epochs, unlearning_batch_size, clean_threshold, schedule,
    unlearning_stop, unlearning_augment, grad_clip_norm;
    detection: proxy_steps, proxy_classes, benign_threshold;
    recovery: alpha, recovering_lr, recovering_epochs, recovering_batch_size, recovering_augment, mask_averaging,
    proxy_share, suspect_steps, suspect_weight;
    pruning: pruning_by, pruning_max, pruning_step, pruning_stride, pruning_number, curve_eval_size, refine,
    holdout_crops, select_by, acc_ratio, proxy_ratio, min_acc_ratio, margin_ratio, bn_stats.

    The same seed gives the same result bit for bit on the same machine and threads; on CUDA call
    `torch.use_deterministic_algorithms(True)` first.

    Raises:
        ConfigError: a setting is unknown or out of range, uint8 images come without mean and std, floats come with
            them, or they are not for pixels scaled to [0, 1].
        DataError: images and labels do not match.
        ModelError: the model has no BatchNorm layer with a scale, does not take the images, or returns no logits; or
            unlearning diverged.
    """
    params = _Params.from_settings(settings)
    given, model = model, working_copy(model)
    device = next(iter(norm_layers(model).values())).weight.device
    clean = _checked(torch.as_tensor(images), torch.as_tensor(labels), mean, std)
    clean = LabeledImages(clean.images.to(device), clean.labels.to(device))
    transform = Preprocess.for_image_size(clean.images.shape[-1], mean or (), std or (), flip)
    test = _as_float32(test)
    _check_labels(clean.labels, _count_classes(model, clean.images, transform))
    holdout_idx = holdout_split(clean.labels.cpu(), params.unlearn.holdout, params.unlearn.seed)
    train_mask = torch.ones(len(clean.labels), dtype=torch.bool)
    train_mask[holdout_idx] = False
    train, holdout = clean.select(train_mask), clean.select(holdout_idx)
    params = params.with_precision(resolve_precision(params.unlearn.precision, model, train.images, transform))
    unlearned = unlearn_model(model, train, transform, params.unlearn)
    detected = detect_target(model, unlearned, train, transform, params.detect)
    estimate, proxy = detected
    mask = recover_mask(unlearned.model, train, transform, params.recover, suspect=model, proxy=proxy).mask
    sources = CurveImages(train, holdout, test or EvalSet(*holdout))
    curve = draw_curve(model, mask, sources, transform, params.sweep, detected=detected)
    chosen = curve.on_full_test_set(select_point(curve, params.sweep))
    purified = as_given(pruned_copy(model, mask, chosen.num_pruned, curve.calibrate).eval(), given)
    return DefenseResult(purified, mask, curve.points, chosen, unlearned, estimate, proxy, curve.benign_score)


@dataclass(frozen=True)
class _Params:
    """The parameters of all steps."""

    unlearn: UnlearnParams
    detect: DetectParams
    recover: RecoverParams
    sweep: SweepParams

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "_Params":
        """Check the settings given to `defend`, and add the defaults of the others."""
        known = DefenseSettings.__annotations__.keys()
        if unknown := sorted(set(settings) - known):
            hint = rename_hint(unknown[0]) or f"defend takes no setting {unknown[0]}"
            raise ConfigError(f"{hint}; it takes {', '.join(sorted(known))}")
        values = PRESETS.get(settings.get("preset", "default"), {}) | dict(settings)
        unlearn = parse(Unlearn, values)
        return cls(
            params_of(UnlearnParams, unlearn),
            params_of(DetectParams, unlearn),
            params_of(RecoverParams, parse(Recover, values)),
            params_of(SweepParams, parse(Prune, values)),
        )

    def with_precision(self, precision: Precision) -> "_Params":
        """Return the same parameters with this precision in all steps."""
        return _Params(
            replace(self.unlearn, precision=precision),
            replace(self.detect, precision=precision),
            replace(self.recover, precision=precision),
            replace(self.sweep, precision=precision),
        )


def _checked(images: Tensor, labels: Tensor, mean: Any, std: Any) -> LabeledImages:
    """Check images, labels and normalisation; return floats as float32 and labels as int64."""
    if images.ndim != 4 or labels.shape != images.shape[:1] or len(images) < 4 or labels.is_floating_point():
        raise DataError(
            f"images must be (N, C, H, W) with as many whole labels, N ≥ 4; not {tuple(images.shape)} and "
            f"{labels.dtype} {tuple(labels.shape)}"
        )
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise DataError(f"images must be uint8 pixels or floats as the model takes them, not {images.dtype}")
    if images.is_floating_point() and (mean is not None or std is not None):
        raise ConfigError("float images are taken as the model wants them: give uint8 pixels, or no mean and std")
    if mean and std and not (all(0 <= m <= 1 for m in mean) and all(0 < s <= 1 for s in std)):
        raise ConfigError(f"mean and std are for pixels scaled to [0, 1], not 0 to 255: {tuple(mean)}, {tuple(std)}")
    if images.dtype == torch.uint8 and not (mean and std and len(mean) == len(std) == images.shape[1]):
        raise ConfigError(f"uint8 images need the model's mean and std, {images.shape[1]} values each")
    return LabeledImages(images.float() if images.is_floating_point() else images, labels.long())


def _check_labels(labels: Tensor, classes: int) -> None:
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"labels must be from 0 to {classes - 1}, as the model has {classes} classes")


def _as_float32(test: EvalSet | None) -> EvalSet | None:
    """Return the same with float images in float32, as the working copy takes them."""
    if test is None or not test.images.is_floating_point():
        return test
    bad = test.triggered.float() if test.triggered is not None else None
    return replace(test, images=test.images.float(), triggered=bad)


def _count_classes(model: nn.Module, images: Tensor, transform: Preprocess) -> int:
    """Return how many classes the model has.

    Raises:
        ModelError: it does not take these images, or returns no logits.
    """
    try:
        return count_classes(model, images, transform)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"the model cannot take images of {tuple(images.shape[1:])}: {reason}") from None
