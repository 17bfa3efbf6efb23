"""What every step that trains does after each step and each epoch, and logs of its moments."""

from collections.abc import Callable, Sequence

from rnp_mlflow.core.batches import EpochCallback, EpochRecord
from rnp_mlflow.core.moments import Moment
from rnp_mlflow.steps import runtime
from rnp_mlflow.steps.progress import Bar
from rnp_mlflow.tracking.runs import StepRun

Figure = Callable[[EpochRecord], str]


def figures(record: EpochRecord) -> str:
    """Return what a bar shows of an epoch: its loss and accuracy so far."""
    return f"loss {record.loss:.3f}  accuracy {record.accuracy:.3f}"


def on_step(bar: Bar, images: int, batch_size: int, figure: Figure = figures) -> EpochCallback:
    """Return what training calls after every step: it moves the bar by its part of an epoch, and shows the figure."""
    steps = max(1, -(-images // batch_size))

    def show(record: EpochRecord) -> None:
        bar.at(record.epoch - 1 + record.steps / steps, figure(record))

    return show


def on_epoch(run: StepRun, prefix: str, bar: Bar, figure: Figure = figures) -> EpochCallback:
    """Return what training calls after every epoch: it logs the record, moves the bar, and gives back memory."""

    def log(record: EpochRecord) -> None:
        values = {"loss": record.loss, "accuracy": record.accuracy}
        run.metrics({f"{prefix}/{name}": value for name, value in values.items()}, record.epoch)
        bar.at(record.epoch, figure(record))
        runtime.release_memory()

    return log


def log_moments(run: StepRun, prefix: str, moments: Sequence[Moment]) -> None:
    """Log what was measured at the moments of a step, over the steps made."""
    values = [
        (name, value, m.step)
        for m in moments
        for name, value in {"acc": m.scores.acc, "asr": m.scores.asr, "proxy_asr": m.proxy_asr}.items()
    ]
    run.history([(f"{prefix}/test_{name}", value, step) for name, value, step in values])
