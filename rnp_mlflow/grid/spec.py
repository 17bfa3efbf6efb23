"""What a grid consists of: a TOML file, or lists of the command line, and the cells that are their product."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from rnp_mlflow.config import PIPELINE, Attack, Import, Unlearn, parameters, text
from rnp_mlflow.errors import ConfigError

IMPORT = "import"  # the axis whose values are models that were trained elsewhere
SECTIONS = ("step", "settings", "steps", "axes", "exclude", "only", "resources")
MOST_CELLS = 100_000
# What only makes a model: it has no meaning beside an imported one
OF_SUSPECT = Attack.model_fields.keys() - Unlearn.model_fields.keys()
Values = dict[str, Any]


@dataclass(frozen=True)
class Resources:
    """What one step of a kind takes. gpus: a share of one, or several. memory_gb: 0 does not say."""

    threads: int = 1
    gpus: float = 0.0
    memory_gb: float = 0.0

    def check(self) -> None:
        """Refuse values that no machine has.

        Raises:
            ConfigError: a value is of another type or negative, or there is no thread.
        """
        for name, value in vars(self).items():
            kind = int if name == "threads" else (int, float)
            if isinstance(value, bool) or not isinstance(value, kind) or value < (name == "threads"):
                raise ConfigError(f"resources: {name}={value}: give a number")


@dataclass(frozen=True)
class Spec:
    """A grid as it was asked for.

    step: the last one. settings: of every cell. steps: step → what it alone is given, as another seed. axes: name →
    values; a value may be a table of several parameters. resources: of every step, or step → of that one.
    """

    step: str = "prune"
    settings: Values = field(default_factory=dict)
    steps: dict[str, Values] = field(default_factory=dict)
    axes: dict[str, list[Any]] = field(default_factory=dict)
    exclude: list[Values] = field(default_factory=list)
    only: list[Values] = field(default_factory=list)
    resources: dict[str, Any] = field(default_factory=dict)

    def of(self, step: str) -> Resources:
        """Return what a step of this kind takes.

        Raises:
            ConfigError: unknown name, or a value that no machine has.
        """
        own = {name: value for name, value in self.settings.items() if name == "threads"}
        own |= {name: value for name, value in self.resources.items() if name not in (*PIPELINE, IMPORT)}
        own |= self.resources.get(step, {})
        if unknown := sorted(own.keys() - vars(Resources()).keys()):
            raise ConfigError(f"resources: {unknown[0]} is unknown; give {', '.join(vars(Resources()))}")
        found = Resources(**own)
        found.check()
        return found


def read(file: Path) -> Spec:
    """Read a spec.

    Raises:
        ConfigError: it cannot be read, is not TOML, or has a section or value of another form.
    """
    try:
        content = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"spec={file}: {reason}") from None
    if unknown := sorted(content.keys() - set(SECTIONS)):
        raise ConfigError(f"spec={file}: {unknown[0]} is unknown; its sections are {', '.join(SECTIONS)}")
    for name, kind in (("step", str), ("settings", dict), ("steps", dict), ("axes", dict), ("resources", dict)):
        if not isinstance(content.get(name, kind()), kind):
            raise ConfigError(f"spec={file}: {name} has to be a {'table' if kind is dict else 'text'}")
    for name in ("exclude", "only"):
        if not all(isinstance(rule, dict) for rule in content.get(name, [])):
            raise ConfigError(f"spec={file}: write [[{name}]], and below it the values of the cells that are meant")
    return Spec(**content)


def with_lists(spec: Spec, given: Mapping[str, Any]) -> Spec:
    """Add parameters of the command line: several values, separated by commas, are an axis; they replace the spec's."""
    axes, settings = dict(spec.axes), dict(spec.settings)
    for name, value in given.items():
        axes.pop(name, None)
        settings.pop(name, None)
        if value in (None, "", "auto"):
            continue
        values = [value] if takes_several(name) else [part.strip() for part in str(value).split(",") if part.strip()]
        if len(values) == 1:
            settings[name] = number(values[0])
        else:
            axes[name] = [number(part) for part in values]
    return replace(spec, axes=axes, settings=settings)


