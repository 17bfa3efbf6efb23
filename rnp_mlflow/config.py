"""Every parameter: name, type, default, bounds and one line of meaning. The only place that has them.

One frozen model per step. The CLI's options and the MLproject file follow from `parameters(step)`.
`auto` and `none` are the words for "not given"; no default needs quoting in a shell.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, Field, JsonValue, ValidationError
from pydantic.fields import FieldInfo

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
    """A path that means the same in a later run from another folder."""
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
Place = Annotated[str | None, BeforeValidator(_absolute)]
NameOrPlace = Annotated[str | None, BeforeValidator(_name_or_absolute)]
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


class Common(Settings):
    """What every step takes."""

    seed: int = Field(0, ge=0, lt=2**63, json_schema_extra=OWN_COMMON, description="source of every random choice")
    device: Text = Field(
        None, json_schema_extra=MACHINE, description="cpu, cuda or cuda:N; auto takes CUDA where it is"
    )
    threads: Count = Field(
        None, json_schema_extra=MACHINE, description="CPU threads of torch; auto leaves torch's own choice"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        json_schema_extra=OWN,
        description="number format: fp32, or bf16, two to six times as fast on processors that have it; auto takes "
        "bf16 there for a model that predicts the same with it (and trains one in fp32)",
    )


class Data(Common):
    """Which images, and how they are fed."""

    data_dir: Place = Field(
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
    batch_size: int = Field(128, ge=2, description="images a training batch, at most")
    training_lr: float = Field(0.1, gt=0, description="peak learning rate of training (SGD, one cycle)")
    weight_decay: float = Field(0.0005, ge=0, description="weight decay of training")


class Import(Data):
    """Take in a model that we did not train; nothing in its files is executed."""

    attack_result: Place = Field(
        None, json_schema_extra=FILE, description="BackdoorBench's attack_result.pt, its triggered images beside it"
    )
    checkpoint: Place = Field(
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
    data: NameOrPlace = Field(
        None,
        json_schema_extra=PLACE,
        description="the clean images: a folder, an npz file, or a dataset's name (its files in data_dir)",
    )
    dataset: MaybeName = Field(
        None,
        json_schema_extra=COMMON,
        description="whose normalisation the model takes, cifar10 say; auto asks the source",
    )
    triggered: Place = Field(
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


class Watched(Method):
    """How training is looked at while it goes on; it changes no result."""

    eval_every: int = Field(
        0,
        ge=0,
        json_schema_extra=OWN,
        description="measure ACC, ASR and RA on up to 1,000 test and triggered images after every so-manieth epoch of "
        "unlearning and recovery; 0: never",
    )


class Unlearn(Watched):
    """Gradient ascent on a few clean images until clean accuracy collapses."""

    model_run_id: Text = Field(
        None, json_schema_extra=RUN, description="run that holds the suspect model; auto finds or makes it"
    )
    ratio: float = Field(
        0.1,
        gt=0,
        le=1,
        json_schema_extra=COMMON,
        description="share of the clean training set that the defender has; where there is no test part, all",
    )
    index: Place = Field(
        None,
        json_schema_extra=FILE,
        description="file of the defender's training indices, one integer a line; auto draws them",
    )
    holdout: float = Field(0.2, gt=0, lt=1, description="share of those kept back to choose the threshold")
    unlearning_lr: float = Field(0.01, gt=0, json_schema_extra=COMMON, description="learning rate of unlearning")
    unlearning_epochs: int = Field(20, ge=1, json_schema_extra=COMMON, description="epochs of unlearning, at most")
    unlearning_batch_size: int = Field(64, ge=2, description="images a batch of unlearning, at most")
    clean_threshold: float = Field(
        0.2, ge=0, lt=1, json_schema_extra=COMMON, description="stop when clean accuracy is at or below this"
    )
    schedule: Integers = Field(
        (10, 20), json_schema_extra=COMMON, description="epochs after which unlearning_lr is divided by 10"
    )
    unlearning_stop: Literal["step", "epoch"] = Field(
        "step", description="check after every step, or once an epoch as the reference does"
    )
    unlearning_views: Literal["plain", "augmented"] = Field(
        "plain", description="unlearn on the images as they are, or cropped and mirrored as the reference does"
    )
    proxy_steps: int = Field(
        100,
        ge=0,
        description="steps of looking for a stand-in for the trigger (a proxy), at most; 0: none, as the reference",
    )
    proxy_classes: int = Field(
        3, ge=1, description="classes that a proxy is looked for, at most, where unlearning leaves the target open"
    )
    clip: float = Field(20.0, ge=0, description="bound on the gradient's norm; 0 for none, as the reference")


class Recover(Watched):
    """Learn a mask that brings clean accuracy back; the backdoor's neurons stay low."""

    unlearn_run_id: Text = Field(
        None, json_schema_extra=RUN, description="run that holds the unlearned model; auto finds or makes it"
    )
    alpha: float = Field(
        0.2, gt=0, json_schema_extra=COMMON, description="weight of the cross-entropy that the mask minimises"
    )
    recovering_lr: float = Field(0.2, gt=0, json_schema_extra=COMMON, description="learning rate of the mask")
    recovering_epochs: int = Field(10, ge=1, json_schema_extra=COMMON, description="epochs of recovery")
    recovering_batch_size: int = Field(32, ge=2, description="images a batch of recovery, at most")
    recovering_views: Literal["plain", "augmented"] = Field(
        "plain", description="recover on the images as they are, or cropped and mirrored as the reference does"
    )
    mask_averaging: Literal["steps", "none"] = Field(
        "steps", description="the mask is the mean over all steps of recovery, or the last one as the reference's"
    )
    proxy_share: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="share of other classes' images with the proxy on them in recovery, labels kept; 0: none",
    )
    suspect_steps: int = Field(
        2,
        ge=0,
        description="steps on the suspect model for each on the unlearned one, where there is a proxy; 0: none, as the "
        "reference",
    )
    suspect_weight: float = Field(2.0, gt=0, description="weight of those steps' loss beside the others'")


