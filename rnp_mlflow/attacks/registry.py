"""Attacks by name. To add one, write a file with `build(context)` and add one line to `REGISTRY`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from rnp_mlflow.attacks import (
    adaptive_blend,
    badnets,
    blended,
    bpp,
    input_aware,
    label_consistent,
    sig,
    trojannn,
    wanet,
)  # fmt: skip
from rnp_mlflow.attacks.trigger import AttackFactory, BlendTrigger, Trigger
from rnp_mlflow.errors import ConfigError

NONE = "none"


@dataclass(frozen=True)
class AttackEntry:
    """How to build an attack and how to restore its trigger.

    build: builds the attack. restore: rebuilds its trigger from stored tensors. clean_label: poison only images of the
    target class, and keep their label. covers: number of cover images for each poisoned image. one_target: the trigger
    is made for a single class.
    """

    build: AttackFactory
    restore: Callable[..., Trigger] = BlendTrigger
    clean_label: bool = False
    covers: float = 0.0
    one_target: bool = False


REGISTRY: dict[str, AttackEntry] = {
    "badnets": AttackEntry(badnets.build),
    "blended": AttackEntry(blended.build),
    "sig": AttackEntry(sig.build, sig.AdditiveTrigger, clean_label=True),
    "wanet": AttackEntry(wanet.build, wanet.WarpTrigger, covers=2.0),
    "bpp": AttackEntry(bpp.build, bpp.QuantiseTrigger, covers=2.0),
    "label_consistent": AttackEntry(label_consistent.build, clean_label=True),
    "input_aware": AttackEntry(input_aware.build, input_aware.GeneratedTrigger, covers=1.0, one_target=True),
    "trojannn": AttackEntry(trojannn.build),
    "adaptive_blend": AttackEntry(adaptive_blend.build, covers=1.0),
}


def find_entry(name: str) -> AttackEntry:
    """Return the attack of that name.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in REGISTRY:
        raise ConfigError(f"unknown attack {name!r}; give one of {', '.join(REGISTRY)}, or {NONE}")
    return REGISTRY[name]


def restore(name: str, stored: Mapping[str, Tensor]) -> Trigger:
    """Rebuild the trigger of attack `name` from its tensors (`vars(trigger)`).

    Raises:
        ConfigError: the attack is unknown, or tensors are missing or unexpected.
    """
    try:
        return find_entry(name).restore(**stored)
    except TypeError as error:
        raise ConfigError(f"a stored trigger cannot be read: {error}") from None