def takes_several(name: str) -> bool:
    """Whether one value of a parameter is itself a list, as `schedule`."""
    found = parameters("main").get(name)
    return found is not None and "tuple" in str(found.annotation)


def number(value: Any) -> Any:
    """Return the number that a text is, or the text."""
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def cells(spec: Spec) -> list[Values]:
    """Return the values of every cell, each once: the last axis changes fastest. Those of an import are a table.

    Raises:
        ConfigError: unknown step, axis or name; an axis or the whole is empty; a rule that no cell fits.
    """
    if spec.step not in PIPELINE:
        raise ConfigError(f"step={spec.step}: give one of {', '.join(PIPELINE)}")
    hold_to_names(spec)
    count = 1
    for values in spec.axes.values():
        count *= len(values)
    if count > MOST_CELLS:
        raise ConfigError(f"the axes give {count:,} cells, more than {MOST_CELLS:,}")
    found = [cell(spec, combination) for combination in product(*spec.axes.values())]
    for rule in (*spec.exclude, *spec.only):
        if not any(fits(rule, values) for values in found):
            words = ", ".join(f"{name}={value}" for name, value in rule.items())
            raise ConfigError(f"{'exclude' if rule in spec.exclude else 'only'}: no cell has {words or 'no values'}")
    kept = [each for each in found if not any(fits(rule, each) for rule in spec.exclude)]
    kept = [each for each in kept if not spec.only or any(fits(rule, each) for rule in spec.only)]
    if not kept:
        raise ConfigError("the grid is empty: exclude and only leave no cell")
    return list({repr(sorted(each.items(), key=lambda item: item[0])): each for each in kept}.values())


def cell(spec: Spec, combination: Iterable[Any]) -> Values:
    """Return the values of one cell. An imported model has no parameters of an attack, so these are left out."""
    values = dict(spec.settings)
    for name, value in zip(spec.axes, combination, strict=True):
        values |= {IMPORT: value} if name == IMPORT and value else value if isinstance(value, dict) else {name: value}
    if IMPORT in values:
        values = {name: value for name, value in values.items() if name not in OF_SUSPECT}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def fits(rule: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Whether a cell has all the values of a rule; a list means any of them."""
    return all(
        name in values
        and any(text(values[name]) == text(one) for one in (wanted if isinstance(wanted, list) else [wanted]))
        for name, wanted in rule.items()
    )


def hold_to_names(spec: Spec) -> None:
    """Refuse names that no step has, and axes that are no lists.

    Raises:
        ConfigError: the message names it.
    """
    known = parameters("prune").keys()
    for name, values in spec.axes.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"axes: {name} has no values: give a list")
        tables = [value for value in values if isinstance(value, dict)]
        if name == "threads" or any("threads" in one for one in tables):
            raise ConfigError("axes: threads are no axis; give them in settings or [resources]")
        if name == IMPORT:
            refuse_unknown((key for table in tables for key in table), Import.model_fields.keys(), "axes: import")
        elif len(tables) == len(values):
            refuse_unknown((key for table in tables for key in table), known, f"axes: {name}")
        else:
            refuse_unknown([name], known, "axes")
    refuse_unknown(spec.settings, known, "settings")
    refuse_unknown(spec.steps, PIPELINE, "steps")
    for name, own in spec.steps.items():
        if not isinstance(own, dict):
            raise ConfigError(f"steps: write [steps.{name}]")
        refuse_unknown(own, parameters(name).keys() - {"threads"}, f"steps.{name}")
    for rules in (spec.exclude, spec.only):
        refuse_unknown((key for rule in rules for key in rule), known, "exclude, only")
    for name in (*PIPELINE, IMPORT):
        if not isinstance(spec.resources.get(name, {}), dict):
            raise ConfigError(f"resources: write [resources.{name}]")
        spec.of(name)


def refuse_unknown(names: Iterable[str], known: Iterable[str], place: str) -> None:
    """Refuse the first name that is not known.

    Raises:
        ConfigError: it is unknown.
    """
    for name in names:
        if name not in known:
            raise ConfigError(f"{place}: unknown parameter {name}; see python -m rnp_mlflow grid --help-all")
