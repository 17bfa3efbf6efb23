"""Every hyper-parameter of the method: its name, type, bounds, default and meaning, in one place.

The names are those of the command line; `rnp_mlflow.config` takes the fields from here, and adds what runs need.
Imports no torch, because `--help` reads it.
"""

from dataclasses import dataclass, fields
from typing import Annotated, Literal, TypedDict, get_type_hints

from pydantic import Field, JsonValue

Precision = Literal["auto", "fp32", "bf16"]
StopRule = Literal["step", "epoch"]
MaskAveraging = Literal["steps", "none"]
PruningBy = Literal["threshold", "number"]
SelectBy = Literal["proxy", "clean_acc", "number", "asr"]
BatchNormStats = Literal["shift", "reestimate", "keep"]

COMMON: dict[str, JsonValue] = {"common": True}  # people set it often: `--help` shows it, `--help-all` shows all
OWN: dict[str, JsonValue] = {"role": "own"}  # of the step asked for; the runs before it may have another value
OWN_COMMON = COMMON | OWN


@dataclass(frozen=True, kw_only=True)
class CommonParams:
    """What every step takes.

    In core, a precision of `auto` counts as fp32 until `core.evaluate.resolve_precision` has replaced it.
    """

    seed: Annotated[
        int, Field(ge=0, lt=2**63, json_schema_extra=OWN_COMMON, description="source of every random choice")
    ] = 0
    precision: Annotated[
        Precision,
        Field(
            json_schema_extra=OWN,
            description="number format: fp32, or bf16, two to six times as fast on processors that have it; auto takes "
            "bf16 there for a model that predicts the same with it (and trains one in fp32)",
        ),
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class UnlearnParams(CommonParams):
    """Gradient ascent on clean images (`core.unlearn`).

    unlearning_stop: `step` measures accuracy after every step in eval mode; `epoch` takes the epoch's running accuracy
    in train mode.
    """

    holdout: Annotated[float, Field(gt=0, lt=1, description="share of those held out to choose the threshold")] = 0.2
    unlearning_lr: Annotated[
        float, Field(gt=0, le=1e6, json_schema_extra=COMMON, description="learning rate of unlearning")
    ] = 0.01
    unlearning_epochs: Annotated[
        int, Field(ge=1, json_schema_extra=COMMON, description="epochs of unlearning, at most")
    ] = 20
    unlearning_batch_size: Annotated[int, Field(ge=2, description="images per batch of unlearning, at most")] = 64
    clean_threshold: Annotated[
        float, Field(ge=0, lt=1, json_schema_extra=COMMON, description="stop when clean accuracy is at or below this")
    ] = 0.2
    schedule: Annotated[
        tuple[int, ...],
        Field(json_schema_extra=COMMON, description="epochs after which unlearning_lr is divided by 10"),
    ] = (10, 20)
    unlearning_stop: Annotated[
        StopRule, Field(description="check after every step, or once per epoch as the reference does")
    ] = "step"
    unlearning_augment: Annotated[
        bool,
        Field(description="unlearn on images cropped and mirrored at random, as the reference does, or as they are"),
    ] = False
    grad_clip_norm: Annotated[
        float, Field(ge=0, description="bound on the gradient's norm (0 = none, as the reference)")
    ] = 20.0


@dataclass(frozen=True, kw_only=True)
class DetectParams(CommonParams):
    """The search for the target class and a proxy trigger (`core.detect`)."""

    proxy_steps: Annotated[
        int,
        Field(
            ge=0,
            description="steps of the search for a stand-in for the trigger (a proxy), at most (0 = none, as the "
            "reference)",
        ),
    ] = 100
    proxy_classes: Annotated[
        int,
        Field(
            ge=1,
            description="candidate target classes that a proxy is searched for, at most, if unlearning leaves several",
        ),
    ] = 3


@dataclass(frozen=True, kw_only=True)
class RecoverParams(CommonParams):
    """Learning the mask (`core.recover`)."""

    alpha: Annotated[
        float, Field(gt=0, json_schema_extra=COMMON, description="weight of the cross-entropy that the mask minimises")
    ] = 0.2
    recovering_lr: Annotated[
        float, Field(gt=0, le=1e6, json_schema_extra=COMMON, description="learning rate of the mask")
    ] = 0.2
    recovering_epochs: Annotated[int, Field(ge=1, json_schema_extra=COMMON, description="epochs of recovery")] = 10
    recovering_batch_size: Annotated[int, Field(ge=2, description="images per batch of recovery, at most")] = 32
    recovering_augment: Annotated[
        bool,
        Field(description="recover on images cropped and mirrored at random, as the reference does, or as they are"),
    ] = False
    mask_averaging: Annotated[
        MaskAveraging,
        Field(description="the mask is the mean over all steps of recovery, or the last one as the reference's"),
    ] = "steps"
    proxy_share: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="share of the other classes' images that get the proxy in recovery, labels kept (0 = none)",
        ),
    ] = 0.5
    suspect_steps: Annotated[
        int,
        Field(
            ge=0,
            description="steps on the suspect model after each on the unlearned one, if there is a proxy (0 = none, as "
            "the reference)",
        ),
    ] = 2
    suspect_weight: Annotated[float, Field(gt=0, description="factor of those steps' loss relative to the others'")] = (
        2.0
    )


