"""The matrix: attacks × architectures × seeds, through the project's own entry points. It can be stopped and resumed.

    python -m benchmarks.matrix --data_dir /path/to/cifar10 --part 1/2

Finished models are found in the MLflow experiment by their tags, defences in `results/`; neither is made again.
"""

import json
from pathlib import Path
from typing import Any

import click
import mlflow
from mlflow.tracking import MlflowClient

from benchmarks.rows import Row, rows
from benchmarks.variants import VARIANTS
from rnp_mlflow.config import text
from rnp_mlflow.errors import RnpError
from rnp_mlflow.steps import chain, runtime
from rnp_mlflow.steps.plan import make_plan

EXPERIMENT = "matrix"
RESULTS = Path(__file__).parent / "results"
FROM_OURS = ("nwc", "random")  # variants made from our unlearned model, or of as many neurons as ours
ROW = "matrix.row"  # the tag of an attack run that says which row it is


def finished(row: Row) -> str | None:
    """Return the newest finished attack run of this row with its present settings."""
    experiment = mlflow.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return None
    wanted = {f"tags.`{ROW}`": row.name, "status": "FINISHED"}
    wanted |= {f"params.{name}": text(value) for name, value in row.settings().items()}
    rule = " and ".join(f"{name} = '{value}'" for name, value in wanted.items())
    found = MlflowClient().search_runs([experiment.experiment_id], rule, max_results=1, order_by=["start_time DESC"])
    return found[0].info.run_id if found else None


def suspect(row: Row, data_dir: str, threads: int) -> str:
    """Return the run ID of the row's model; train it if it is missing."""
    if run_id := finished(row):
        return run_id
    runtime.log(f"== {row.name}: attack")
    run_id = chain.run_step("attack", make_plan("attack", row.settings() | {"data_dir": data_dir, "threads": threads}))
    MlflowClient().set_tag(run_id, ROW, row.name)
    return run_id


def defend(row: Row, run_id: str, threads: int, again: list[str]) -> None:
    """Run every variant that the row's file does not hold yet; write the file after each."""
    file = RESULTS / f"{row.name}.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    found = known.get("variants", {}) if known.get("attack_run") == run_id else {}
    base = {"model_run_id": run_id, "seed": row.seed, "ratio": row.ratio, "threads": threads}
    for name, make in VARIANTS.items():
        if name in found and name not in again and not (name in FROM_OURS and "ours" in again):
            continue
        runtime.log(f"== {row.name}: {name}")
        found[name] = make(base, found)
        write(row, run_id, found)


def write(row: Row, run_id: str, found: dict[str, Any]) -> None:
    """Write the row's figures into a file of the repository."""
    run = MlflowClient().get_run(run_id)
    tags = {name: run.data.tags.get(f"rnp.{name}") for name in ("machine", "python", "torch", "threads")}
    planted = {name: run.data.metrics.get(name) for name in ("acc", "asr", "ra")}
    content = {"row": vars(row), "attack_run": run_id, "before": planted, "machine": tags, "variants": found}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{row.name}.json").write_text(json.dumps(content, indent=1) + "\n")


@click.command()
@click.option("--data_dir", required=True, help="CIFAR-10: torchvision's files, an image folder or an npz")
@click.option("--part", default="1/1", help="K/N: every N-th row from the K-th, for N processes side by side")
@click.option("--only", default="", help="rows whose name contains this")
@click.option("--full", is_flag=True, help="all images, full width, 100 epochs: for a GPU")
@click.option("--stage", type=click.Choice(["attack", "all"]), default="all", help="train the models, or all")
@click.option("--again", default="", help="variants to make again, separated by commas")
@click.option("--threads", default=1, help="CPU threads of a process")
def main(*, data_dir: str, part: str, only: str, full: bool, stage: str, again: str, threads: int) -> None:
    """Make what is missing of the matrix."""
    mlflow.set_experiment(EXPERIMENT)
    first, every = (int(word) for word in part.split("/"))
    for row in [row for row in rows(full) if only in row.name][first - 1 :: every]:
        try:
            run_id = suspect(row, data_dir, threads)
            if stage == "all":
                defend(row, run_id, threads, again.split(","))
        except RnpError as error:
            runtime.log(f"== {row.name}: {error}")


if __name__ == "__main__":
    main()
