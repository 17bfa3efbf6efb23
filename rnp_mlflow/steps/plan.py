"""What one call asks for: the settings of every step it may have to run."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rnp_mlflow.config import (
    PIPELINE,
    PRESETS,
    RUN_ID,
    STEPS,
    Attack,
    Prune,
    parameters,
    parse,
    rename_hint,
    text,
)
from rnp_mlflow.errors import ConfigError

# Which finished runs of the same inputs stand for a step: all; those of a `main` that did not finish; none
Reuse = Literal["all", "unfinished", "none"]


@dataclass(frozen=True)
class Plan:
    """Settings by step, and which finished runs of the same inputs may be taken for them.

    given: names of the parameters that the call gave; the others have their defaults. is_rerun: a run is being
    repeated, so changed data are compared, not refused.
    """

    settings: dict[str, Any]
    given: frozenset[str] = frozenset()
    reuse: Reuse = "all"
    is_rerun: bool = False

    def __getitem__(self, step: str) -> Any:
        return self.settings[step]


def make_plan(entry: str, values: Mapping[str, Any]) -> Plan:
    """Plan a call with these texts or values; `auto` and None stand for "not given".

    Raises:
        ConfigError: unknown name, malformed value, or values that contradict each other.
    """
    given = {name: value for name, value in values.items() if value not in (None, "auto", "")}
    check_used(entry, given)
    if "preset" in given:  # one that is unknown is refused below
        given = preset_values(given["preset"]) | given
    return Plan(settings_by_step(entry, given), frozenset(given), reuse="unfinished" if entry == "main" else "all")


def preset_values(preset: str) -> dict[str, Any]:
    """Return the values that a preset stands for: those of the default are the parameters' own defaults."""
    fields = {name: field for step in PIPELINE for name, field in STEPS[step].model_fields.items()}
    named = {name: fields[name].default for values in PRESETS.values() for name in values}
    return named if preset == "default" else PRESETS.get(preset, {})


def check_used(entry: str, given: Mapping[str, Any]) -> None:
    """Refuse parameters that others make useless. given: those of the call, without what a preset stands for.

    Raises:
        ConfigError: images by `index` and by `ratio`; or parameters of unlearning or recovery beside a mask file.
    """
    if "index" in given and "ratio" in given:
        raise ConfigError("give index or ratio, not both: index says which images the defender has")
    if "mask_file" not in given or entry == "import":
        return
    if "unlearn_run_id" in given:
        raise ConfigError("give mask_file with model_run_id, not with unlearn_run_id: a mask file replaces that run")
    used = Attack.model_fields.keys() | Prune.model_fields.keys() | {"model_run_id", "ratio", "index", "holdout"}
    if idle := sorted(set(given) - used - {"recover_run_id"}):
        raise ConfigError(f"{idle[0]} has no effect with mask_file, which replaces unlearning and recovery")


def plan_again(entry: str, values: Mapping[str, Any], changed: Collection[str]) -> Plan:
    """Plan to repeat a run: everything is made again. values: all of that run's. changed: what the call gave.

    Raises:
        ConfigError: as `make_plan`.
    """
    return Plan(settings_by_step(entry, values), frozenset(changed), reuse="none", is_rerun=True)


def settings_by_step(entry: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Parse the settings of an entry point's steps from flat texts or values; the others keep their defaults.

    Raises:
        ConfigError: unknown name, malformed value, or values that contradict each other.
    """
    steps = ("import",) if entry == "import" else PIPELINE
    known = {name for step in steps for name in STEPS[step].model_fields}
    if unknown := sorted(set(values) - known):
        raise ConfigError(f"{rename_hint(unknown[0]) or f'unknown parameter {unknown[0]}'}; see --help")
    settings: dict[str, Any] = {step: parse(STEPS[step], values) for step in steps}
    if entry == "import":
        return settings
    if settings["prune"].mask_file and settings["prune"].recover_run_id:
        raise ConfigError("give mask_file or recover_run_id, not both")
    holders = {"attack": "unlearn", "unlearn": "recover", "recover": "prune"}
    named = [RUN_ID[step] for step, holder in holders.items() if getattr(settings[holder], RUN_ID[step])]
    if len(named) > 1:
        raise ConfigError(f"give {named[-1]} alone: it already leads to the run that {named[0]} names")
    return settings


def flat(plan: Plan, entry: str) -> dict[str, str]:
    """Return name → text of every parameter of an entry point, as logged."""
    values = {name: value for step in plan.settings.values() for name, value in step}
    return {name: text(values[name]) for name in parameters(entry)}


def used(plan: Plan, entry: str) -> dict[str, str]:
    """Return the same without the parameters of steps that this call cannot make, because the user named their run.

    Those runs have their own parameters, and the defaults of this call would contradict them.
    """
    steps = list(plan.settings)
    for step in plan.settings:
        if any(getattr(plan[step], name, None) for name in RUN_ID.values()):
            steps = steps[steps.index(step) :]
    fields = {name for step in steps for name in STEPS[step].model_fields}
    return {name: value for name, value in flat(plan, entry).items() if name in fields}