class Prune(Method):
    """Prune the suspect model along the mask, draw the curve, choose the point, keep the model."""

    recover_run_id: Text = Field(
        None, json_schema_extra=RUN, description="run that holds the mask; auto finds or makes it"
    )
    mask_file: Place = Field(
        None,
        json_schema_extra=FILE,
        description="use this mask (csv, or BackdoorBench's text) instead of a recover run's",
    )
    pruning_by: Literal["threshold", "number"] = Field(
        "threshold", json_schema_extra=COMMON, description="cut at mask values, or at counts"
    )
    pruning_max: float = Field(
        0.9, gt=0, json_schema_extra=COMMON, description="end of the sweep (by number: a count, or below 1 a share)"
    )
    pruning_step: float = Field(
        0.05, gt=0, json_schema_extra=COMMON, description="step of the sweep (by number: a count, or below 1 a share)"
    )
    pruning_stride: int = Field(
        2,
        ge=1,
        description="look at every so-manieth point of the sweep and, beside where the proxy fails and the choice, at "
        "all; 1: at all of them, as the reference",
    )
    pruning_number: float = Field(
        0.7, ge=0, json_schema_extra=COMMON, description="the fixed operating point (by number: a count or share)"
    )
    curve_images: int = Field(
        1000,
        ge=0,
        description="test images, and triggered ones, that the curve is measured on, at most; the unpruned model and "
        "the points reported are measured on all; 0: all throughout, as the reference",
    )
    acc_ratio: float = Field(
        0.95,
        gt=0,
        le=1,
        json_schema_extra=COMMON,
        description="held-out accuracy to keep where it alone decides, as a share of the unpruned model's",
    )
    refine: int = Field(
        4, ge=0, description="bisections between the point chosen and the one beside it; 0: the sweep's points alone"
    )
    clean_views: int = Field(
        5,
        ge=0,
        description="random crops of each held-out image for its accuracy, up to 1,000 in all; 0: the image as it is",
    )
    proxy_ratio: float = Field(
        0.01, ge=0, lt=1, description="share of the proxy's success that may be left for select_by=proxy"
    )
    stop_ratio: float = Field(
        0.8, gt=0, le=1, description="held-out accuracy to keep where the proxy decides, such a share too"
    )
    margin_ratio: float = Field(
        0.975,
        gt=0,
        le=1,
        description="pruning goes on past that point while this share of its held-out accuracy is kept",
    )
    max_doubt: float = Field(
        0.007,
        ge=0,
        description="a backdoor is suspected where the proxy's size × what it costs to stop it × what unlearning took "
        "of it is at most this; above it select_by=proxy prunes nothing (a backdoor from each class to another: give "
        "select_by=clean_acc)",
    )
    select_by: Literal["proxy", "clean_acc", "number", "asr"] = Field(
        "proxy",
        json_schema_extra=COMMON,
        description="without trigger: where the proxy fails, or as far as accuracy allows; at pruning_number; or the "
        "oracle, which sees test ASR",
    )
    bn_stats: Literal["shift", "reestimate", "keep"] = Field(
        "shift", description="BatchNorm statistics of a pruned model: moved as the clean images say, from them, or kept"
    )
    export: Literal["none", "backdoorbench"] = Field(
        "none", json_schema_extra=OUTPUT, description="also write BackdoorBench's defense_result.pt"
    )
    register_as: Text = Field(
        None,
        json_schema_extra=OUTPUT,
        description="register the purified model under this name, with the alias `purified`",
    )


