"""`data.json`: where the images of a model run come from, and how to read them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rnp_mlflow.artifacts.stored import as_type, read_json
from rnp_mlflow.artifacts.table import DATA


@dataclass(frozen=True)
class Source:
    """The arguments of `data.sources.load`."""

    dataset: str
    data_dir: str | None = None
    image_size: int | None = None
    train_size: int | None = None
    test_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_order: str = "number"
    flip: str = "auto"
    grey: bool = False

    @property
    def place(self) -> str:
        """Return the folder or file of the images."""
        return self.data_dir or "embedded"


def write(folder: Path, source: Source) -> None:
    """Write the source into a run's folder."""
    (folder / DATA).write_text(json.dumps(asdict(source), indent=2) + "\n")


def read(file: Path) -> Source:
    """Read a model run's `data.json`.

    Raises:
        LineageError: the file does not describe a source.
    """
    content = read_json(file)
    if content.get("dataset") in ("folder", "npz"):
        # Runs made before `flip` existed assumed that mirrored images of these datasets keep their label.
        content.setdefault("flip", "yes")
    return as_type(Source, content, file)
