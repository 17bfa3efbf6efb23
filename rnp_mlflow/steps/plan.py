"""What one call asks for: the settings of every step it may have to run."""

from dataclasses import dataclass
from typing import Any

from rnp_mlflow.config import CHAIN, RUN_ID, STEPS, parameters, parse, text
from rnp_mlflow.errors import ConfigError


@dataclass(frozen=True)
class Plan:
    """Settings by step, and whether finished runs of the same inputs may be taken for them.

    repeating: a run is being repeated, so changed data are compared, not refused.
    """

    settings: dict[str, Any]
    reuse: bool = True
    repeating: bool = False

    def __getitem__(self, step: str) -> Any:
        return self.settings[step]


def make_plan(entry: str, values: dict[str, Any], reuse: bool = True, repeating: bool = False) -> Plan:
    """Settings of the steps of an entry point from flat texts or values; what is not named keeps its default.

    Raises:
        ConfigError: unknown name, malformed value, or values that contradict each other.
    """
    steps = ("import",) if entry == "import" else CHAIN
    known = {name for step in steps for name in STEPS[step].model_fields}
    if unknown := sorted(set(values) - known):
        raise ConfigError(f"unknown parameter {unknown[0]}; see --help")
    plan = Plan({step: parse(STEPS[step], values) for step in steps}, reuse, repeating)
    if entry == "import":
        return plan
    if plan["prune"].mask_file and plan["prune"].recover_run_id:
        raise ConfigError("give mask_file or recover_run_id, not both")
    holders = {"attack": "unlearn", "unlearn": "recover", "recover": "prune"}
    given = [RUN_ID[step] for step, holder in holders.items() if getattr(plan[holder], RUN_ID[step])]
    if len(given) > 1:
        raise ConfigError(f"give {given[-1]} alone: it already leads to the run that {given[0]} names")
    return plan


def flat(plan: Plan, entry: str) -> dict[str, str]:
    """name → text of every parameter of an entry point, as logged."""
    values = {name: value for step in plan.settings.values() for name, value in step}
    return {name: text(values[name]) for name in parameters(entry)}
