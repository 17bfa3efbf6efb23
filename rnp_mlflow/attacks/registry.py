"""Attacks by name. To add one: a file with `make(shape, generator)`, and one line here."""

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from rnp_mlflow.attacks import badnets, blended
from rnp_mlflow.attacks.trigger import MakeTrigger, Stamp
from rnp_mlflow.errors import ConfigError

NONE = "none"
REGISTRY: dict[str, MakeTrigger] = {"badnets": badnets.make, "blended": blended.make}


def trigger_maker(name: str) -> MakeTrigger:
    """The maker of that attack's trigger.

    Raises:
        ConfigError: there is no such attack.
    """
    if name not in REGISTRY:
        raise ConfigError(f"unknown attack {name!r}; there are {', '.join(REGISTRY)}, and {NONE}")
    return REGISTRY[name]


def tensors(trigger: Stamp) -> dict[str, Tensor]:
    """A trigger as tensors, to be stored."""
    return {field.name: getattr(trigger, field.name) for field in dataclasses.fields(trigger)}


def restore(stored: Mapping[str, Tensor]) -> Stamp:
    """The trigger that `tensors` took apart.

    Raises:
        ConfigError: tensors are missing or foreign.
    """
    try:
        return Stamp(**stored)
    except TypeError as error:
        raise ConfigError(f"a stored trigger cannot be read: {error}") from None
