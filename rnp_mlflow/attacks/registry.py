"""Attacks by name. To add one: a file with `make(material)`, and one line here."""

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
from rnp_mlflow.attacks.trigger import Make, Stamp, Trigger
from rnp_mlflow.errors import ConfigError

NONE = "none"


@dataclass(frozen=True)
class Entry:
    """make: the attack. restore: its trigger from stored tensors.

    clean_label: only images of the target class are poisoned, and keep their label.
    covers: cover images for each poisoned one. one_target: its trigger is made for a single class.
    """

    make: Make
    restore: Callable[..., Trigger] = Stamp
    clean_label: bool = False
    covers: float = 0.0
    one_target: bool = False


REGISTRY: dict[str, Entry] = {
    "badnets": Entry(badnets.make),
    "blended": Entry(blended.make),
    "sig": Entry(sig.make, sig.Added, clean_label=True),
    "wanet": Entry(wanet.make, wanet.Warp, covers=2.0),
    "bpp": Entry(bpp.make, bpp.Quantised, covers=2.0),
    "label_consistent": Entry(label_consistent.make, clean_label=True),
    "input_aware": Entry(input_aware.make, input_aware.Generated, covers=1.0, one_target=True),
    "trojannn": Entry(trojannn.make),
    "adaptive_blend": Entry(adaptive_blend.make, covers=1.0),
}


def entry(name: str) -> Entry:
    """The attack of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in REGISTRY:
        raise ConfigError(f"unknown attack {name!r}; there are {', '.join(REGISTRY)}, and {NONE}")
    return REGISTRY[name]


def restore(name: str, stored: Mapping[str, Tensor]) -> Trigger:
    """The trigger of attack `name`, from the tensors that it consists of (`vars(trigger)`).

    Raises:
        ConfigError: no such attack; tensors are missing or foreign.
    """
    try:
        return entry(name).restore(**stored)
    except TypeError as error:
        raise ConfigError(f"a stored trigger cannot be read: {error}") from None
