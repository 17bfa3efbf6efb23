"""What a training loop saves of itself, to go on after its process was killed. It knows nothing of files."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class State:
    """tensors: by name, on any device. values: what JSON can hold."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


class Keeper(Protocol):
    """Saves states of one training loop, and returns the last one that an earlier attempt saved."""

    def load(self) -> State | None:
        """Return the state to go on from, None if there is none."""

    def is_due(self) -> bool:
        """Return whether it is time to save."""

    def save(self, state: State) -> None:
        """Save a state in place of the former one."""


class _Nowhere:
    def load(self) -> State | None:
        return None

    def is_due(self) -> bool:
        return False

    def save(self, state: State) -> None:
        """Save nothing."""


NOWHERE: Keeper = _Nowhere()