@dataclass(frozen=True, kw_only=True)
class SweepParams(CommonParams):
    """The pruning curve and the choice of a point on it (`core.trace`, `core.selectors`).

    By number, `pruning_max`, `pruning_step` and `pruning_number` are counts, or below 1 shares of all neurons. The four
    ratios are explained in `core.select.SelectionRule`.
    """

    pruning_by: Annotated[
        PruningBy, Field(json_schema_extra=COMMON, description="cut at mask values, or at counts")
    ] = "threshold"
    pruning_max: Annotated[
        float,
        Field(gt=0, json_schema_extra=COMMON, description="end of the sweep (by number: a count, or below 1 a share)"),
    ] = 0.9
    pruning_step: Annotated[
        float,
        Field(gt=0, json_schema_extra=COMMON, description="step of the sweep (by number: a count, or below 1 a share)"),
    ] = 0.05
    pruning_stride: Annotated[
        int,
        Field(
            ge=1,
            description="evaluate every N-th point, plus all points adjacent to the proxy's failure point and to the "
            "chosen point (1 = every point, as the reference)",
        ),
    ] = 2
    pruning_number: Annotated[
        float,
        Field(ge=0, json_schema_extra=COMMON, description="the fixed operating point (by number: a count or share)"),
    ] = 0.7
    curve_eval_size: Annotated[
        int,
        Field(
            ge=0,
            description="test images, and triggered ones, that the curve is measured on, at most; the unpruned model "
            "and the reported points are measured on all (0 = all throughout, as the reference)",
        ),
    ] = 1000
    acc_ratio: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            json_schema_extra=COMMON,
            description="minimum held-out accuracy by select_by=clean_acc, without a proxy, or after a repair with the "
            "proxy, as a fraction of the unpruned model's",
        ),
    ] = 0.95
    refine: Annotated[
        int,
        Field(ge=0, description="bisections between the chosen point and the next one (0 = the sweep's points alone)"),
    ] = 4
    holdout_crops: Annotated[
        int,
        Field(
            ge=0,
            description="random crops of each held-out image for its accuracy, up to 1,000 in all (0 = the image "
            "itself)",
        ),
    ] = 5
    proxy_ratio: Annotated[
        float, Field(ge=0, lt=1, description="share of the proxy's success rate that may remain for select_by=proxy")
    ] = 0.01
    min_acc_ratio: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="minimum held-out accuracy when a proxy is used, as a fraction of the unpruned model's",
        ),
    ] = 0.8
    margin_ratio: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="pruning goes on past the point where the proxy fails while this fraction of that point's "
            "held-out accuracy is kept",
        ),
    ] = 0.975
    benign_threshold: Annotated[
        float,
        Field(
            ge=0,
            description="a backdoor is suspected if the benign score (the proxy's relative norm × its removal cost × "
            "its forgetting rate) is at most this; above it select_by=proxy prunes nothing (a backdoor from each "
            "class to another: give select_by=clean_acc)",
        ),
    ] = 0.007
    clear_threshold: Annotated[
        float,
        Field(
            ge=0,
            description="the verdict is clear if the benign score is at most this; it is borderline between this and "
            "benign_threshold, where select_by=proxy keeps borderline_acc_ratio of held-out accuracy",
        ),
    ] = 0.004
    borderline_acc_ratio: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="minimum held-out accuracy when the verdict is borderline, as a fraction of the unpruned "
            "model's, so that a clean model loses next to nothing",
        ),
    ] = 0.99
    select_by: Annotated[
        SelectBy,
        Field(
            json_schema_extra=COMMON,
            description="where to prune. proxy: where the proxy fails; clean_acc: as far as held-out accuracy "
            "allows; number: at pruning_number; asr: the oracle, which sees test ASR",
        ),
    ] = "proxy"
    bn_stats: Annotated[
        BatchNormStats,
        Field(
            description="BatchNorm statistics of a pruned model: shifted as the clean images say, re-estimated, or kept"
        ),
    ] = "shift"


@dataclass(frozen=True, kw_only=True)
class RepairParams(CommonParams):
    """The repair of the pruned model (`core.repair`)."""

    repair_steps: Annotated[
        int,
        Field(
            ge=0,
            json_schema_extra=COMMON,
            description="steps in which the pruned model learns the suspect's answers to clean images again (0 = none)",
        ),
    ] = 60
    repair_lr: Annotated[
        float, Field(gt=0, le=1e6, description="learning rate of these steps; it falls linearly to 0")
    ] = 0.01
    repair_proxy: Annotated[
        float,
        Field(
            ge=0,
            le=100,
            description="without BatchNorm, largest norm of the change that the repaired model learns to ignore, "
            "relative to the proxy's (0 = none)",
        ),
    ] = 2.0


class DefenseSettings(TypedDict, total=False):
    """What `defend` takes by name; each is a field of one of the classes above."""

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
    clear_threshold: float
    borderline_acc_ratio: float
    select_by: SelectBy
    bn_stats: BatchNormStats
    # the repair of the pruned model
    repair_steps: int
    repair_lr: float
    repair_proxy: float


def _meanings() -> str:
    """Return a line for each field of `DefenseSettings`: its default and its meaning."""
    lines: dict[str, str] = {}
    for params in (UnlearnParams, DetectParams, RecoverParams, SweepParams, RepairParams):
        hints = get_type_hints(params, include_extras=True)
        for each in fields(params):
            lines[each.name] = f"    {each.name} = {each.default!r}: {hints[each.name].__metadata__[0].description}"
    return "\n".join(lines.values())


DefenseSettings.__doc__ = f"{DefenseSettings.__doc__}\n\n{_meanings()}\n"
