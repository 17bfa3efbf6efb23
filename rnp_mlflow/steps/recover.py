"""Entry point `recover`: learn the mask that brings clean accuracy back."""

import torch

from rnp_mlflow.artifacts import history, progress, table
from rnp_mlflow.config import Recover, params_of
from rnp_mlflow.core.batches import EpochRecord, TrainingHooks
from rnp_mlflow.core.moments import MomentMeter, evaluation_part
from rnp_mlflow.core.neurons import flatten
from rnp_mlflow.core.params import RecoverParams
from rnp_mlflow.interop import masks
from rnp_mlflow.models import store
from rnp_mlflow.pipeline import recover_mask
from rnp_mlflow.report.mask import draw_mask
from rnp_mlflow.steps import clean as clean_images
from rnp_mlflow.steps import epochs, notes, runtime, stored, subject, unfinished
from rnp_mlflow.steps.captions import caption_of
from rnp_mlflow.steps.clean import labeled
from rnp_mlflow.steps.output import Result
from rnp_mlflow.steps.plan import Plan
from rnp_mlflow.tracking import lineage
from rnp_mlflow.tracking.runs import StepRun


def execute(run: StepRun, plan: Plan, upstream: dict[str, str], device: torch.device) -> Result:
    """Recover on the images that unlearning used; leave the mask in both forms and its histogram.

    Return how many neurons stay low.
    """
    settings: Recover = plan["recover"]
    suspect = subject.load(upstream["attack"], plan, device)
    model, _ = store.load(lineage.fetch(upstream["unlearn"], table.UNLEARNED_FOLDER))
    clean = clean_images.recorded(upstream["unlearn"], suspect.data, device)
    suspect.log_images(run, clean)
    proxy = stored.load_proxy(upstream["unlearn"], device)
    settings = suspect.resolve_precision(run, settings, clean)
    stand_in = proxy if suspect.triggered is None else None
    part = evaluation_part(suspect.eval_set(clean.holdout))
    meter = MomentMeter(part, suspect.transform, settings.precision, stand_in, labeled(clean.holdout))
    with unfinished.keeping(run, meter) as keeper, runtime.progress("recover", settings.recovering_epochs) as bar:
        hooks = TrainingHooks(
            epochs.on_epoch(run, "recover", bar, figure),
            meter.every(settings.recovering_epochs),
            epochs.on_step(bar, len(clean.train), settings.recovering_batch_size, figure),
            keeper,
        )
        result = recover_mask(
            model.to(device), labeled(clean.train), suspect.transform, params_of(RecoverParams, settings),
            suspect=suspect.model, proxy=proxy, hooks=hooks,
        )  # fmt: skip
    masks.write_csv(run.folder / table.MASK, result.mask)
    masks.write_text(run.folder / table.MASK_TEXT, result.mask)
    history.write(run.folder, result.history)
    progress.write(run.folder, meter.found, part)
    epochs.log_moments(run, "recover", meter.found)
    draw_mask(run.folder / table.MASK_PNG, result.mask, caption_of(run, suspect, settings.seed))
    values = flatten(result.mask)
    count, accuracy = int((values < 0.5).sum()), result.history[-1].accuracy
    low = f"{count} of {len(values)} neurons have a mask value below 0.5"
    last = regained(settings, accuracy, proxy is not None)
    run.describe("\n\n".join([f"**{low}**.", f"Recovery: {last}.", notes.lineage_links(upstream)]))
    runtime.log(f"  {last}")
    runtime.log(f"  {low}")
    return Result({"training_accuracy": accuracy, "neurons": len(values), "below_half": count}, [f"  {low}"])


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
