"""Links that open a run and its curves in the MLflow UI."""

import json
from urllib.parse import quote

import mlflow

from rnp_mlflow.tracking import views

LOCAL = "http://127.0.0.1:5000"


def curves_url(base: str, experiment_id: str, run_ids: list[str], metrics: list[str]) -> str:
    """Return the address of the page with the curves of these runs. metrics: those that the runs have."""
    fields = {
        "runs": json.dumps(run_ids),
        "experiments": json.dumps([experiment_id]),
        "metric": json.dumps(metrics[0]),
        "plot_metric_keys": json.dumps(metrics),
        "plot_layout": "{}",
        "x_axis": "step",
        "y_axis_scale": "linear",
        "line_smoothness": "0",
        "show_point": "true",
        "deselected_curves": "[]",
        "last_linear_y_axis_range": "[]",
    }
    return f"{base}/#/metric?" + "&".join(f"{k}={quote(v, safe='')}" for k, v in fields.items())


def compare_url(base: str, experiment_id: str, run_ids: list[str]) -> str:
    """Return the address of the page that compares these runs."""
    runs, experiments = (quote(json.dumps(ids), safe="") for ids in (run_ids, [experiment_id]))
    return f"{base}/#/compare-runs?runs={runs}&experiments={experiments}"


def base() -> str:
    """Return the address of the UI: of the tracking server, or where `mlflow ui` starts on this machine."""
    uri = mlflow.get_tracking_uri()
    return uri.rstrip("/") if uri.startswith("http") else LOCAL


def ui_links(experiment_id: str, run_ids: list[str]) -> list[str]:
    """Return lines that tell the user how to open the run, and the table of all runs."""
    uri = mlflow.get_tracking_uri()
    start = [] if uri.startswith("http") else [f"Look at it:  mlflow ui --backend-store-uri {uri}   and then"]
    return [
        *start,
        f"  this run: {base()}/#/{run_path(experiment_id, run_ids[0])}",
        f"  all runs: {views.table_url(base(), experiment_id)}",
    ]


def run_path(experiment_id: str, run_id: str) -> str:
    """Return a run's place in the UI, behind `#/`."""
    return f"experiments/{experiment_id}/runs/{run_id}"
