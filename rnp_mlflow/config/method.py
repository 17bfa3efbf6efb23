"""Parameters of the three steps of the method. Their defaults are those of `core.params`."""

from typing import Literal

from pydantic import Field

from rnp_mlflow.config.suspects import Common
from rnp_mlflow.config.values import COMMON, FILE, OUTPUT, OWN, RUN, AbsPath, Integers, Text, text
from rnp_mlflow.core.params import (
    BatchNormStats,
    DetectParams,
    MaskAveraging,
    PruningBy,
    RecoverParams,
    SelectBy,
    StopRule,
    SweepParams,
    UnlearnParams,
)
from rnp_mlflow.errors import ConfigError


class Method(Common):
    """What the three steps take."""

    preset: Literal["default", "reference"] = Field(
        "default",
        json_schema_extra=COMMON,
        description="values of the parameters that are not given: this project's, or those that make the steps "
        "behave as BackdoorBench's rnp.py",
    )


class EpochEval(Method):
    """Evaluation during training; it changes no result."""

    eval_every: int = Field(
        0,
        ge=0,
        json_schema_extra=OWN,
        description="measure ACC, ASR and RA on up to 1,000 test and triggered images every N epochs of unlearning and "
        "recovery (0 = never)",
    )


class Unlearn(EpochEval):
    """Gradient ascent on a few clean images until clean accuracy collapses."""

    model_run_id: Text = Field(
        None, json_schema_extra=RUN, description="run that holds the suspect model; auto finds or makes it"
    )
    ratio: float = Field(
        0.1,
        gt=0,
        le=1,
        json_schema_extra=COMMON,
        description="share of the clean training set that the defender has; all, if there is no test part",
    )
    index: AbsPath = Field(
        None,
        json_schema_extra=FILE,
        description="file of the defender's training indices, one integer a line; auto draws them",
    )
    holdout: float = Field(
        UnlearnParams.holdout, gt=0, lt=1, description="share of those held out to choose the threshold"
    )
    unlearning_lr: float = Field(
        UnlearnParams.unlearning_lr, gt=0, json_schema_extra=COMMON, description="learning rate of unlearning"
    )
    unlearning_epochs: int = Field(
        UnlearnParams.unlearning_epochs, ge=1, json_schema_extra=COMMON, description="epochs of unlearning, at most"
    )
    unlearning_batch_size: int = Field(
        UnlearnParams.unlearning_batch_size, ge=2, description="images per batch of unlearning, at most"
    )
    clean_threshold: float = Field(
        UnlearnParams.clean_threshold,
        ge=0,
        lt=1,
        json_schema_extra=COMMON,
        description="stop when clean accuracy is at or below this",
    )
    schedule: Integers = Field(
        UnlearnParams.schedule,
        json_schema_extra=COMMON,
        description="epochs after which unlearning_lr is divided by 10",
    )
    unlearning_stop: StopRule = Field(
        UnlearnParams.unlearning_stop, description="check after every step, or once per epoch as the reference does"
    )
    unlearning_augment: bool = Field(
        UnlearnParams.unlearning_augment,
        description="unlearn on images cropped and mirrored at random, as the reference does, or as they are",
    )
    grad_clip_norm: float = Field(
        UnlearnParams.grad_clip_norm, ge=0, description="bound on the gradient's norm (0 = none, as the reference)"
    )
    proxy_steps: int = Field(
        DetectParams.proxy_steps,
        ge=0,
        description="steps of the search for a stand-in for the trigger (a proxy), at most (0 = none, as the "
        "reference)",
    )
    proxy_classes: int = Field(
        DetectParams.proxy_classes,
        ge=1,
        description="candidate target classes that a proxy is searched for, at most, if unlearning leaves several",
    )


class Recover(EpochEval):
    """Learn a mask that brings clean accuracy back; the backdoor's neurons stay low."""

    unlearn_run_id: Text = Field(
        None, json_schema_extra=RUN, description="run that holds the unlearned model; auto finds or makes it"
    )
    alpha: float = Field(
        RecoverParams.alpha,
        gt=0,
        json_schema_extra=COMMON,
        description="weight of the cross-entropy that the mask minimises",
    )
    recovering_lr: float = Field(
        RecoverParams.recovering_lr, gt=0, json_schema_extra=COMMON, description="learning rate of the mask"
    )
    recovering_epochs: int = Field(
        RecoverParams.recovering_epochs, ge=1, json_schema_extra=COMMON, description="epochs of recovery"
    )
    recovering_batch_size: int = Field(
        RecoverParams.recovering_batch_size, ge=2, description="images per batch of recovery, at most"
    )
    recovering_augment: bool = Field(
        RecoverParams.recovering_augment,
        description="recover on images cropped and mirrored at random, as the reference does, or as they are",
    )
    mask_averaging: MaskAveraging = Field(
        RecoverParams.mask_averaging,
        description="the mask is the mean over all steps of recovery, or the last one as the reference's",
    )
    proxy_share: float = Field(
        RecoverParams.proxy_share,
        ge=0,
        lt=1,
        description="share of the other classes' images that get the proxy in recovery, labels kept (0 = none)",
    )
    suspect_steps: int = Field(
        RecoverParams.suspect_steps,
        ge=0,
        description="steps on the suspect model after each on the unlearned one, if there is a proxy (0 = none, as the "
        "reference)",
    )
    suspect_weight: float = Field(
        RecoverParams.suspect_weight, gt=0, description="factor of those steps' loss relative to the others'"
    )


