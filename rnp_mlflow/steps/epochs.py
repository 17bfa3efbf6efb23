"""What every step that trains does after each epoch."""

from dataclasses import asdict

from rnp_mlflow.core.batches import EpochCallback, EpochRecord
from rnp_mlflow.steps import runtime
from rnp_mlflow.tracking.runs import StepRun


def on_epoch(run: StepRun, prefix: str, advance: runtime.Advance) -> EpochCallback:
    """Return what training calls after every epoch: it logs the record and advances the bar."""

    def log(record: EpochRecord) -> None:
        tested = {f"test_{name}": value for name, value in asdict(record.scores).items()} if record.scores else {}
        values = {"loss": record.loss, "accuracy": record.accuracy} | tested
        run.metrics({f"{prefix}/{name}": value for name, value in values.items()}, record.epoch)
        advance()

    return log
