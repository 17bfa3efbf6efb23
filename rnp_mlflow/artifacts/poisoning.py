"""`poison_plan.json`, and beside it the attacker's trigger or the images that carry it."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from rnp_mlflow.artifacts.table import POISON_PLAN, TRIGGER, TRIGGERED
from rnp_mlflow.attacks import registry
from rnp_mlflow.attacks.trigger import Trigger
from rnp_mlflow.data.triggered import Triggered


def write(
    folder: Path, content: dict[str, Any], poisoned: dict[str, Tensor], known: Trigger | Triggered | None
) -> None:
    """Write the plan: `content`, and training indices by name; and the trigger, or the images with it.

    content: attack, target, label_mode, poison_rate; None stands for what is not known.
    """
    name = None if known is None else TRIGGERED if isinstance(known, Triggered) else TRIGGER
    content = content | {"triggered": name} | {key: found.tolist() for key, found in poisoned.items()}
    (folder / POISON_PLAN).write_text(json.dumps(content) + "\n")
    if name is not None:
        save_file({key: value.contiguous() for key, value in vars(known).items()}, folder / name)


def read(file: Path) -> dict[str, Any]:
    """Read the plan; `triggered` in it names the file beside it, None if nothing is known of the trigger."""
    return {"label_mode": "all_to_one"} | json.loads(file.read_text())


def read_triggered(file: Path) -> Triggered:
    """Read the images that carry the trigger."""
    return Triggered(**load_file(file))


def read_trigger(file: Path, attack: str) -> Trigger:
    """Read the trigger of an attack of ours."""
    return registry.restore(attack, load_file(file))
