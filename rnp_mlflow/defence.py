"""All three steps in one call: tensors in, tensors out, no files, no MLflow."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from rnp_mlflow import inputs
from rnp_mlflow.config import PRESETS, Prune, Recover, Unlearn, params_of, parse, rename_hint
from rnp_mlflow.core.curve import CurvePoint
from rnp_mlflow.core.detect import detect_target
from rnp_mlflow.core.evaluate import EvalSet, resolve_precision
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.neurons import Mask
from rnp_mlflow.core.params import (
    DefenseSettings,
    DetectParams,
    Precision,
    RecoverParams,
    RepairParams,
    SweepParams,
    UnlearnParams,
)
from rnp_mlflow.core.precision import device_of
from rnp_mlflow.core.proxy import ProxyTrigger
from rnp_mlflow.core.prune import pruned_copy
from rnp_mlflow.core.selectors import confidence_of, select_point
from rnp_mlflow.core.units import forget_units, remember_units, units_of
from rnp_mlflow.core.unlearn import UnlearningResult
from rnp_mlflow.core.verdict import Confidence, TargetEstimate
from rnp_mlflow.core.wrapped import as_given
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.errors import ConfigError
from rnp_mlflow.pipeline import (
    CurveImages,
    Repair,
    draw_curve,
    holdout_split,
    recover_mask,
    repair_pruned,
    unlearn_model,
)


@dataclass(frozen=True)
class DefenseResult:
    """What `defend` returns.

    model: the purified model, in eval mode, of the type and dtypes of the model given. mask: layer → (channels,), by
    module path without a wrapper's prefix, low for neurons of a backdoor. curve: the unpruned model first. chosen: the
    point it was pruned at. repaired: the same figures of `model` after the repair; None if it was not repaired, or the
    repair did not help. estimate: the suspected target class, None if unlearning missed `clean_threshold` or there
    are two classes. benign_score: low if backdoored; None without a proxy. confidence: "clear" or "borderline" if a
    backdoor is suspected, else "no sign"; None without a proxy.
    """

    model: nn.Module = field(repr=False)
    mask: Mask = field(repr=False)
    curve: list[CurvePoint] = field(repr=False)
    chosen: CurvePoint
    repaired: CurvePoint | None
    unlearned: UnlearningResult = field(repr=False)
    estimate: TargetEstimate | None
    proxy: ProxyTrigger | None = field(repr=False)
    benign_score: float | None
    confidence: Confidence | None


def defend(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    mean: Iterable[float] | float | None = None,
    std: Iterable[float] | float | None = None,
    flip: bool = False,
    test: EvalSet | None = None,
    **settings: Unpack[DefenseSettings],
) -> DefenseResult:
    """Find a backdoor's neurons with clean images, and prune them; `model` is left unchanged.

        result = defend(model, images, labels, mean=(0.5,) * 3, std=(0.25,) * 3, seed=1, acc_ratio=0.98)
        result.model(inputs)

    model: any classifier (torchvision's, timm's, your own), on any device. It returns logits alone,
    first of a tuple, or as `logits` of a dict or object. For a float64, half or bfloat16 model the work is done on a
    float32 copy; the purified model has the given dtypes again. DataParallel is removed and put back; a compiled or
    DistributedDataParallel model comes back as the plain module.
    images, labels: clean images (N, C, H, W) with labels int64 (N,), tensors or arrays; some hundred images of all
    classes. mean, std: the model's normalisation, one value per channel or one for all, for pixels scaled to 0 to 1.
    uint8 images need them; float images are taken as the model's own input, without them.
    flip: whether a mirrored image keeps its label, so that mirrored images may be used. test: the images that the curve
    is measured on, of the same kind; without it ACC is measured on the held-out images, and ASR is None.

    Any parameter of the method may be given by name, as `seed=1` (see `help(rnp_mlflow.DefenseSettings)`).

    The same seed gives the same result bit for bit on the same machine and threads; on CUDA call
    `torch.use_deterministic_algorithms(True)` first.

    Raises:
        ConfigError: a setting is unknown or out of range, uint8 images come without mean and std, floats come with
            them, or they are not for pixels scaled to [0, 1].
        DataError: images and labels do not match, or `test` does not match the images.
        ModelError: the model has no neurons (`core.units`), cannot be copied, does not take the images, or
            returns no logits; or unlearning diverged.

    Warns:
        UserWarning: the model's accuracy on the images is near chance, so they are probably fed in the wrong way.
    """
    params = _Params.from_settings(settings)
    given, model = model, inputs.copied(model)
    device = device_of(model)
    images, labels = inputs.as_tensor(images, "images"), inputs.as_tensor(labels, "labels")
    mean, std = inputs.per_channel(mean, "mean", images), inputs.per_channel(std, "std", images)
    clean = inputs.checked(images, labels, mean, std)
    clean = LabeledImages(clean.images.to(device), clean.labels.to(device))
    transform = Preprocess.for_image_size(min(clean.images.shape[-2:]), mean or (), std or (), flip)
    classes = inputs.classes_of(model, clean.images, transform)
    remember_units(model, transform(clean.images[:2], None))
    units_of(model)  # refuses a model without any
    inputs.check_labels(clean.labels, classes)
    test = inputs.checked_test(test, clean.images, classes)
    inputs.warn_near_chance(model, *clean, transform, classes)
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
    curve = draw_curve(model, mask, sources, transform, params.sweep, detected=detected, repair=params.repair)
    chosen = curve.on_full_test_set(select_point(curve, params.sweep))
    pruned = pruned_copy(model, mask, chosen.num_pruned, curve.calibrate).eval()
    task = Repair(model, train, transform, params.repair, curve)
    purified, repaired = repair_pruned(pruned, task, chosen, params.sweep, proxy)
    forget_units(purified)
    return DefenseResult(
        as_given(purified, given), mask, curve.points, chosen, repaired, unlearned, estimate, proxy, curve.benign_score,
        confidence_of(curve, params.sweep),
    )  # fmt: skip


@dataclass(frozen=True)
class _Params:
    """The parameters of all steps."""

    unlearn: UnlearnParams
    detect: DetectParams
    recover: RecoverParams
    sweep: SweepParams
    repair: RepairParams

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "_Params":
        """Check the settings given to `defend`, and add the defaults of the others."""
        known = DefenseSettings.__annotations__.keys()
        if unknown := sorted(set(settings) - known):
            hint = rename_hint(unknown[0]) or f"defend takes no setting {unknown[0]}"
            raise ConfigError(f"{hint}; it takes {', '.join(sorted(known))}")
        values = PRESETS.get(settings.get("preset", "default"), {}) | dict(settings)
        unlearn, prune = parse(Unlearn, values), parse(Prune, values)
        return cls(
            params_of(UnlearnParams, unlearn),
            params_of(DetectParams, unlearn),
            params_of(RecoverParams, parse(Recover, values)),
            params_of(SweepParams, prune),
            params_of(RepairParams, prune),
        )

    def with_precision(self, precision: Precision) -> "_Params":
        """Return the same parameters with this precision in all steps."""
        return _Params(
            replace(self.unlearn, precision=precision),
            replace(self.detect, precision=precision),
            replace(self.recover, precision=precision),
            replace(self.sweep, precision=precision),
            replace(self.repair, precision=precision),
        )
