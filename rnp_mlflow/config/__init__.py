"""Every parameter: name, type, default, bounds and one line of meaning. The only room that has them all.

The method's own come from `core/params.py`. One frozen model per step, in `suspects` and `method`. The CLI's
options and the MLproject file follow from `parameters(step)`. `auto` and `none` are the words for "not given"; no
default needs quoting in a shell.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, ValidationError
from pydantic.fields import FieldInfo

from rnp_mlflow.config.compare import Compare
from rnp_mlflow.config.former import (
    AUGMENT,
    LEGACY_DEFAULTS,
    RENAMED,
    legacy_value,
    rename_hint,
    with_current_names,
    words_of,
)
from rnp_mlflow.config.grid import Grid
from rnp_mlflow.config.method import Method, Prune, Recover, Unlearn
from rnp_mlflow.config.suspects import Attack, Common, Data, Import
from rnp_mlflow.config.values import (
    DATASETS,
    HEADINGS,
    PLACE,
    AbsPath,
    Folder,
    Settings,
    choices,
    extra,
    heading,
    is_common,
    not_given,
    text,
)
from rnp_mlflow.core.params import OWN_COMMON, CommonParams
from rnp_mlflow.errors import ConfigError

__all__ = [
    "AUGMENT",
    "DATASETS",
    "HEADINGS",
    "LEGACY_DEFAULTS",
    "OTHERS",
    "PIPELINE",
    "PRESETS",
    "RENAMED",
    "RUN_ID",
    "STEPS",
    "Attack",
    "Common",
    "Compare",
    "Data",
    "Grid",
    "Import",
    "Method",
    "Prune",
    "Recover",
    "Rerun",
    "Settings",
    "Unlearn",
    "Upload",
    "choices",
    "extra",
    "heading",
    "is_common",
    "legacy_value",
    "names",
    "parameters",
    "params_of",
    "parse",
    "rename_hint",
    "steps_of",
    "text",
    "with_current_names",
    "words_of",
]


class Rerun(Settings):
    """Run a finished run again from what it logged, and compare."""

    run_id: str = Field(description="the run to repeat")
    seed: Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(not_given)] = Field(
        None, json_schema_extra=OWN_COMMON, description="another seed; auto takes the one logged"
    )
    data_dir: AbsPath = Field(
        None, json_schema_extra=PLACE, description="another place of the images; auto takes the one logged"
    )


class Upload(Settings):
    """Store the files of a finished step that the tracking store did not take."""

    folder: Folder = Field(json_schema_extra=PLACE, description="the folder that the step kept, as its error names it")


STEPS: dict[str, type[Settings]] = {
    "attack": Attack,
    "import": Import,
    "unlearn": Unlearn,
    "recover": Recover,
    "prune": Prune,
}
# entry points that are no steps
OTHERS: dict[str, type[Settings]] = {"grid": Grid, "report": Compare, "rerun": Rerun, "upload": Upload}
PIPELINE = ("attack", "unlearn", "recover", "prune")  # what one call can make; a model run may be an import instead
# preset → the values that it stands for
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "reference": {
        "unlearning_stop": "epoch", "grad_clip_norm": 0, "unlearning_batch_size": 128, "unlearning_augment": True,
        "recovering_augment": True, "recovering_batch_size": 128, "recovering_epochs": 20,
        "mask_averaging": "none", "proxy_steps": 0, "suspect_steps": 0, "proxy_share": 0.0, "pruning_stride": 1,
        "curve_eval_size": 0, "bn_stats": "keep", "refine": 0, "holdout_crops": 0, "select_by": "number",
        "repair_steps": 0,
    },
}  # fmt: skip
# step → the parameter (and tag) that names a run of it
RUN_ID = {"attack": "model_run_id", "unlearn": "unlearn_run_id", "recover": "recover_run_id"}


def names(*roles: str) -> set[str]:
    """Return the parameters of all steps whose value has one of these roles in a run."""
    fields = (item for step in STEPS.values() for item in step.model_fields.items())
    return {name for name, field in fields if extra(field).get("role") in roles}


def steps_of(entry: str) -> tuple[str, ...]:
    """Return the steps whose settings an entry point takes: its own and, to make what it needs, those upstream."""
    if entry == "import":
        return ("import",)
    return PIPELINE if entry == "main" else PIPELINE[: PIPELINE.index(entry) + 1]


def parameters(entry: str) -> dict[str, FieldInfo]:
    """Return name → field of every parameter of an entry point, the step's own first."""
    if entry == "grid":  # its own, and those of the steps, which are its axes
        return {**Grid.model_fields, **parameters("prune")}
    if entry in OTHERS:
        return dict(OTHERS[entry].model_fields)
    found: dict[str, FieldInfo] = {}
    for step in reversed(steps_of(entry)):
        for name, field in STEPS[step].model_fields.items():
            found.setdefault(name, field)
    if entry == "main":  # these two are what main itself makes
        found = {name: f for name, f in found.items() if name not in ("unlearn_run_id", "recover_run_id")}
    return found


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
