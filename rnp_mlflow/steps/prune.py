"""Entry point `prune`: draw the curve, choose the point, keep the purified model."""

from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn

from rnp_mlflow.artifacts import table
from rnp_mlflow.config import Prune, params_of
from rnp_mlflow.core.curve import CurvePoint
from rnp_mlflow.core.neurons import Mask, copy_sharing_weights
from rnp_mlflow.core.params import RepairParams, SweepParams
from rnp_mlflow.core.proxy import ProxyTrigger
from rnp_mlflow.core.prune import prune_at_, ranking
from rnp_mlflow.core.pruning_curve import PruningCurve
from rnp_mlflow.core.repair import least_acc_ratio
from rnp_mlflow.core.selectors import (
    SELECTORS,
    backdoor_suspected,
    best_der_point,
    confidence_of,
    select_point,
    trigger_free,
)
from rnp_mlflow.core.trace import planned_points
from rnp_mlflow.core.units import norm_layers
from rnp_mlflow.core.verdict import TargetEstimate, false_alarm_rate
from rnp_mlflow.errors import ConfigError
from rnp_mlflow.interop import backdoorbench, masks
from rnp_mlflow.interop.architectures import backdoorbench_name
from rnp_mlflow.models import store
from rnp_mlflow.pipeline import CurveImages, Repair, draw_curve, repair_pruned, views_of
from rnp_mlflow.steps import clean as clean_images
from rnp_mlflow.steps import curve, notes, page, pictures, printed, registering, runtime, stored, subject
from rnp_mlflow.steps.clean import labeled
from rnp_mlflow.steps.output import Result
from rnp_mlflow.steps.plan import Plan
from rnp_mlflow.steps.progress import note
from rnp_mlflow.steps.summary import REPAIRED, DetectionSummary, HoldoutViews, ImageCounts, PointFigures, PruneSummary
from rnp_mlflow.tracking import lineage, models, naming
from rnp_mlflow.tracking.runs import StepRun

Detected = tuple[TargetEstimate | None, ProxyTrigger | None]


