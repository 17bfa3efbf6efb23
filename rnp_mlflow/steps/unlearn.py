"""Entry point `unlearn`: make the suspect model forget its task, and keep what it then is."""

import torch

from rnp_mlflow.artifacts import detection, history, progress, split, table
from rnp_mlflow.config import Unlearn, params_of
from rnp_mlflow.core.batches import TrainingHooks
from rnp_mlflow.core.detect import detect_target
from rnp_mlflow.core.evaluate import Scores, evaluate
from rnp_mlflow.core.moments import MomentMeter, evaluation_part
from rnp_mlflow.core.params import DetectParams, UnlearnParams
from rnp_mlflow.core.unlearn import UnlearningResult
from rnp_mlflow.core.verdict import TargetEstimate
from rnp_mlflow.models import store
from rnp_mlflow.pipeline import unlearn_model
from rnp_mlflow.steps import clean as clean_images
from rnp_mlflow.steps import epochs, notes, runtime, samples, subject
from rnp_mlflow.steps.captions import caption_of
from rnp_mlflow.steps.clean import labeled
from rnp_mlflow.steps.output import Result
from rnp_mlflow.steps.plan import Plan
from rnp_mlflow.steps.progress import note
from rnp_mlflow.steps.summary import scores_result
from rnp_mlflow.tracking import lineage
from rnp_mlflow.tracking.runs import StepRun


def execute(run: StepRun, plan: Plan, upstream: dict[str, str], device: torch.device) -> Result:
    """Unlearn on the defender's images (less those held out); leave the model and the indices used.

    Return the figures and the suspected class.
    """
    settings: Unlearn = plan["unlearn"]
    suspect = subject.load(upstream["attack"], plan, device)
    clean = clean_images.draw(suspect.data, settings, device)
    suspect.log_images(run, clean)
    settings = suspect.resolve_precision(run, settings, clean)
    test, train = suspect.eval_set(clean.holdout), labeled(clean.train)
    with runtime.low_memory_malloc(), runtime.progress("unlearn", settings.unlearning_epochs) as bar:
        figure = falling(settings.clean_threshold)
        meter = MomentMeter(evaluation_part(test), suspect.transform, settings.precision)
        meter.measure(0, suspect.model)
        hooks = TrainingHooks(
            epochs.on_epoch(run, "unlearn", bar, figure),
            meter.after_fall,
            epochs.on_step(bar, len(clean.train), settings.unlearning_batch_size, figure),
        )
        result = unlearn_model(
            suspect.model, train, suspect.transform, params_of(UnlearnParams, settings), hooks=hooks
        )  # fmt: skip
        meter.measure(result.checks[-1].step, result.model)
        bar.at(bar.done, f"accuracy {result.accuracy:.3f}")
    params = params_of(DetectParams, settings)
    with runtime.progress("proxy", None) as bar:
        estimate, proxy = detect_target(
            suspect.model, result, train, suspect.transform, params,
            on_step=lambda step, steps, success: bar.at(step, f"success rate {success:.2f}", steps),
        )  # fmt: skip
    with note("testing the unlearned model"):
        scores = evaluate(result.model, test, suspect.transform, settings.precision)
    store.save(run.folder / table.UNLEARNED_FOLDER, result.model, suspect.spec)
    history.write(run.folder, result.history)
    split.write(run.folder, clean.indices, clean.holdout_indices)
    if proxy:
        detection.write_proxy(run.folder, proxy)
        respondents = samples.Respondents(
            {"": suspect.model}, suspect.transform, settings.precision, suspect.spec.classes
        )
        caption = caption_of(run, suspect, settings.seed)
        samples.draw_proxied(run.folder / table.PROXY_PNG, clean.holdout, proxy, respondents, caption)
        rate = proxy.success_rate(suspect.model, labeled(clean.holdout), suspect.transform, settings.precision)
        run.tags({"proxy_asr": f"{rate:.4f}"})
    progress.write(run.folder, meter.found, meter.eval_set, result.checks)
    run.metrics({"acc": scores.acc, "asr": scores.asr, "ra": scores.ra})
    run.history([("unlearn/rule_accuracy", check.accuracy, check.step) for check in result.checks])
    epochs.log_moments(run, "unlearn", meter.found)
    run.tags({"reached_threshold": result.reached_threshold})
    runtime.log(f"  {remaining_accuracy(settings, result, len(clean.train))}")
    name = suspect.spec.classes[estimate.target] if estimate else ""
    if estimate:
        detection.write_estimate(run.folder, estimate)
        shares = {"target_share": estimate.target_share, "forgetting_rate": estimate.forgetting_rate}
        run.metrics({f"verdict/{key}": value for key, value in shares.items()})
        run.tags({"suspected_target": name})
        runtime.log(f"  {suspicion(estimate, name)}")
    suspected = [suspicion(estimate, name)] if estimate else []
    run.describe(
        description(suspect.run_id, scores, [remaining_accuracy(settings, result, len(clean.train)), *suspected])
    )
    if not result.reached_threshold:
        runtime.log(
            f"  warning: clean_threshold={settings.clean_threshold:g} was not reached; the mask may not "
            "separate the backdoor: raise unlearning_epochs or unlearning_lr"
        )
    found = scores_result(scores)
    target = suspect.spec.classes[estimate.target] if estimate else None
    more = {"stop_accuracy": result.accuracy, "reached_threshold": result.reached_threshold, "suspected_target": target}
    conclusion = f"suspected class {target!r}" if estimate else "no suspected class"
    return Result({**found.content, **more}, [*found.brief, f"  {conclusion}"])


def falling(limit: float) -> epochs.Figure:
    """Return what the bar shows: accuracy, and where unlearning ends."""
    return lambda record: f"accuracy {record.accuracy:.3f}, ends at {limit:g}"


def suspicion(estimate: TargetEstimate, name: str) -> str:
    """Say which class is suspected, and why."""
    return f"the unlearned model classifies {estimate.target_share:.0%} of other images as {name!r}"


def description(model_run_id: str, scores: Scores, lines: list[str]) -> str:
    """Return the run's description: the figures of the suspect and of the unlearned model, and these lines."""
    before = lineage.get(model_run_id).data.metrics
    rows = {"before": [before.get(name) for name in ("acc", "asr", "ra")],
            "unlearned": [scores.acc, scores.asr, scores.ra]}  # fmt: skip
    links = notes.lineage_links({"attack": model_run_id})
    sentences = [f"{line[0].upper()}{line[1:]}." for line in lines]
    return "\n\n".join([notes.table(rows, notes.FIGURES[:3]), *sentences, links])


def remaining_accuracy(settings: Unlearn, result: UnlearningResult, images: int) -> str:
    """Say what accuracy is left, and of what: of the model, or of an epoch's batches as in the reference."""
    steps = sum(record.steps for record in result.history)
    if settings.unlearning_stop == "epoch":
        return f"training accuracy in the last epoch {result.accuracy:.4f} after {steps} steps"
    return f"clean accuracy {result.accuracy:.4f} on {images} images after {steps} steps"
