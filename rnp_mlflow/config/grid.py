"""Parameters of `grid`, which makes many cells; those of the steps beside them are its axes."""

from pydantic import Field

from rnp_mlflow.config.values import FILE, START, AbsPath, Count, Settings, Text
from rnp_mlflow.core.params import COMMON

MACHINE = COMMON | {"group": "Machine"}


class Grid(Settings):
    """Make every cell of a grid: all combinations of the values of its axes."""

    spec: AbsPath = Field(
        None,
        json_schema_extra=FILE,
        description="TOML file of axes, settings, exclude, only, resources; auto takes the axes from this call alone",
    )
    address: Text = Field(
        None,
        json_schema_extra=MACHINE,
        description="HOST:PORT of a Ray cluster; auto takes RAY_ADDRESS if it is set, else this machine",
    )
    workers: Count = Field(
        None,
        json_schema_extra=MACHINE,
        description="steps at the same time on this machine; 1 needs no Ray; auto: as many as its CPUs allow",
    )
    dry_run: bool = Field(
        False,
        json_schema_extra=COMMON | START,
        description="only say how many steps there are, which are there already, and about how long the rest takes",
    )
    retry_failed: bool = Field(
        False,
        json_schema_extra=COMMON | START,
        description="make again what failed in an earlier grid; otherwise its reason is repeated",
    )
