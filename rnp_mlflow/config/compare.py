"""Parameters of `report`, which compares finished runs."""

from pydantic import Field

from rnp_mlflow.config.method import Prune
from rnp_mlflow.config.values import OUTPUT, RUN, AbsPath, Settings, Text
from rnp_mlflow.errors import ConfigError

SUBJECT = ("suspect", "attack", "model", "dataset")  # tags of a run


class Compare(Settings):
    """Compare many prune runs in one table and one picture."""

    experiment: Text = Field(
        None, json_schema_extra=RUN, description="the runs' experiment, by name or ID; auto takes the present one"
    )
    filter: Text = Field(
        None,
        json_schema_extra=RUN,
        description="take only the runs that MLflow finds by this, as \"tags.rnp.attack = 'badnets'\"; auto takes all",
    )
    grid: Text = Field(
        None, json_schema_extra=RUN, description="run ID of a grid: take only its cells; auto takes all runs"
    )
    group_by: Text = Field(
        None,
        json_schema_extra=RUN,
        description="what a group of runs has in common, separated by commas: suspect, attack, model, dataset, or "
        "parameters of prune; auto takes suspect,model,dataset",
    )
    output: AbsPath = Field(
        None, json_schema_extra=OUTPUT, description="folder that gets a copy of the files; auto leaves them in the run"
    )

    @property
    def groups(self) -> list[str]:
        """Return the names to group by."""
        return [name.strip() for name in (self.group_by or "suspect,model,dataset").split(",")]

    def check(self) -> None:
        """Refuse names that no run has.

        Raises:
            ConfigError: a name is neither a tag of `SUBJECT` nor a parameter of `prune`, or is given twice.
        """
        for name in self.groups:
            if name not in SUBJECT and name not in Prune.model_fields:
                known = f"{', '.join(SUBJECT)}, or a parameter of prune"
                raise ConfigError(f"group_by={self.group_by}: {name!r} is unknown; give {known}")
        if len(set(self.groups)) < len(self.groups):
            raise ConfigError(f"group_by={self.group_by}: a name is given twice")
