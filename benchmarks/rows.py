"""The rows of the matrix: which suspect models are made."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from rnp_mlflow.attacks import NAMES
from rnp_mlflow.attacks.registry import NONE

ARCHITECTURES = {"preactresnet18": 12, "vgg19_bn": 20}  # epochs in which most are planted, on 10,000 images
SLOW = {  # (attack, poison rate) that take LONGER times as many
    ("badnets", 0.1), ("blended", 0.01), ("sig", 0.01), ("adaptive_blend", 0.1), ("wanet", 0.1), ("bpp", 0.1),
}  # fmt: skip
LONGER = 1.8
LAST = ("wanet", "bpp")  # after the rest: the slowest to plant
SEEDS = (0, 1, 2)
UNSEEN = 3  # a seed that settled nothing, at 10 %, after the rest
COMMON: dict[str, Any] = {
    "dataset": "cifar10",
    "train_size": 10000,
    "test_size": 1000,
    "width": 16,
    "precision": "bf16",
}
FULL = {"dataset": "cifar10", "precision": "bf16", "training_epochs": 100}  # all images, full width: for a GPU
CLEAN = 500  # images that the defender has
RARE = ("blended", "sig", "trojannn")  # at 1 % too


@dataclass(frozen=True)
class Row:
    """One suspect model. rate: share of poisoned training images, 0 for a clean model."""

    attack: str
    rate: float
    architecture: str
    seed: int
    full: bool = False

    @property
    def name(self) -> str:
        return f"{self.attack}-{self.rate:g}-{self.architecture}-{self.seed}" + ("-full" if self.full else "")

    @property
    def ratio(self) -> float:
        """Return the share of the training images that the defender has."""
        return CLEAN / (50000 if self.full else COMMON["train_size"])

    def settings(self) -> dict[str, object]:
        """Return the parameters of its `attack` run."""
        own = {"attack": self.attack, "model": self.architecture, "seed": self.seed}
        own |= {"poison_rate": self.rate} if self.rate else {}
        if self.full:
            return FULL | own
        epochs = round(ARCHITECTURES[self.architecture] * (LONGER if (self.attack, self.rate) in SLOW else 1))
        return COMMON | own | {"training_epochs": epochs}


def rows(full: bool = False) -> Iterator[Row]:
    """Yield all rows, 10 % first and seed by seed, so that a matrix cut short is a smaller one."""
    first = [(NONE, 0.0), *((name, 0.1) for name in NAMES if name not in LAST)]
    rare, last = [(name, 0.01) for name in RARE], [(name, 0.1) for name in LAST]
    for kinds, seeds in ((first, SEEDS), (rare, SEEDS), (last, SEEDS), (first, (UNSEEN,))):
        for seed, (attack, rate), architecture in product(seeds, kinds, ARCHITECTURES):
            yield Row(attack, rate, architecture, seed, full)