def execute(run: StepRun, plan: Plan, upstream: dict[str, str], device: torch.device) -> Result:
    """Sweep the mask over the suspect model; leave curve, summary and purified model; return what to print."""
    settings: Prune = plan["prune"]
    for line in advice(plan.given, settings):
        runtime.log(line)
    suspect = subject.load(upstream["attack"], plan, device)
    check_possible(settings, suspect.spec, suspect.triggered is not None)
    if settings.mask_file:
        clean = clean_images.draw(suspect.data, plan["unlearn"], device)
        mask = masks.read(Path(settings.mask_file), suspect.model)
    else:
        clean = clean_images.recorded(upstream["unlearn"], suspect.data, device)
        mask = masks.read(lineage.fetch(upstream["recover"], table.MASK), suspect.model)
    suspect.log_images(run, clean)
    settings = suspect.resolve_precision(run, settings, clean)
    params = params_of(SweepParams, settings)
    if not norm_layers(suspect.model):
        runtime.log("  no BatchNorm: mask values are shares within each kind of neuron, and bn_stats is not used")
    detected = stored.load_detected(upstream["unlearn"], device) if "unlearn" in upstream else (None, None)
    found = sweep_with_progress(suspect, clean, mask, detected, settings)
    points = summary_points(params, found)
    unpruned, chosen = (found.on_full_test_set(point) for point in (found.points[0], select_point(found, params)))
    before = copy_sharing_weights(suspect.model)
    pruned = prune_at_(suspect.model, mask, chosen.num_pruned, found.calibrate)  # in place: no longer needed as it is
    with runtime.progress("repair", None) as bar:
        task = Repair(
            before, labeled(clean.train), suspect.transform, params_of(RepairParams, settings), found,
            lambda step, steps, loss: bar.at(step, f"loss {loss:.3f}", steps),
        )  # fmt: skip
        purified, repaired = repair_pruned(pruned, task, chosen, params, detected[1])
    if repaired:
        points[REPAIRED] = PointFigures.of(repaired, unpruned.scores)
    summary = PruneSummary(
        before=PointFigures.of(unpruned),
        select_by=params.select_by,
        selected=REPAIRED if repaired else SELECTORS[params.select_by].row,
        pruning_by=params.pruning_by,
        curve_eval_size=params.curve_eval_size,
        points=points,
        verdict=detection_summary(params, found, detected[0], suspect.spec.classes),
        layers={k: n for k, n in pictures.pruned_by_layer(mask, chosen.num_pruned).items() if n[0]},
        images=image_counts(suspect, clean),
        views=holdout_views(params, suspect, clean),
    )
    if summary.lacks_repair:
        runtime.log(
            "  warning: no repair was kept, because held-out accuracy would fall further than acc_ratio allows (if the "
            f"verdict is borderline, {least_acc_ratio(params, borderline=True):.2f}), or the proxy still works: the "
            "backdoor may still be in the model"
        )
    store.save(run.folder / table.PURIFIED_FOLDER, purified, suspect.spec)
    masks.write_csv(run.folder / table.PRUNED_NEURONS, mask, ranking(mask)[: chosen.num_pruned])
    if settings.export == "backdoorbench":
        export(run.folder / backdoorbench.DEFENSE, purified, suspect.spec)
    runtime.release_memory()  # torch.export takes some
    verdict = verdict_tags(summary.verdict)
    run.tags(verdict)
    card = notes.card(summary, {**upstream, "prune": run.run_id})
    about = {"prune_run_id": run.run_id, "pruned": chosen.num_pruned, **run.subject.tags(), **verdict}
    example, name = suspect.data.train.images[:2], naming.model_name(run.subject)
    with note("exporting the purified model"):
        model_id = models.log(purified, suspect.spec, example, name=name, tags=about, card=card)
    curve.write(run, found.points, summary, model_id=model_id)
    shown = pictures.Pruned(
        suspect, before, purified, mask, found.points, unpruned, repaired or chosen, summary, clean.holdout,
        detected[1], settings.precision,
    )  # fmt: skip
    with note("drawing"):
        pictures.draw_all(run, shown, upstream, settings.seed, plan["unlearn"].clean_threshold)
    page.write(run, summary, plan, upstream)
    run.describe(notes.pruning(summary, upstream))
    run.upload()
    if settings.register_as:
        registering.register(run, settings, summary, model_id, upstream)
    return printed.result(run, summary)


def check_possible(settings: Prune, spec: store.ModelSpec, triggered: bool) -> None:
    """Refuse what cannot be done with a suspect, before the work. triggered: whether triggered images of it are known.

    Raises:
        ConfigError: the oracle without triggered images, or an export that BackdoorBench could not load.
        MaskError: the mask file is broken, or another model's.
    """
    if settings.select_by == "asr" and not triggered:
        raise ConfigError("select_by=asr needs triggered images, and this model run has none")
    if settings.export == "backdoorbench":
        backdoorbench_name(spec.architecture, spec.width, spec.input_shape[0])
    if settings.mask_file:
        with torch.random.fork_rng(devices=[]):  # the model that it is compared with draws its weights
            masks.read(Path(settings.mask_file), spec.build())


def advice(given: Collection[str], settings: Prune) -> list[str]:
    """Return a line for each parameter that the call gave and that does not decide where to prune.

    given: the names of the parameters that the call gave.
    """
    used = SELECTORS[settings.select_by]
    if settings.mask_file and settings.select_by == "proxy":
        return ["  warning: with mask_file there is no proxy and no verdict, so acc_ratio decides where to prune"]
    decides = {name: word for word, selector in SELECTORS.items() for name in selector.decided_by}
    return [
        f"  warning: {name}={getattr(settings, name):g} does not decide where to prune: select_by={settings.select_by} "
        f"prunes {used.prunes_at}; add select_by={word} to prune by it"
        for name, word in decides.items()
        if name in given and name not in used.decided_by
    ]


def export(file: Path, purified: nn.Module, spec: store.ModelSpec) -> None:
    """Write BackdoorBench's file (`check_possible` has asked `backdoorbench_name` before the work)."""
    backdoorbench.write_defense(
        file, purified, spec.architecture, len(spec.classes), width=spec.width, channels=spec.input_shape[0]
    )


