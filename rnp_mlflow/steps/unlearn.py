"""Entry point `unlearn`: make the suspect model forget its task, and keep what it then is."""

import torch

from rnp_mlflow.config import Unlearn
from rnp_mlflow.core.evaluate import evaluate
from rnp_mlflow.interop import indices
from rnp_mlflow.method import unlearn_by
from rnp_mlflow.models import store
from rnp_mlflow.steps import runtime, subject
from rnp_mlflow.steps.attack import on_epoch, write_history
from rnp_mlflow.steps.plan import Plan
from rnp_mlflow.tracking.lineage import file_digest
from rnp_mlflow.tracking.runs import StepRun


def make(run: StepRun, plan: Plan, upstream: dict[str, str], device: torch.device) -> str:
    """Unlearn on the defender's images (less those held out); leave the model and the indices used."""
    settings: Unlearn = plan["unlearn"]
    suspect = subject.load(upstream["attack"], plan, device)
    run.dataset(suspect.data.name, suspect.data_digest, suspect.place)
    clean = subject.draw_clean(suspect.data, settings, device)
    with runtime.progress("unlearn", settings.unlearning_epochs) as advance:
        log = on_epoch(run, "unlearn", advance)
        result = unlearn_by(settings, suspect.model, clean.used.pair, suspect.transform, log)
    scores = evaluate(result.model, suspect.judged_by(clean.held), suspect.transform)
    store.save(run.folder / "unlearned_model", result.model, suspect.spec)
    write_history(run.folder / "history.csv", result.history)
    indices.write(run.folder / indices.DEFENCE, clean.indices)
    indices.write(run.folder / indices.HELD_OUT, clean.held_indices)
    steps = sum(record.steps for record in result.history)
    run.metrics({"acc": scores.acc, "asr": scores.asr, "ra": scores.ra, "unlearn/steps": steps})
    run.metrics({"unlearn/stop_accuracy": result.accuracy})
    run.tags({"reached_threshold": result.reached})
    runtime.say(f"  clean accuracy {result.accuracy:.4f} on {len(clean.used)} images after {steps} steps")
    if not result.reached:
        runtime.say(
            f"  warning: clean_threshold={settings.clean_threshold:g} was not reached; the mask may not "
            "separate: raise unlearning_epochs or unlearning_lr"
        )
    names = ("unlearned_model/model.safetensors", indices.DEFENCE, indices.HELD_OUT)
    return file_digest(*(run.folder / name for name in names))
