"""`poison_plan.json`, and the file of the attacker's trigger or of the triggered images."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from rnp_mlflow.artifacts.stored import as_type, read_json
from rnp_mlflow.artifacts.table import POISON_PLAN, TRIGGER, TRIGGERED
from rnp_mlflow.attacks import registry
from rnp_mlflow.attacks.trigger import Trigger
from rnp_mlflow.data.triggered import Triggered
from rnp_mlflow.errors import LineageError


@dataclass(frozen=True)
class Known:
    """What every plan says; None: unknown."""

    attack: str
    target: int | None
    label_mode: str | None
    poison_rate: float | None
    triggered: str | None


def write(
    folder: Path, content: dict[str, Any], poisoned: dict[str, Tensor], known: Trigger | Triggered | None
) -> None:
    """Write the plan (`content` and training indices by name), and the trigger or the triggered images if known.

    content: attack, target, label_mode, poison_rate; None: unknown.
    """
    name = None if known is None else TRIGGERED if isinstance(known, Triggered) else TRIGGER
    content = content | {"triggered": name} | {key: found.tolist() for key, found in poisoned.items()}
    (folder / POISON_PLAN).write_text(json.dumps(content) + "\n")
    if name is not None:
        save_file({key: value.contiguous() for key, value in vars(known).items()}, folder / name)


def read(file: Path) -> dict[str, Any]:
    """Read the plan; its entry `triggered` names the other file, None if the trigger is unknown.

    Raises:
        LineageError: it is another thing.
    """
    found: dict[str, Any] = {"label_mode": "all_to_one"} | read_json(file)
    as_type(Known, found, file)
    if found["triggered"] not in (None, TRIGGER, TRIGGERED):
        raise LineageError(f"{file.name} in the store names another file than a run leaves; make that run again")
    return found


def read_triggered(file: Path) -> Triggered:
    """Read the triggered images."""
    return Triggered(**load_file(file))


def read_trigger(file: Path, attack: str) -> Trigger:
    """Read the trigger of one of our attacks."""
    return registry.restore(attack, load_file(file))
