"""What every step that trains logs of its epochs and moments."""

from collections.abc import Sequence

from rnp_mlflow.core.batches import EpochCallback, EpochRecord
from rnp_mlflow.core.moments import Moment
from rnp_mlflow.steps import runtime
from rnp_mlflow.tracking.runs import StepRun


def on_epoch(run: StepRun, prefix: str, advance: runtime.Advance) -> EpochCallback:
    """Return what training calls after every epoch: it logs the record and advances the bar."""

    def log(record: EpochRecord) -> None:
        values = {"loss": record.loss, "accuracy": record.accuracy}
        run.metrics({f"{prefix}/{name}": value for name, value in values.items()}, record.epoch)
        advance()

    return log


def log_moments(run: StepRun, prefix: str, moments: Sequence[Moment]) -> None:
    """Log what was measured at the moments of a step, over the steps made."""
    values = [
        (name, value, m.step)
        for m in moments
        for name, value in {"acc": m.scores.acc, "asr": m.scores.asr, "proxy_asr": m.proxy_asr}.items()
    ]
    run.history([(f"{prefix}/test_{name}", value, step) for name, value, step in values])
