"""The experiment that runs go to if nobody chose one, and the columns that its table opens with."""

import json
import os

import mlflow
from mlflow.entities import ViewType

from rnp_mlflow.errors import LineageError
from rnp_mlflow.tracking import store

EXPERIMENT, DEFAULT_ID = "rnp", "0"  # ours, and MLflow's, which `mlflow run` takes if nobody chose one
CHOSEN_BY = ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")  # `mlflow.set_experiment` sets the first, too
VIEW = "rnp"
TAG = f"mlflow.sharedViewState.{VIEW}"  # a view that the UI opens with viewStateShareKey=VIEW
COLUMNS = (
    *(f"metrics.`{name}`" for name in ("acc_before", "acc", "asr_before", "asr", "der")),
    "params.`seed`",
    *(f"tags.`rnp.{name}`" for name in ("suspect", "verdict")),  # more would not fit; the UI orders them itself
)
STATE = {
    "searchFilter": "",
    "orderByKey": "attributes.start_time",
    "orderByAsc": False,
    "selectedColumns": ["attributes.`Created`", *COLUMNS],
}


def _is_chosen() -> bool:
    return any(os.environ.get(name) for name in CHOSEN_BY)


def experiment_id() -> str | None:
    """Return the ID of the experiment `rnp`, made if it is missing; None if the user chose an experiment.

    Raises:
        LineageError: it was deleted.
    """
    if _is_chosen():
        return None
    client = store.client()
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        try:
            made: str = client.create_experiment(EXPERIMENT)
            return made
        except mlflow.MlflowException:  # another process was faster
            found = client.get_experiment_by_name(EXPERIMENT)
    if found is None or found.lifecycle_stage != "active":
        raise LineageError(
            f"the experiment {EXPERIMENT!r} was deleted: restore it (mlflow experiments restore), "
            "or choose another with MLFLOW_EXPERIMENT_NAME"
        )
    known: str = found.experiment_id
    return known


def home(wanted: str | None) -> str | None:
    """Return the ID of the experiment for a new run: `wanted` or `rnp`; None if the user chose one."""
    return experiment_id() if wanted is None or _is_chosen() else wanted


def searched(experiment_id: str) -> list[str]:
    """Return the experiments in which an earlier run may stand for a new one: its own and, if nobody chose it, both.

    `mlflow run` puts runs into the experiment Default, and `python -m rnp_mlflow` into `rnp`, of the same person.
    """
    found = store.client().search_experiments(view_type=ViewType.ACTIVE_ONLY, filter_string=f"name = '{EXPERIMENT}'")
    unchosen = [DEFAULT_ID, *(each.experiment_id for each in found)]
    return unchosen if experiment_id in unchosen else [experiment_id]


def save(experiment_id: str) -> None:
    """Store the view in the experiment, unless it is already there."""
    client, content = store.client(), json.dumps(STATE)
    if client.get_experiment(experiment_id).tags.get(TAG) != content:
        client.set_experiment_tag(experiment_id, TAG, content)


def table_url(base: str, experiment_id: str) -> str:
    """Return the address of the table of runs with these columns."""
    return f"{base}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"
