"""Entry point `recover`: learn the mask that brings clean accuracy back."""

import torch

from rnp_mlflow.artifacts import history, table
from rnp_mlflow.config import Recover, params_of
from rnp_mlflow.core.batches import EpochRecord
from rnp_mlflow.core.neurons import flatten
from rnp_mlflow.core.params import RecoverParams
from rnp_mlflow.interop import masks
from rnp_mlflow.models import store
from rnp_mlflow.pipeline import recover_mask, training_hooks
from rnp_mlflow.steps import clean as clean_images
from rnp_mlflow.steps import epochs, runtime, stored, subject
from rnp_mlflow.steps.clean import labeled
from rnp_mlflow.steps.output import Result
from rnp_mlflow.steps.plan import Plan
from rnp_mlflow.tracking import figures, lineage
from rnp_mlflow.tracking.runs import StepRun


def execute(run: StepRun, plan: Plan, upstream: dict[str, str], device: torch.device) -> Result:
    """Recover on the images that unlearning used; leave the mask in both forms and its histogram.

    Return how many neurons stay low.
    """
    settings: Recover = plan["recover"]
    suspect = subject.load(upstream["attack"], plan, device)
    run.dataset(suspect.data.name, suspect.data_digest, suspect.place)
    model, _ = store.load(lineage.fetch(upstream["unlearn"], table.UNLEARNED_FOLDER))
    clean = clean_images.recorded(upstream["unlearn"], suspect.data, device)
    proxy = stored.load_proxy(upstream["unlearn"], device)
    settings = suspect.resolve_precision(run, settings, clean)
    test = suspect.eval_set(clean.holdout)
    with runtime.progress("recover", settings.recovering_epochs) as bar:
        hooks = training_hooks(
            test, suspect.transform, settings.precision, every=settings.eval_every,
            on_epoch=epochs.on_epoch(run, "recover", bar, figure),
            on_step=epochs.on_step(bar, len(clean.train), settings.recovering_batch_size, figure),
        )  # fmt: skip
        result = recover_mask(
            model.to(device), labeled(clean.train), suspect.transform, params_of(RecoverParams, settings),
            suspect=suspect.model, proxy=proxy, hooks=hooks,
        )  # fmt: skip
    masks.write_csv(run.folder / table.MASK, result.mask)
    masks.write_text(run.folder / table.MASK_TEXT, result.mask)
    history.write(run.folder, result.history)
    figures.mask_histograms(run.folder / table.MASK_PNG, result.mask)
    values = flatten(result.mask)
    low, accuracy = int((values < 0.5).sum()), result.history[-1].accuracy
    run.metrics({"recover/neurons": len(values), "recover/below_half": low})
    runtime.log(f"  {regained(settings, accuracy, proxy is not None)}")
    runtime.log(f"  {low} of {len(values)} neurons have a mask value below 0.5")
    return Result(
        {"training_accuracy": accuracy, "neurons": len(values), "below_half": low},
        [f"  {low} of {len(values)} neurons have a mask value below 0.5"],
    )


def figure(record: EpochRecord) -> str:
    """Return what the bar shows."""
    return f"accuracy {record.accuracy:.3f}"


def regained(settings: Recover, accuracy: float, proxy: bool) -> str:
    """Say what the last epoch's accuracy is: of batches in training, not of the mask that is kept."""
    of, how = "the unlearned model", ""
    if proxy and settings.proxy_share:
        how = f"; {settings.proxy_share:.0%} of the other classes' images carried the proxy"
        of += " and the suspect" if settings.suspect_steps else ""
    return f"training accuracy in the last epoch {accuracy:.4f} (of {of}{how})"