def sweep_with_progress(
    suspect: subject.Suspect, clean: clean_images.CleanImages, mask: Mask, detected: Detected, settings: Prune
) -> PruningCurve:
    """Draw the curve, with a progress bar."""
    params = params_of(SweepParams, settings)
    images = CurveImages(labeled(clean.train), labeled(clean.holdout), suspect.eval_set(clean.holdout))
    # Most often two more are evaluated next to the choice.
    expected = len(planned_points(mask, params)[0]) // params.pruning_stride + 2
    with runtime.progress("prune", expected) as bar:
        return draw_curve(
            suspect.model, mask, images, suspect.transform, params, detected=detected,
            repair=params_of(RepairParams, settings), on_point=lambda point: bar(trigger_free_figures(point)),
        )  # fmt: skip


def trigger_free_figures(point: CurvePoint) -> str:
    """Return what the bar shows of a point: held-out accuracy, and the proxy's success rate if there is a proxy."""
    proxy = "" if point.proxy_asr is None else f"  proxy {point.proxy_asr:.3f}"
    return f"held-out ACC {point.holdout_acc:.3f}{proxy}"


def image_counts(suspect: subject.Suspect, clean: clean_images.CleanImages) -> ImageCounts:
    """Count the images."""
    triggered = len(suspect.triggered.images) if suspect.triggered else 0
    return ImageCounts(len(clean.indices), len(clean.holdout), len(suspect.data.test or ()), triggered)


def holdout_views(params: SweepParams, suspect: subject.Suspect, clean: clean_images.CleanImages) -> HoldoutViews:
    """Say how held-out accuracy is measured."""
    some, each = views_of(params, len(clean.holdout))
    return HoldoutViews(some, each, int(suspect.transform.crop > 0), int(suspect.transform.flip))


def detection_summary(
    params: SweepParams, found: PruningCurve, estimate: TargetEstimate | None, classes: tuple[str, ...]
) -> DetectionSummary | None:
    """Say what indicates a backdoor, and what does not; None if unlearning gave no estimate."""
    if estimate is None:
        return None
    return DetectionSummary(
        backdoor_suspected(found, params),
        classes[estimate.target],
        estimate.target_share,
        found.proxy_norm,
        found.removal_cost,
        found.forgetting_rate,
        found.benign_score,
        params.benign_threshold,
        params.clear_threshold,
        confidence_of(found, params),
        None
        if found.benign_score is None
        else false_alarm_rate(found.benign_score, norm_free=found.norm_ratio is not None),
        found.norm_ratio,
        found.careful,
    )


def verdict_tags(verdict: DetectionSummary | None) -> dict[str, object]:
    """Return the verdict as tags, if there is one, and the class that a backdoor would lead to."""
    tags: dict[str, object] = {}
    if verdict is not None and verdict.backdoor_suspected is not None:
        tags |= {"backdoor_suspected": verdict.backdoor_suspected, "verdict": verdict.confidence}
    if verdict is not None and verdict.backdoor_suspected is not False:
        tags["suspected_target"] = verdict.target
    return tags


def tested(name: str, point: PointFigures) -> str:
    """Return what the bar shows of an operating point."""
    return f"{name}: ACC {point.acc:.3f}" + ("" if point.asr is None else f"  ASR {point.asr:.3f}")


def summary_points(params: SweepParams, found: PruningCurve) -> dict[str, PointFigures]:
    """Return the figures of each operating point, on all test images: chosen, fixed and, if ASR is known, oracle."""
    picked = {"chosen": select_point(found, trigger_free(params)), "fixed": found.fixed}
    before = found.on_full_test_set(found.points[0]).scores
    points: dict[str, PointFigures] = {}
    with runtime.progress("test", len(picked) + 1) as bar:
        for name, point in picked.items():
            points[name] = PointFigures.of(found.on_full_test_set(point), before)
            bar(tested(name, points[name]))
        if best := best_der_point(found, params):
            points["oracle"] = PointFigures.of(found.on_full_test_set(best), before)
            bar(tested("oracle", points["oracle"]))
    return points