class Rerun(Settings):
    """Run a finished run again from what it logged, and compare."""

    run_id: str = Field(description="the run to repeat")
    seed: Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(_not_given)] = Field(
        None, json_schema_extra=OWN_COMMON, description="another seed; auto takes the one logged"
    )
    data_dir: Place = Field(
        None, json_schema_extra=PLACE, description="another place of the images; auto takes the one logged"
    )


STEPS: dict[str, type[Settings]] = {
    "attack": Attack,
    "import": Import,
    "unlearn": Unlearn,
    "recover": Recover,
    "prune": Prune,
}
CHAIN = ("attack", "unlearn", "recover", "prune")  # what one call can make; a model run may be an import instead
# preset → the values that it stands for
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "reference": {
        "unlearning_stop": "epoch", "clip": 0, "unlearning_batch_size": 128, "unlearning_views": "augmented",
        "recovering_views": "augmented", "recovering_batch_size": 128, "recovering_epochs": 20,
        "mask_averaging": "none", "proxy_steps": 0, "suspect_steps": 0, "proxy_share": 0.0, "pruning_stride": 1,
        "curve_images": 0, "bn_stats": "keep", "refine": 0, "clean_views": 0, "select_by": "number",
    },
}  # fmt: skip
# Values assumed for runs that were made before a parameter existed (`earlier`).
EARLIER: dict[str, Any] = {
    "precision": "fp32",
    "unlearning_batch_size": 128,
    "proxy_steps": 0,
    "proxy_classes": 1,
    "proxy_share": 0.0,
    "suspect_steps": 0,
    "mask_averaging": "none",
    "pruning_stride": 1,
    "curve_images": 0,
}
# step → the parameter (and tag) that names a run of it
RUN_ID = {"attack": "model_run_id", "unlearn": "unlearn_run_id", "recover": "recover_run_id"}


def earlier(name: str, logged: Mapping[str, Any], default: Any) -> Any:
    """The value of a parameter that a run was made with, if it did not exist then; logged: the run's own settings."""
    if name == "flip":  # images of these kinds were mirrored
        return "yes" if logged.get("dataset") in (None, "folder", "npz") else "auto"
    return EARLIER.get(name, default)


def names(*roles: str) -> set[str]:
    """The parameters of all steps whose value has one of these roles in a run."""
    fields = (item for step in STEPS.values() for item in step.model_fields.items())
    return {name for name, field in fields if _extra(field).get("role") in roles}


def is_common(field: FieldInfo) -> bool:
    """Whether people set it often enough for `--help` to show it; `--help-all` shows all."""
    return field.is_required() or bool(_extra(field).get("common"))


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def steps_of(entry: str) -> tuple[str, ...]:
    """The steps whose settings an entry point takes: its own and, to make what comes before it, those upstream."""
    if entry == "import":
        return ("import",)
    return CHAIN if entry == "main" else CHAIN[: CHAIN.index(entry) + 1]


def parameters(entry: str) -> dict[str, FieldInfo]:
    """name → field of every parameter of an entry point, the step's own first."""
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
    """A value as it is written in MLproject and logged: `auto` for None, commas between numbers."""
    if value is None:
        return "auto"
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    return repr(value) if isinstance(value, float) else str(value)


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The words a field allows, empty where it is not such a field."""
    found = get_args(field.annotation)
    return found if found and all(isinstance(word, str) for word in found) else ()


T = TypeVar("T", bound=Settings)


def parse(settings: type[T], values: Mapping[str, Any]) -> T:
    """Settings from texts or values; names that are not its own are left alone.

    Raises:
        ConfigError: a value is malformed or out of range; the message names the parameter.
    """
    own = {name: values[name] for name in settings.model_fields if name in values}
    try:
        return settings.model_validate(own)
    except ValidationError as error:
        first = error.errors()[0]
        name, given = first["loc"][0], first["input"]
        message = first["msg"].removeprefix("Value error, ").replace("Input should", "it should")
        raise ConfigError(f"{name}={given}: {message} (see --help)") from None
