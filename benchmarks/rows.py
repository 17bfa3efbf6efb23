"""The rows of the matrix: which suspect models `matrix.toml` and `matrix_full.toml` name."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rnp_mlflow.config import Attack
from rnp_mlflow.grid import spec
from rnp_mlflow.grid.spec import Spec, Values

HERE = Path(__file__).parent
SPECS = {False: HERE / "matrix.toml", True: HERE / "matrix_full.toml"}
UNSEEN = 3  # a seed that settled nothing
LAST = ("wanet", "bpp")  # the slowest to plant
CLEAN = 500  # images that the defender has
RATE = 0.1  # the usual share of poisoned images


@dataclass(frozen=True)
class Row:
    """One suspect model. rate: share of poisoned training images, 0 for a clean model. values: of its cells."""

    attack: str
    rate: float
    architecture: str
    seed: int
    full: bool = False
    values: Values = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        return f"{self.attack}-{self.rate:g}-{self.architecture}-{self.seed}" + ("-full" if self.full else "")

    @property
    def ratio(self) -> float:
        """Return the share of the training images that the defender has."""
        return float(self.values["ratio"])

    def settings(self) -> dict[str, Any]:
        """Return the parameters of its `attack` run."""
        return {name: value for name, value in self.values.items() if name in Attack.model_fields}

    def record(self) -> dict[str, Any]:
        """Return what its file says of it."""
        return {name: value for name, value in vars(self).items() if name != "values"}


def row(values: Values, full: bool = False) -> Row:
    """Return the row of a cell."""
    values = values | asked(full).steps.get("attack", {})
    attack, rate = values["attack"], float(values.get("poison_rate", 0.0))
    return Row(attack, rate, values["model"], values["seed"], full, values)


def asked(full: bool = False) -> Spec:
    """Read the spec."""
    return spec.read(SPECS[full])


def rows(full: bool = False) -> Iterator[Row]:
    """Yield all rows: the usual rate first, seed by seed; then 1 %, the slowest attacks, and the unseen seed."""
    found = list(dict.fromkeys(row(values, full) for values in spec.cells(asked(full))))
    yield from sorted(found, key=lambda one: (one.seed == UNSEEN, one.attack in LAST, 0 < one.rate < RATE))


def epochs(full: bool = False) -> dict[str, str]:
    """Return architecture → in how many epochs its models are trained."""
    found: dict[str, set[int]] = {}
    for one in rows(full):
        found.setdefault(one.architecture, set()).add(one.settings()["training_epochs"])
    return {name: " or ".join(map(str, sorted(numbers))) for name, numbers in found.items()}
