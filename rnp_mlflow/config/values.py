"""Types of parameters, how they are read from texts and written as texts, and what their fields say of them."""

from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, Field, JsonValue, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from rnp_mlflow.core.params import COMMON

DATASETS = ("digits", "cifar10", "cifar100", "gtsrb", "mnist", "svhn", "tiny", "celeba", "folder", "npz")


def not_given(value: Any) -> Any:
    return None if value in ("auto", "none", "") else value


def _split(value: Any) -> Any:
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


def _floats_or_auto(value: Any) -> Any:
    return _split(not_given(value))


def _absolute(value: Any) -> Any:
    """Return an absolute path, which means the same in a later run from another folder."""
    value = not_given(value)
    return value if value is None else str(Path(value).expanduser().absolute())


def _spelled(value: Any) -> Any:
    """Refuse a name that differs from a known dataset's only in case or hyphens."""
    plain = "".join(each for each in value.lower() if each.isalnum()) if isinstance(value, str) else value
    if plain in DATASETS and value not in DATASETS:
        raise ValueError(f"did you mean {plain}?")
    return value


def _name_or_absolute(value: Any) -> Any:
    if isinstance(value, str) and not Path(value).expanduser().exists():
        value = _spelled(value)
    return value if value in DATASETS else _absolute(value)


Text = Annotated[str | None, BeforeValidator(not_given)]
AbsPath = Annotated[str | None, BeforeValidator(_absolute)]
Folder = Annotated[str, BeforeValidator(_absolute)]
NameOrPath = Annotated[str | None, BeforeValidator(_name_or_absolute)]
Count = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(not_given)]
UpTo4096 = Annotated[Annotated[int, Field(ge=1, le=4096)] | None, BeforeValidator(not_given)]
Name = Annotated[str, BeforeValidator(_spelled)]
MaybeName = Annotated[Text, BeforeValidator(_spelled)]
Channels = Annotated[tuple[float, ...] | None, BeforeValidator(_floats_or_auto)]

# Said of a field beside `core.params.COMMON` and `OWN`: `role`, what its value is to a run (`names`); and `group`, its
# heading in the help if neither its role nor "Method" is.
MACHINE = COMMON | {"role": "machine"}  # what computes
PLACE = COMMON | {"role": "place"}  # where the images lie; their digest decides
FILE = COMMON | {"role": "file"}  # a file whose content decides, not its name
RUN = COMMON | {"role": "run"}  # the run to start from
OUTPUT = COMMON | {"role": "output"}  # where a result goes besides; it changes no figure
START: dict[str, JsonValue] = {"group": "Runs and files"}
DATA: dict[str, JsonValue] = {"group": "Data"}
MODEL: dict[str, JsonValue] = {"group": "Model and attack"}
GROUPS = {"run": "Runs and files", "file": "Runs and files", "place": "Data", "machine": "Machine", "output": "Output"}
HEADINGS = ("Runs and files", "Method", "Model and attack", "Data", "Machine", "Output")  # in the order of the help


class Settings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Base of all settings: immutable; unknown names, infinite numbers and NaN are refused."""

    @field_validator("*", mode="before")
    @classmethod
    def split_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Split a text at its commas if the field takes several numbers."""
        takes_several = get_origin(cls.model_fields[str(info.field_name)].annotation) is tuple
        return _split(value) if takes_several else value

    def check(self) -> None:
        """Hold values to each other.

        Raises:
            ConfigError: one contradicts another.
        """


def is_common(field: FieldInfo) -> bool:
    """Return whether people set it often enough for `--help` to show it; `--help-all` shows all."""
    return field.is_required() or bool(extra(field).get("common"))


def extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def heading(field: FieldInfo) -> str:
    """Return the heading under which the help lists a field: one of `HEADINGS`."""
    of = extra(field)
    if field.is_required():
        return HEADINGS[0]
    return str(of.get("group") or GROUPS.get(str(of.get("role")), "Method"))


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
