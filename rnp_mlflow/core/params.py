"""Every hyper-parameter of the method, and its default: the only place that states them.

The names are those of the command line. Bounds and descriptions are in `rnp_mlflow/config/`, which takes the defaults
from here. Imports no torch, because `--help` reads it.
"""

from dataclasses import dataclass
from typing import Literal

Precision = Literal["auto", "fp32", "bf16"]
StopRule = Literal["step", "epoch"]
MaskAveraging = Literal["steps", "none"]
PruningBy = Literal["threshold", "number"]
SelectBy = Literal["proxy", "clean_acc", "number", "asr"]
BatchNormStats = Literal["shift", "reestimate", "keep"]


@dataclass(frozen=True, kw_only=True)
class CommonParams:
    """What every step takes.

    seed: the source of every random choice. precision: `auto` counts as fp32 until `core.evaluate.resolve_precision`
    has replaced it.
    """

    seed: int = 0
    precision: Precision = "auto"


@dataclass(frozen=True, kw_only=True)
class UnlearnParams(CommonParams):
    """Gradient ascent on clean images (`core.unlearn`).

    holdout: share of the clean images that train nothing (0 to 1). clean_threshold: stop at this accuracy or below.
    schedule: epochs after which the learning rate is divided by 10. unlearning_stop: measure accuracy after every step
    in eval mode, or take the epoch's running accuracy in train mode, as the reference does. unlearning_augment: crop
    and mirror the images at random. grad_clip_norm: bound on the gradient's norm (0 = none).
    """

    holdout: float = 0.2
    unlearning_lr: float = 0.01
    unlearning_epochs: int = 20
    unlearning_batch_size: int = 64
    clean_threshold: float = 0.2
    schedule: tuple[int, ...] = (10, 20)
    unlearning_stop: StopRule = "step"
    unlearning_augment: bool = False
    grad_clip_norm: float = 20.0


@dataclass(frozen=True, kw_only=True)
class DetectParams(CommonParams):
    """The search for the target class and a proxy trigger (`core.detect`).

    proxy_steps: steps of optimisation, at most (0 = no proxy). proxy_classes: candidate targets, at most.
    """

    proxy_steps: int = 100
    proxy_classes: int = 3


@dataclass(frozen=True, kw_only=True)
class RecoverParams(CommonParams):
    """Learning the mask (`core.recover`).

    alpha: weight of the cross-entropy. recovering_augment: crop and mirror the images at random. mask_averaging: take
    the mean of the mask over all steps, or the last mask. proxy_share: share of the other classes' images that get the
    proxy trigger (0 = use no proxy). suspect_steps: steps on the suspect model after each on the unlearned one, if
    there is a proxy. suspect_weight: factor of their loss.
    """

    alpha: float = 0.2
    recovering_lr: float = 0.2
    recovering_epochs: int = 10
    recovering_batch_size: int = 32
    recovering_augment: bool = False
    mask_averaging: MaskAveraging = "steps"
    proxy_share: float = 0.5
    suspect_steps: int = 2
    suspect_weight: float = 2.0


@dataclass(frozen=True, kw_only=True)
class SweepParams(CommonParams):
    """The pruning curve and the choice of a point on it (`core.pruning_curve`).

    pruning_max, pruning_step, pruning_number: mask values or, by number, counts (below 1: shares of all neurons).
    pruning_stride: evaluate every N-th point, plus the neighbours of those that matter. curve_eval_size: images that
    the curve is measured on, at most (0 = all). acc_ratio, min_acc_ratio, margin_ratio, proxy_ratio: see
    `core.select.SelectionRule`. refine: bisections after the sweep. holdout_crops: random crops of each held-out image
    (0 = the image itself). benign_threshold: suspect a backdoor if the benign score is at most this.
    """

    pruning_by: PruningBy = "threshold"
    pruning_max: float = 0.9
    pruning_step: float = 0.05
    pruning_stride: int = 2
    pruning_number: float = 0.7
    curve_eval_size: int = 1000
    acc_ratio: float = 0.95
    refine: int = 4
    holdout_crops: int = 5
    proxy_ratio: float = 0.01
    min_acc_ratio: float = 0.8
    margin_ratio: float = 0.975
    benign_threshold: float = 0.007
    select_by: SelectBy = "proxy"
    bn_stats: BatchNormStats = "shift"
