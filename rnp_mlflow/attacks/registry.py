"""Attacks by name."""

from collections.abc import Mapping
from importlib import import_module

from torch import Tensor

from rnp_mlflow.attacks import NAMES
from rnp_mlflow.attacks.trigger import AttackEntry, Trigger
from rnp_mlflow.errors import ConfigError

NONE = "none"


def find_entry(name: str) -> AttackEntry:
    """Return the attack of that name.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in NAMES:
        raise ConfigError(f"unknown attack {name!r}; give one of {', '.join(NAMES)}, or {NONE}")
    entry: AttackEntry = import_module(f"rnp_mlflow.attacks.{name}").ENTRY
    return entry


def restore(name: str, stored: Mapping[str, Tensor]) -> Trigger:
    """Rebuild the trigger of attack `name` from its tensors (`vars(trigger)`).

    Raises:
        ConfigError: the attack is unknown, or tensors are missing or unexpected.
    """
    try:
        return find_entry(name).restore(**stored)
    except TypeError as error:
        raise ConfigError(f"a stored trigger cannot be read: {error}") from None
