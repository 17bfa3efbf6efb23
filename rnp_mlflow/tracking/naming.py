"""What runs, logged models and suspects are called. Pure functions: MLflow is not asked."""

import re
from dataclasses import dataclass

SEPARATOR = " · "
CLEAN, UNKNOWN = "none", "unknown"  # the words for no attack, and for one that is not known
UNUSUAL = re.compile(r"[^\w-]+")


@dataclass(frozen=True)
class Subject:
    """What a run is about: the suspect model.

    attack: its name, `none` for a clean model, `unknown` for an import. poison_rate: 0 to 1, None if unknown.
    model: the architecture. dataset: of the images. origin: the file or registered model that was imported.
    """

    attack: str = UNKNOWN
    poison_rate: float | None = None
    model: str | None = None
    dataset: str | None = None
    origin: str | None = None

    @property
    def suspect(self) -> str:
        """Return the suspect in a word or two: `badnets 10 %`, `clean`, or what was imported."""
        if self.origin:
            return self.origin
        if self.attack == CLEAN:
            return "clean"
        return self.attack + (f" {100 * self.poison_rate:g} %" if self.poison_rate else "")

    @property
    def parts(self) -> list[str]:
        """Return suspect, architecture and dataset, as far as they are known."""
        return [part for part in (self.suspect, self.model, self.dataset) if part]

    def tags(self) -> dict[str, str]:
        """Return the tags that make it a set of columns in a table of runs."""
        found = {"suspect": self.suspect, "attack": self.attack, "model": self.model, "dataset": self.dataset}
        return {name: value for name, value in found.items() if value}


def run_name(entry: str, subject: Subject, seed: int | None) -> str:
    """Return a run's name, as `prune · badnets 10 % · resnet18_narrow · digits · seed 1`."""
    return SEPARATOR.join([entry, *subject.parts, *([] if seed is None else [f"seed {seed}"])])


def model_name(subject: Subject) -> str:
    """Return the name of the purified model, as `purified-badnets-10-resnet18_narrow-digits` (MLflow takes no %)."""
    words = (UNUSUAL.sub("-", part).strip("-") for part in subject.parts)
    return "-".join(["purified", *(word for word in words if word)])
