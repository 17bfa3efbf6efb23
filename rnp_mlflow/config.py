"""Every parameter: name, type, default, bounds and one line of meaning. The only place that has them all.

The method's own defaults come from `core/params.py`. One frozen model per step. The CLI's options and the MLproject
file follow from `parameters(step)`. `auto` and `none` are the words for "not given"; no default needs quoting in a
shell.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, Field, JsonValue, ValidationError
from pydantic.fields import FieldInfo

from rnp_mlflow.core.params import (
    BatchNormStats,
    CommonParams,
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
from rnp_mlflow.errors import ConfigError

DATASETS = ("digits", "cifar10", "cifar100", "gtsrb", "mnist", "svhn", "tiny", "celeba", "folder", "npz")

ATTACKS = (
    "badnets", "blended", "sig", "wanet", "bpp", "label_consistent", "input_aware", "trojannn", "adaptive_blend",
)  # fmt: skip


def _not_given(value: Any) -> Any:
    return None if value in ("auto", "none", "") else value


def _integers(value: Any) -> Any:
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


def _floats_or_auto(value: Any) -> Any:
    return _integers(_not_given(value))


def _absolute(value: Any) -> Any:
    """Return an absolute path, which means the same in a later run from another folder."""
    value = _not_given(value)
    return value if value is None else str(Path(value).expanduser().absolute())


def _spelled(value: Any) -> Any:
    """A dataset's name; one that differs from a known name only in case or hyphens is refused."""
    plain = "".join(each for each in value.lower() if each.isalnum()) if isinstance(value, str) else value
    if plain in DATASETS and value not in DATASETS:
        raise ValueError(f"did you mean {plain}?")
    return value


def _name_or_absolute(value: Any) -> Any:
    if isinstance(value, str) and not Path(value).expanduser().exists():
        value = _spelled(value)
    return value if value in DATASETS else _absolute(value)


Text = Annotated[str | None, BeforeValidator(_not_given)]
AbsPath = Annotated[str | None, BeforeValidator(_absolute)]
NameOrPath = Annotated[str | None, BeforeValidator(_name_or_absolute)]
Count = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_not_given)]
Side = Annotated[Annotated[int, Field(ge=1, le=4096)] | None, BeforeValidator(_not_given)]
Name = Annotated[str, BeforeValidator(_spelled)]
MaybeName = Annotated[Text, BeforeValidator(_spelled)]
Integers = Annotated[tuple[int, ...], BeforeValidator(_integers)]
Channels = Annotated[tuple[float, ...] | None, BeforeValidator(_floats_or_auto)]


# Said of a field: `role`, what its value is to a run (`names`), and whether `--help` shows it (`is_common`).
COMMON: dict[str, JsonValue] = {"common": True}
MACHINE = COMMON | {"role": "machine"}  # what computes
PLACE = COMMON | {"role": "place"}  # where the images lie; their digest decides
FILE = COMMON | {"role": "file"}  # a file whose content decides, not its name
RUN = COMMON | {"role": "run"}  # the run to start from
OUTPUT = COMMON | {"role": "output"}  # where a result goes besides; it changes no figure
# of the step asked for; the runs before it may have another value
OWN: dict[str, JsonValue] = {"role": "own"}
OWN_COMMON = COMMON | OWN


class Settings(BaseModel, frozen=True, extra="forbid"):
    """Base of all settings: immutable, unknown names refused."""

    def check(self) -> None:
        """Hold values to each other.

        Raises:
            ConfigError: one contradicts another.
        """


class Common(Settings):
    """What every step takes."""

    seed: int = Field(
        CommonParams.seed, ge=0, lt=2**63, json_schema_extra=OWN_COMMON, description="source of every random choice"
    )
    device: Text = Field(
        None, json_schema_extra=MACHINE, description="cpu, cuda or cuda:N; auto takes CUDA where it is"
    )
    threads: Count = Field(
        None, json_schema_extra=MACHINE, description="CPU threads of torch; auto leaves torch's own choice"
    )
    precision: Precision = Field(
        CommonParams.precision,
        json_schema_extra=OWN,
        description="number format: fp32, or bf16, two to six times as fast on processors that have it; auto takes "
        "bf16 there for a model that predicts the same with it (and trains one in fp32)",
    )


