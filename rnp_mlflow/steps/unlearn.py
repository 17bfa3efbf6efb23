"""Entry point `unlearn`: make the suspect model forget its task, and keep what it then is."""

from dataclasses import asdict
from pathlib import Path

import torch

from rnp_mlflow.artifacts import detection, history, split, table
from rnp_mlflow.config import Unlearn, params_of
from rnp_mlflow.core.detect import detect_target
from rnp_mlflow.core.evaluate import evaluate
from rnp_mlflow.core.params import DetectParams, Precision, UnlearnParams
from rnp_mlflow.core.proxy import ProxyTrigger
from rnp_mlflow.core.unlearn import UnlearningResult
from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.models import store
from rnp_mlflow.pipeline import training_hooks, unlearn_model
from rnp_mlflow.steps import clean as clean_images
from rnp_mlflow.steps import epochs, runtime, samples, subject
from rnp_mlflow.steps.clean import labeled
from rnp_mlflow.steps.output import Result
from rnp_mlflow.steps.plan import Plan
from rnp_mlflow.steps.progress import note
from rnp_mlflow.steps.summary import scores_result
from rnp_mlflow.tracking import figures
from rnp_mlflow.tracking.runs import StepRun


def execute(run: StepRun, plan: Plan, upstream: dict[str, str], device: torch.device) -> Result:
    """Unlearn on the defender's images (less those held out); leave the model and the indices used.

    Return the figures and the suspected class.
    """
    settings: Unlearn = plan["unlearn"]
    suspect = subject.load(upstream["attack"], plan, device)
    run.dataset(suspect.data.name, suspect.data_digest, suspect.place)
    clean = clean_images.draw(suspect.data, settings, device)
    settings = suspect.resolve_precision(run, settings, clean)
    test, train = suspect.eval_set(clean.holdout), labeled(clean.train)
    with runtime.low_memory_malloc(), runtime.progress("unlearn", settings.unlearning_epochs) as bar:
        figure = falling(settings.clean_threshold)
        hooks = training_hooks(
            test, suspect.transform, settings.precision, every=settings.eval_every,
            on_epoch=epochs.on_epoch(run, "unlearn", bar, figure),
            on_step=epochs.on_step(bar, len(clean.train), settings.unlearning_batch_size, figure),
        )  # fmt: skip
        result = unlearn_model(
            suspect.model, train, suspect.transform, params_of(UnlearnParams, settings), hooks=hooks
        )  # fmt: skip
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
        draw_proxy(run.folder / table.PROXY_PNG, proxy, suspect, clean.holdout, settings.precision)
        rate = proxy.success_rate(suspect.model, labeled(clean.holdout), suspect.transform, settings.precision)
        run.metrics({"verdict/proxy_asr": rate, "verdict/proxy_norm": float(proxy.delta.norm())})
    steps = sum(record.steps for record in result.history)
    run.metrics({"acc": scores.acc, "asr": scores.asr, "ra": scores.ra, "unlearn/steps": steps})
    run.metrics({"unlearn/stop_accuracy": result.accuracy})
    run.tags({"reached_threshold": result.reached_threshold})
    runtime.log(f"  {remaining_accuracy(settings, result, len(clean.train))}")
    if estimate:
        name = suspect.spec.classes[estimate.target]
        detection.write_estimate(run.folder, estimate)
        run.metrics({f"verdict/{key}": value for key, value in asdict(estimate).items()})
        run.tags({"suspected_target": name})
        runtime.log(f"  the unlearned model classifies {estimate.target_share:.0%} of other images as {name!r}")
    if not result.reached_threshold:
        runtime.log(
            f"  warning: clean_threshold={settings.clean_threshold:g} was not reached; the mask may not "
            "separate the backdoor: raise unlearning_epochs or unlearning_lr"
        )
    found = scores_result(scores)
    target = suspect.spec.classes[estimate.target] if estimate else None
    more = {"stop_accuracy": result.accuracy, "reached_threshold": result.reached_threshold, "suspected_target": target}
    suspected = f"suspected class {target!r}" if estimate else "no suspected class"
    return Result({**found.content, **more}, [*found.brief, f"  {suspected}"])


def falling(limit: float) -> epochs.Figure:
    """Return what the bar shows: accuracy, and where unlearning ends."""
    return lambda record: f"accuracy {record.accuracy:.3f}, ends at {limit:g}"


def remaining_accuracy(settings: Unlearn, result: UnlearningResult, images: int) -> str:
    """Say what accuracy is left, and of what: of the model, or of an epoch's batches as in the reference."""
    steps = sum(record.steps for record in result.history)
    if settings.unlearning_stop == "epoch":
        return f"training accuracy in the last epoch {result.accuracy:.4f} after {steps} steps"
    return f"clean accuracy {result.accuracy:.4f} on {images} images after {steps} steps"


def draw_proxy(
    file: Path, proxy: ProxyTrigger, suspect: subject.Suspect, holdout: ImageSet, precision: Precision
) -> None:
    """Draw a held-out image of up to eight other classes, the same with the proxy, and what it changes.

    Under them stand the suspect's answers: to the image, and to what the proxy makes of it.
    """
    others = [k for k in holdout.labels.unique() if k != proxy.target][:8]
    if not others:
        return
    shown, classes = holdout[torch.stack([(holdout.labels == k).nonzero()[0, 0] for k in others])], suspect.spec.classes
    changed = suspect.transform.pixels(proxy(suspect.transform(shown.images, None))).cpu()
    plain, proxied = (
        samples.answering(suspect.model, transform, precision, classes)(shown.images)
        for transform in (suspect.transform, proxy.composed_with(suspect.transform))
    )
    rows = [("clean", shown.images.cpu(), plain), ("with the proxy", changed, proxied)]
    note = f"{samples.CAPTION}; the proxy was made to lead to {classes[proxy.target]}"
    figures.sample_png(file, rows, [classes[k] for k in shown.labels.tolist()], note)
