"""Entry point `grid`: every cell of a grid, each step once; what the store has already is not made again."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow

from rnp_mlflow.artifacts import table
from rnp_mlflow.config import Compare, Grid, Prune, parse
from rnp_mlflow.errors import ConfigError, LineageError
from rnp_mlflow.grid import on_ray, spec
from rnp_mlflow.grid.drive import Drive
from rnp_mlflow.grid.executors import Executor, Serial, Task
from rnp_mlflow.grid.graph import Graph, Node
from rnp_mlflow.grid.on_ray import OnRay
from rnp_mlflow.grid.spec import Spec, Values
from rnp_mlflow.steps import cell, comparing, grid_cells, grid_table, output, runtime
from rnp_mlflow.steps.grid_cells import Part
from rnp_mlflow.steps.grid_watch import Watch
from rnp_mlflow.steps.progress import note
from rnp_mlflow.tracking import finished, ledger, location, signals, views
from rnp_mlflow.tracking.runs import StepRun, prepare_store, step_run

LOCAL = ("sqlite:", "file:", "/", ".")  # beginnings of stores that one machine alone can use


@dataclass(frozen=True)
class Known:
    """What is known before anything is made. there: key → run ID. failed: key → why, in an earlier grid."""

    spec: Spec
    cells: Sequence[Values]
    graph: Graph
    there: Mapping[str, str]
    failed: Mapping[str, str]
    experiments: list[str]
    code: str


def run(values: Mapping[str, Any]) -> int:
    """Make the grid that these parameters ask for; 0, or 1 if a cell failed.

    Raises:
        ConfigError: bad input; nothing is made.
    """
    settings = parse(Grid, values)
    requested = spec.read(Path(settings.spec)) if settings.spec else Spec()
    requested = spec.with_lists(
        requested, {name: value for name, value in values.items() if name not in Grid.model_fields}
    )
    return run_spec(requested, settings)


def run_spec(requested: Spec, settings: Grid) -> int:
    """Make a grid; 0, or 1 if a cell failed.

    Raises:
        ConfigError: bad input; nothing is made.
    """
    cells = spec.cells(requested)
    chains = [grid_cells.parts(each, requested) for each in cells]
    prepare_store()
    executor = executor_of(settings, requested, chains)
    try:
        with note("looking at what is there"):
            known = look(requested, cells, chains, executor, retry_failed=settings.retry_failed)
        if settings.dry_run:
            at_once = settings.workers or executor.slots() or auto_workers(requested, chains)
            output.keep(grid_table.forecast(known.graph, known.there, known.failed, at_once, known.experiments))
            return 0
        return make_missing(known, executor, settings)
    finally:
        executor.close()
        signals.install()  # Ray has handlers of its own


def executor_of(settings: Grid, requested: Spec, chains: Sequence[Sequence[Part]]) -> Executor:
    """Return what runs the steps. A dry run starts nothing on this machine.

    Raises:
        ConfigError: it needs Ray, which is not installed, or the cluster does not answer.
    """
    address = settings.address or os.environ.get("RAY_ADDRESS")
    workers = settings.workers or (auto_workers(requested, chains) if on_ray.is_installed() else 1)
    if address is None and (workers == 1 or settings.dry_run):
        return Serial(cell.run)
    with note("starting Ray"):
        found = OnRay(cell.run_in_worker, address, workers * most_threads(requested, chains))
    signals.install()
    found.check_resources({part.step: requested.of(part.step) for chain in chains for part in chain})
    return found


def auto_workers(requested: Spec, chains: Sequence[Sequence[Part]]) -> int:
    """Return how many steps the CPUs of this process allow."""
    return max(1, len(os.sched_getaffinity(0)) // most_threads(requested, chains))


def most_threads(requested: Spec, chains: Sequence[Sequence[Part]]) -> int:
    return max(requested.of(part.step).threads for chain in chains for part in chain)


def look(
    requested: Spec,
    cells: Sequence[Values],
    chains: Sequence[Sequence[Part]],
    executor: Executor,
    *,
    retry_failed: bool,
) -> Known:
    """Find out which steps are there.

    Raises:
        ConfigError: nodes differ, content is not there, or nodes cannot reach the store.
    """
    facts = facts_of(executor, sorted({place for chain in chains for part in chain for place in part.places}))
    graph = grid_cells.build(chains, facts)
    experiments = views.searched(finished.experiment_of(None))
    found = ledger.find(experiments, facts["code"])
    there = {key: run.info.run_id for key, run in found.finished.items() if key in graph.nodes}
    while broken := [
        key
        for key in {node.before for node in graph.missing(there)} & there.keys()
        if not ledger.is_intact(found.finished[str(key)])
    ]:  # only what the next step reads
        for key in broken:
            del there[str(key)]
    failed = {key: reason for key, reason in found.failed.items() if key in graph.nodes and not retry_failed}
    return Known(requested, cells, graph, there, failed, experiments, facts["code"])


def facts_of(executor: Executor, places: list[str]) -> Mapping[str, str]:
    """Return the digests of code and content, which are the same on all nodes.

    Raises:
        ConfigError: they are not, the nodes cannot share the store, or a place is not there.
    """
    if isinstance(executor, OnRay) and not executor.is_local:
        facts = shared_facts(executor, places)
    else:
        facts = cell.facts(places)
    if absent := [place for place in places if facts[place] == cell.ABSENT]:
        raise ConfigError(f"{absent[0]}: there is no such file or folder")
    return facts


def shared_facts(executor: OnRay, places: list[str]) -> Mapping[str, str]:
    """Return the same as the nodes of a cluster see it.

    Raises:
        ConfigError: the nodes differ, or cannot share the store.
    """
    here, answers = cell.facts([]), executor.on_each_node(cell.facts, places)
    if len({here["host"], *(facts["host"] for facts in answers.values())}) > 1 or len(answers) > 1:
        refuse_local_store(len(answers))
    if apart := on_ray.different({"this process": here, **answers}, ["code"]) or on_ray.different(answers, places):
        raise ConfigError(f"nodes differ: {apart}; install the same version, and the same data, on all")
    return next(iter(answers.values()))


def refuse_local_store(count: int) -> None:
    """Refuse a store that other machines cannot use.

    Raises:
        ConfigError: the store is a file.
    """
    uri = mlflow.get_tracking_uri()
    if uri.startswith(LOCAL):
        raise ConfigError(
            f"{uri} is a store of one machine, and there are {count} nodes: start `mlflow server`, and name it "
            "in MLFLOW_TRACKING_URI"
        )


def make_missing(known: Known, executor: Executor, settings: Grid) -> int:
    """Make what is missing, in a run of its own; 0, or 1 if a cell failed."""
    count, missing = len(known.cells), len(known.graph.missing({*known.there, *known.failed}))
    with step_run("grid") as run, ledger.alive(run.run_id):
        run.name(f"grid · {count} cells")
        run.params(grid_table.logged(settings, known.spec))
        (run.folder / table.GRID).write_text(grid_table.spec_json(known.spec))
        ledger.close_lost(known.experiments, run.run_id)
        runtime.log(f"grid: run {run.run_id}: {count} cells, {missing} of {len(known.graph.nodes)} steps are missing")
        with runtime.progress("grid", missing) as bar:
            watch = Watch(run, bar, lambda key: ledger.close_lost(known.experiments, run.run_id, key))
            drive = Drive(
                known.graph, executor, watch,
                resources={step: known.spec.of(step) for step in {node.step for node in known.graph.nodes.values()}},
                task=task_of(run, location.address()), done=known.there, failed=known.failed,
            )  # fmt: skip
            try:
                drive.run()
            finally:
                watch.say()
                executor.close()
                ledger.close_lost(known.experiments, run.run_id)
        return conclude(run, known, drive, watch.made)


def task_of(run: StepRun, store: str) -> Any:
    """Return a function that makes a task of a step of the graph."""

    def task(node: Node, upstream: str | None, attempt: int) -> Task:
        values = dict(node.values)
        return Task(node.key, node.step, values, upstream, run.run_id, run.experiment_id, store, attempt)

    return task


def conclude(run: StepRun, known: Known, drive: Drive, made: set[str]) -> int:
    """Leave the table of the cells; 0, or 1 if a cell failed."""
    runs = ledger.find(known.experiments, known.code).finished
    rows = grid_table.rows(
        known.cells, known.graph.cells, drive, {key: runs.get(key) for key in known.graph.cells}, made
    )
    grid_table.write(run.folder / table.CELLS, rows)
    failed = sum(row["state"] != "done" for row in rows)
    if done := grid_table.run_ids(run.folder / table.CELLS):
        compare(run, done, known.cells)
    run.describe(grid_table.markdown(rows, run.experiment_id))
    run.tags({"cells": len(rows), "failed": failed})
    output.keep(grid_table.result(run, rows, len(made)))
    return 1 if failed else 0


def compare(run: StepRun, done: Sequence[str], cells: Sequence[Values]) -> None:
    """Leave the comparison of the cells that are done, as `report` does, by suspect and by the axes of pruning."""
    by = [
        *Compare().groups,
        *(name for name in grid_cells.columns(cells) if name in Prune.model_fields and name != "seed"),
    ]
    with suppress(LineageError):  # none of them has the figures of a prune run
        comparing.write(run.folder, finished.find(None, None, done), list(dict.fromkeys(by)))