class Data(Common):
    """Which images, and how they are fed."""

    data_dir: AbsPath = Field(
        None, json_schema_extra=PLACE, description="where the images are: a folder or an npz file; auto only for digits"
    )
    image_size: Side = Field(
        None,
        json_schema_extra=COMMON,
        description="scale every image to this many pixels a side (images that are not square are squeezed); auto "
        "keeps their size, which must then be the same for all (GTSRB through torchvision: 32)",
    )
    train_size: Count = Field(
        None, json_schema_extra=COMMON, description="use so many training images, drawn class by class; auto takes all"
    )
    test_size: Count = Field(
        None, json_schema_extra=COMMON, description="use so many test images, drawn class by class; auto takes all"
    )
    mean: Channels = Field(
        None,
        json_schema_extra=COMMON,
        description="mean of each channel, separated by commas, for pixels scaled to 0 to 1 (not 0 to 255); auto takes "
        "the dataset's",
    )
    std: Channels = Field(
        None,
        json_schema_extra=COMMON,
        description="standard deviation of each channel, on the same scale as mean; auto takes the dataset's",
    )
    class_order: Literal["number", "text"] = Field(
        "number",
        json_schema_extra=COMMON,
        description="order of class folders whose names are all numbers: as numbers (BackdoorBench), or as text, as "
        "torchvision's ImageFolder sorts them (0, 1, 10, 11, 2)",
    )
    flip: Literal["auto", "yes", "no"] = Field(
        "auto",
        json_schema_extra=COMMON,
        description="whether a mirrored image keeps its label, so that mirrored images may be used; auto: yes for "
        "cifar10, cifar100, tiny and celeba, no for all others",
    )


class Attack(Data):
    """Train a backdoored model: the test subject."""

    dataset: Name = Field("digits", json_schema_extra=COMMON, description=", ".join(DATASETS))
    model: str = Field(
        "resnet18_narrow", json_schema_extra=COMMON, description="an architecture of ours or any torchvision classifier"
    )
    width: Count = Field(
        None, json_schema_extra=COMMON, description="channels of the first stage; auto takes the architecture's own"
    )
    attack: str = Field(
        "badnets", json_schema_extra=COMMON, description=", ".join(ATTACKS) + ", or none for a clean model"
    )
    poison_rate: float = Field(
        0.1, gt=0, lt=1, json_schema_extra=COMMON, description="share of training images that get the trigger"
    )
    target: int = Field(0, ge=0, json_schema_extra=COMMON, description="class that the trigger leads to")
    label_mode: Literal["all_to_one", "all_to_all"] = Field(
        "all_to_one",
        json_schema_extra=COMMON,
        description="the trigger leads to target, or from each class to the next",
    )
    training_epochs: int = Field(5, ge=1, json_schema_extra=COMMON, description="epochs of training")
    training_batch_size: int = Field(128, ge=2, description="images per batch of training, at most")
    training_lr: float = Field(0.1, gt=0, description="peak learning rate of training (SGD, one cycle)")
    weight_decay: float = Field(0.0005, ge=0, description="weight decay of training")


