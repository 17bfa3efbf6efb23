"""The finished prune runs of an experiment, by one paged query."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlflow
from mlflow.entities import Run

from rnp_mlflow.errors import LineageError
from rnp_mlflow.tracking import location, store, views
from rnp_mlflow.tracking.runs import PREFIX

NEEDED = ("acc_before", "acc")
COUNTED = ("acc_before", "acc", "asr_before", "asr", "ra", "der")


@dataclass(frozen=True)
class Found:
    """runs: what is compared, the newest first. The others are left out: unfinished (or failed), without the figures
    of `NEEDED`, or repeated (of the same inputs as a newer one, as reruns are, and so with the same figures)."""

    experiment_id: str
    runs: Sequence[Run]
    unfinished: int
    lacking: int
    repeated: int


def find(experiment: str | None, rule: str | None, run_ids: Sequence[str] | None = None) -> Found:
    """Return the prune runs of an experiment (name or ID; None: the present one) that a filter of MLflow's finds.

    run_ids: take these alone.

    Raises:
        LineageError: there is no such experiment, the filter is malformed, or nothing is found.
    """
    experiment_id = experiment_of(experiment)
    entry = f"tags.`{PREFIX}entry` = 'prune'"
    parts = [entry, *([rule] if rule else [])]
    places = [experiment_id] if run_ids is None else views.searched(experiment_id)  # a grid takes runs from both
    try:
        if run_ids is None:
            every = store.search(places, " and ".join(parts))
        else:
            named = [run_ids[k : k + store.PAGE] for k in range(0, len(run_ids), store.PAGE)]
            lists = ("attributes.run_id IN (" + ", ".join(f"'{run_id}'" for run_id in some) + ")" for some in named)
            every = [run for one in lists for run in store.search(places, " and ".join([*parts, one]))]
    except mlflow.MlflowException as error:
        raise LineageError(f"filter: MLflow does not take it: {str(error).splitlines()[0][:200]}") from None
    done = [run for run in every if run.info.status == "FINISHED"]
    full = [run for run in done if set(NEEDED) <= run.data.metrics.keys()]
    newest: dict[str, Run] = {}
    for run in full:
        newest.setdefault(run.data.tags.get(f"{PREFIX}inputs", run.info.run_id), run)
    if not newest:
        raise LineageError(f"there is no finished prune run in experiment {experiment or experiment_id}, or none that "
                           f"the filter finds ({len(every)} that are unfinished or lack figures)")  # fmt: skip
    kept = list(newest.values())
    return Found(experiment_id, kept, len(every) - len(done), len(done) - len(full), len(full) - len(kept))


def experiment_of(name: str | None) -> str:
    """Return the ID of an experiment by name or ID; None: the one that a new run would go to.

    Raises:
        LineageError: there is none of this name or ID.
    """
    client = store.client()
    if name is None:
        chosen = views.home(None)
        return chosen if chosen is not None else mlflow.tracking.fluent._get_experiment_id()
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            found = client.get_experiment(name)
        except mlflow.MlflowException:
            raise LineageError(f"experiment={name}: there is none of this name or ID in {location.shown()}") from None
    known: str = found.experiment_id
    return known


def row(run: Run, by: Sequence[str], tags: Sequence[str]) -> Mapping[str, object]:
    """Return what the table needs of a run. by: names of tags of ours, if they are in `tags`, else of parameters."""
    words = {
        name: run.data.tags.get(PREFIX + name) if name in tags else run.data.params.get(name) for name in by
    }  # fmt: skip
    return {name: word or "–" for name, word in words.items()} | {
        name: run.data.metrics.get(name, float("nan")) for name in COUNTED
    }