class Prune(Method):
    """Prune the suspect model along the mask, draw the curve, choose the point, keep the model."""

    recover_run_id: Text = Field(
        None, json_schema_extra=RUN, description="run that holds the mask; auto finds or makes it"
    )
    mask_file: AbsPath = Field(
        None,
        json_schema_extra=FILE,
        description="use this mask (csv, or BackdoorBench's text) instead of a recover run's",
    )
    pruning_by: PruningBy = Field(
        SweepParams.pruning_by, json_schema_extra=COMMON, description="cut at mask values, or at counts"
    )
    pruning_max: float = Field(
        SweepParams.pruning_max,
        gt=0,
        json_schema_extra=COMMON,
        description="end of the sweep (by number: a count, or below 1 a share)",
    )
    pruning_step: float = Field(
        SweepParams.pruning_step,
        gt=0,
        json_schema_extra=COMMON,
        description="step of the sweep (by number: a count, or below 1 a share)",
    )
    pruning_stride: int = Field(
        SweepParams.pruning_stride,
        ge=1,
        description="evaluate every N-th point, plus all points adjacent to the proxy's failure point and to the "
        "chosen point (1 = every point, as the reference)",
    )
    pruning_number: float = Field(
        SweepParams.pruning_number,
        ge=0,
        json_schema_extra=COMMON,
        description="the fixed operating point (by number: a count or share)",
    )
    curve_eval_size: int = Field(
        SweepParams.curve_eval_size,
        ge=0,
        description="test images, and triggered ones, that the curve is measured on, at most; the unpruned model and "
        "the reported points are measured on all (0 = all throughout, as the reference)",
    )
    acc_ratio: float = Field(
        SweepParams.acc_ratio,
        gt=0,
        le=1,
        json_schema_extra=COMMON,
        description="minimum held-out accuracy by select_by=clean_acc or without a proxy, as a fraction of the "
        "unpruned model's",
    )
    refine: int = Field(
        SweepParams.refine,
        ge=0,
        description="bisections between the chosen point and the next one (0 = the sweep's points alone)",
    )
    holdout_crops: int = Field(
        SweepParams.holdout_crops,
        ge=0,
        description="random crops of each held-out image for its accuracy, up to 1,000 in all (0 = the image itself)",
    )
    proxy_ratio: float = Field(
        SweepParams.proxy_ratio,
        ge=0,
        lt=1,
        description="share of the proxy's success rate that may remain for select_by=proxy",
    )
    min_acc_ratio: float = Field(
        SweepParams.min_acc_ratio,
        gt=0,
        le=1,
        description="minimum held-out accuracy when a proxy is used, as a fraction of the unpruned model's",
    )
    margin_ratio: float = Field(
        SweepParams.margin_ratio,
        gt=0,
        le=1,
        description="pruning goes on past the point where the proxy fails while this fraction of that point's held-out "
        "accuracy is kept",
    )
    benign_threshold: float = Field(
        SweepParams.benign_threshold,
        ge=0,
        description="a backdoor is suspected if the benign score (the proxy's relative norm × its removal cost × its "
        "forgetting rate) is at most this; above it select_by=proxy prunes nothing (a backdoor from each class to "
        "another: give select_by=clean_acc)",
    )
    select_by: SelectBy = Field(
        SweepParams.select_by,
        json_schema_extra=COMMON,
        description="where to prune. proxy: where the proxy fails; clean_acc: as far as held-out accuracy allows; "
        "number: at pruning_number; asr: the oracle, which sees test ASR",
    )
    bn_stats: BatchNormStats = Field(
        SweepParams.bn_stats,
        description="BatchNorm statistics of a pruned model: shifted as the clean images say, re-estimated, or kept",
    )
    export: Literal["none", "backdoorbench"] = Field(
        "none", json_schema_extra=OUTPUT, description="also write BackdoorBench's defense_result.pt"
    )
    register_as: Text = Field(
        None,
        json_schema_extra=OUTPUT,
        description="register the purified model under this name, with the alias `purified`",
    )

    def check(self) -> None:
        """Hold the sweep to mask values, which end at 1.

        Raises:
            ConfigError: by threshold, a bound or the fixed point is above 1.
        """
        for name in ("pruning_max", "pruning_step", "pruning_number"):
            value = getattr(self, name)
            if self.pruning_by == "threshold" and value > 1:
                raise ConfigError(f"{name}={text(value)} is above 1, the highest mask value: give pruning_by=number")