class Import(Data):
    """Take in a model that we did not train; nothing in its files is executed."""

    attack_result: AbsPath = Field(
        None, json_schema_extra=FILE, description="BackdoorBench's attack_result.pt, its triggered images beside it"
    )
    checkpoint: AbsPath = Field(
        None,
        json_schema_extra=FILE,
        description="weights: safetensors, a torch state dict, pt2, the authors' .tar, or a model folder of ours",
    )
    model_uri: Text = Field(
        None, json_schema_extra=COMMON, description="an MLflow model or artifact: models:/NAME@ALIAS, runs:/RUN_ID/PATH"
    )
    model: Text = Field(
        None,
        json_schema_extra=COMMON,
        description="its architecture, ours or torchvision's; auto where the source says it",
    )
    data: NameOrPath = Field(
        None,
        json_schema_extra=PLACE,
        description="the clean images: a folder, an npz file, or a dataset's name (its files in data_dir)",
    )
    dataset: MaybeName = Field(
        None,
        json_schema_extra=COMMON,
        description="whose normalisation the model takes, cifar10 say; auto asks the source",
    )
    triggered: AbsPath = Field(
        None, json_schema_extra=FILE, description="triggered images for ASR and RA: folder of true classes, or npz"
    )
    target: Text = Field(None, json_schema_extra=COMMON, description="their target class, by name or number")
    require_acc: float = Field(
        0.0,
        ge=0,
        le=1,
        json_schema_extra=COMMON,
        description="refuse the model if its accuracy on the clean images is lower",
    )


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
        description="minimum held-out accuracy without a proxy, as a fraction of the unpruned model's",
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
        description="pruning goes on past that point while this fraction of its held-out accuracy is kept",
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
        description="without trigger: where the proxy fails, or as far as accuracy allows; at pruning_number; or the "
        "oracle, which sees test ASR",
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


class Rerun(Settings):
    """Run a finished run again from what it logged, and compare."""

    run_id: str = Field(description="the run to repeat")
    seed: Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(_not_given)] = Field(
        None, json_schema_extra=OWN_COMMON, description="another seed; auto takes the one logged"
    )
    data_dir: AbsPath = Field(
        None, json_schema_extra=PLACE, description="another place of the images; auto takes the one logged"
    )


STEPS: dict[str, type[Settings]] = {
    "attack": Attack,
    "import": Import,
    "unlearn": Unlearn,
    "recover": Recover,
    "prune": Prune,
}
PIPELINE = ("attack", "unlearn", "recover", "prune")  # what one call can make; a model run may be an import instead
# preset → the values that it stands for
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "reference": {
        "unlearning_stop": "epoch", "grad_clip_norm": 0, "unlearning_batch_size": 128, "unlearning_augment": True,
        "recovering_augment": True, "recovering_batch_size": 128, "recovering_epochs": 20,
        "mask_averaging": "none", "proxy_steps": 0, "suspect_steps": 0, "proxy_share": 0.0, "pruning_stride": 1,
        "curve_eval_size": 0, "bn_stats": "keep", "refine": 0, "holdout_crops": 0, "select_by": "number",
    },
}  # fmt: skip
# Values assumed for runs that were logged before a parameter existed (`legacy_value`).
LEGACY_DEFAULTS: dict[str, Any] = {
    "precision": "fp32",
    "unlearning_batch_size": 128,
    "proxy_steps": 0,
    "proxy_classes": 1,
    "proxy_share": 0.0,
    "suspect_steps": 0,
    "mask_averaging": "none",
    "pruning_stride": 1,
    "curve_eval_size": 0,
}
# Former name of a parameter → its name now, and its former values → the values now, if these changed too.
AUGMENT = {"plain": False, "augmented": True}
RENAMED: dict[str, tuple[str, dict[str, Any]]] = {
    "batch_size": ("training_batch_size", {}),
    "clip": ("grad_clip_norm", {}),
    "unlearning_views": ("unlearning_augment", AUGMENT),
    "recovering_views": ("recovering_augment", AUGMENT),
    "curve_images": ("curve_eval_size", {}),
    "clean_views": ("holdout_crops", {}),
    "stop_ratio": ("min_acc_ratio", {}),
    "max_doubt": ("benign_threshold", {}),
}
# step → the parameter (and tag) that names a run of it
RUN_ID = {"attack": "model_run_id", "unlearn": "unlearn_run_id", "recover": "recover_run_id"}


def with_current_names(logged: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a run logged under the names and values that parameters have now."""
    found = {}
    for name, value in logged.items():
        current, values = RENAMED.get(name, (name, {}))
        found[current] = values.get(value, value) if values else value
    return found


def rename_hint(name: str) -> str | None:
    """Return what to say of a parameter's former name; None for any other name."""
    if name not in RENAMED:
        return None
    current, values = RENAMED[name]
    return f"parameter {name} is now called {current}" + (f" ({words_of(values)})" if values else "")


def words_of(values: Mapping[str, Any]) -> str:
    """Return former values beside the present ones, in words."""
    return ", ".join(f"{text(now)} instead of {former}" for former, now in values.items())


def legacy_value(name: str, logged: Mapping[str, Any], default: Any) -> Any:
    """Return the value of a parameter in a run that was logged before it existed. logged: the run's own settings."""
    if name == "flip":  # images of these kinds were mirrored
        return "yes" if logged.get("dataset") in (None, "folder", "npz") else "auto"
    return LEGACY_DEFAULTS.get(name, default)


def names(*roles: str) -> set[str]:
    """Return the parameters of all steps whose value has one of these roles in a run."""
    fields = (item for step in STEPS.values() for item in step.model_fields.items())
    return {name for name, field in fields if _extra(field).get("role") in roles}


def is_common(field: FieldInfo) -> bool:
    """Return whether people set it often enough for `--help` to show it; `--help-all` shows all."""
    return field.is_required() or bool(_extra(field).get("common"))


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def steps_of(entry: str) -> tuple[str, ...]:
    """Return the steps whose settings an entry point takes: its own and, to make what it needs, those upstream."""
    if entry == "import":
        return ("import",)
    return PIPELINE if entry == "main" else PIPELINE[: PIPELINE.index(entry) + 1]


def parameters(entry: str) -> dict[str, FieldInfo]:
    """Return name → field of every parameter of an entry point, the step's own first."""
    if entry == "rerun":
        return dict(Rerun.model_fields)
    found: dict[str, FieldInfo] = {}
    for step in reversed(steps_of(entry)):
        for name, field in STEPS[step].model_fields.items():
            found.setdefault(name, field)
    if entry == "main":  # these two are what main itself makes
        found = {name: f for name, f in found.items() if name not in ("unlearn_run_id", "recover_run_id")}
    return found


def text(value: Any) -> str:
    """Return a value as it is logged and written in MLproject: `auto` for None, commas between numbers, yes or no."""
    if value is None:
        return "auto"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    return repr(value) if isinstance(value, float) else str(value)


def choices(field: FieldInfo) -> tuple[str, ...]:
    """Return the words that a field allows; empty if it takes other values."""
    if field.annotation is bool:
        return ("yes", "no")
    found = get_args(field.annotation)
    return found if found and all(isinstance(word, str) for word in found) else ()


T = TypeVar("T", bound=Settings)


def parse(settings: type[T], values: Mapping[str, Any]) -> T:
    """Parse settings from texts or values; ignore names that are not its own.

    Raises:
        ConfigError: a value is malformed or out of range; the message names the parameter.
    """
    own = {name: values[name] for name in settings.model_fields if name in values}
    try:
        parsed = settings.model_validate(own)
    except ValidationError as error:
        first = error.errors()[0]
        name, given = first["loc"][0], first["input"]
        message = first["msg"].removeprefix("Value error, ").replace("Input should", "it should")
        raise ConfigError(f"{name}={given}: {message} (see --help)") from None
    parsed.check()
    return parsed


P = TypeVar("P", bound=CommonParams)


def params_of(kind: type[P], settings: Settings) -> P:
    """Return the method's parameters that these settings hold, as one of the objects of `core.params`."""
    return kind(**{field.name: getattr(settings, field.name) for field in fields(kind)})
