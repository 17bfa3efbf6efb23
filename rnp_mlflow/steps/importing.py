"""Entry point `import`: a model that we did not train becomes a model run. Nothing in its files is executed."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from rnp_mlflow.artifacts import poisoning, table
from rnp_mlflow.artifacts import source as source_file
from rnp_mlflow.config import Import
from rnp_mlflow.core.evaluate import Scores, evaluate, resolve_precision
from rnp_mlflow.core.units import units_of
from rnp_mlflow.data import triggered as triggered_data
from rnp_mlflow.data.imageset import Dataset
from rnp_mlflow.data.triggered import Triggered
from rnp_mlflow.errors import ConfigError, DataError, ModelError
from rnp_mlflow.models import own_code, store
from rnp_mlflow.models.fit import Candidate, candidates
from rnp_mlflow.steps import guard, images, labels, model_source, notes, runtime, samples, subject
from rnp_mlflow.steps.architecture import settle_architecture
from rnp_mlflow.steps.captions import caption_of_model
from rnp_mlflow.steps.model_source import ImportedModel
from rnp_mlflow.steps.output import Result
from rnp_mlflow.steps.plan import Plan
from rnp_mlflow.steps.progress import note
from rnp_mlflow.steps.summary import scores_result
from rnp_mlflow.tracking.runs import StepRun


def execute(run: StepRun, plan: Plan, upstream: dict[str, str], device: torch.device) -> Result:
    """Take the model in and evaluate it; leave what `attack` leaves, ASR and RA only if triggered images are known.

    Return the figures.
    """
    settings: Import = plan["import"]
    if settings.model_factory:
        settings = settings.model_copy(update={"model": factory_name(settings, plan.is_rerun)})
    with note("reading the model"):
        found = model_source.read_source(settings)
    fits = fitting(settings, found)
    source = model_source.data_source(settings, found, plan.is_rerun, fits[0].channels)
    data, digest = subject.load_data(source)
    model, spec = suspect_model(settings, found, fits, data)
    bad = known_triggered(settings, found, data)
    images.log_images(run, data, digest, source.place, suspect_id=run.run_id, triggered=bad)
    clean = data.test or data.train
    test, transform = subject.test_set(clean, bad, device), subject.preprocess(spec, data)
    precision = resolve_precision(settings.precision, model.to(device), test.images, transform)
    with note("testing the model"):
        scores = evaluate(model, test, transform, precision)
    folders = source.place != "embedded" and Path(source.place).is_dir()
    judged = guard.Images(clean, data.classes, folders, found.mean is None and found.own_norm is None)
    with note("comparing with other ways to read the images"):
        judgement = guard.check(model, judged, transform, precision, acc=scores.acc, recorded=found.acc)
    store.save(run.folder / table.MODEL_FOLDER, model, spec)
    source_file.write(run.folder, source)
    targets = bad.target_labels.unique().tolist() if bad is not None else []
    target = targets[0] if len(targets) == 1 else None
    poisoned = found.poisoned if found.poisoned is not None else torch.empty(0).long()
    known = {"attack": "unknown", "target": target, "label_mode": None, "poison_rate": None}
    poisoning.write(run.folder, known, {"indices": poisoned}, bad)
    if bad is not None:
        respondents = samples.Respondents({"": model}, transform, precision, spec.classes)
        caption = caption_of_model(run, spec, data.name, settings.seed, ("unknown", None))
        samples.draw_triggered(run.folder / table.SAMPLES_PNG, bad, clean, respondents, caption)
    run.tags({"precision": precision})
    run.metrics({"acc": scores.acc, "asr": scores.asr, "ra": scores.ra})
    dataset = labels.dataset_name(source.dataset, source.data_dir)
    labels.label(run, "import", None, replace(labels.planned(plan), model=spec.architecture, dataset=dataset))
    run.describe(description(spec, data, bad, scores))
    report(spec, data, bad, scores)
    for line in judgement.lines:
        runtime.log(line)
    run.tags({"accuracy_doubtful": bool(judgement.lines)})
    judgement.require(settings.require_acc)
    return scores_result(scores)


def factory_name(settings: Import, is_rerun: bool) -> str:
    """Return the architecture's name for the user's own function; a repetition permits nothing by itself.

    Raises:
        ConfigError: a model is named, too.
        ModelError: the function has another form, is not permitted, or is not there.
    """
    if settings.model:
        raise ConfigError(f"give model={settings.model} or model_factory={settings.model_factory}, not both")
    factory = str(settings.model_factory)
    if not is_rerun:
        own_code.permit(factory)
    return own_code.architecture_of(factory)


def description(spec: store.ModelSpec, data: Dataset, bad: Triggered | None, scores: Scores) -> str:
    """Return the run's description: the figures, and what came in."""
    kind, count = ("test", len(data.test)) if data.test is not None else ("clean", len(data.train))
    known = f"ASR and RA: {len(bad.images)} triggered ones" if bad is not None else "no triggered images are known"
    model = f"`{spec.architecture}`, {len(spec.classes)} classes; ACC: {count} {kind} images; {known}."
    return "\n\n".join([notes.scores_table({"suspect": scores}), model])


def fitting(settings: Import, found: ImportedModel) -> list[Candidate]:
    """Return the architectures that the weights fit: of the name that settings or source give, else of all.

    Raises:
        ModelError: unknown name, or none fits.
    """
    exact = found.exact and settings.model is None
    return candidates(settings.model or found.architecture, found.weights, exact)


def suspect_model(
    settings: Import, found: ImportedModel, fits: list[Candidate], data: Dataset
) -> tuple[nn.Module, store.ModelSpec]:
    """Build the imported model, and check that it takes the images it is to be evaluated on.

    Raises:
        DataError: the images are of another size.
        ModelError: their classes are others, or they do not tell which of several architectures it is.
    """
    size, given = found.image_size, data.train.shape[1:]
    if size not in (None, given):
        (height, width), origin = size, "image_size was given" if settings.image_size else "these are"
        advice = f"image_size={width}" if height == width else "images of that size, without image_size"
        raise DataError(
            f"the model takes images of {width} × {height} pixels, {origin} {given[1]} × {given[0]}: give {advice}"
        )
    classes = found.classes or data.classes
    hold_to_classes(classes, data.classes)
    model, spec = settle_architecture(fits, classes, data)
    units_of(model)
    return model, spec


def hold_to_classes(classes: tuple[str, ...], theirs: tuple[str, ...]) -> None:
    """Hold the classes that the model's record names to those of the images, in order.

    Positions (0, 1, 2, …), as of an npz file, stand for any names.

    Raises:
        ModelError: other names, another order, or another number of them.
    """
    positions = tuple(str(k) for k in range(len(classes)))
    same = sorted(classes) == sorted(theirs)
    if classes == theirs or (len(classes) == len(theirs) and not same and positions in (classes, theirs)):
        return
    order = "; give the other class_order" if same and all(name.isdecimal() for name in classes) else ""
    model, images = (", ".join(names[:8]) for names in (classes, theirs))
    raise ModelError(f"the model's {len(classes)} classes are {model}; those of the images, in order, {images}{order}")


def report(spec: store.ModelSpec, data: Dataset, bad: Triggered | None, scores: Scores) -> None:
    """Say what came in."""
    part = "test" if data.test is not None else "clean"
    width = f" of width {spec.width}" if spec.width else ""
    runtime.log(
        f"  {spec.architecture}{width}, {len(spec.classes)} classes, normalised by mean {spec.mean} and std {spec.std}"
    )
    runtime.log(f"  ACC {scores.acc:.4f} on {len(data.test or data.train)} {part} images")
    if bad is None or scores.asr is None:
        runtime.log("  no triggered images, so ASR and RA are not known")
    else:
        runtime.log(f"  ASR {scores.asr:.4f}  RA {scores.ra:.4f} on {len(bad.images)} triggered images")


def known_triggered(settings: Import, found: ImportedModel, data: Dataset) -> Triggered | None:
    """Return the triggered images that the settings name or, failing these, those of the source.

    Raises:
        ConfigError: images without a target, or a target without images.
        DataError: they cannot be used.
    """
    if settings.triggered is None:
        if settings.target is not None:
            raise ConfigError(f"target={settings.target} is of use only with triggered=FOLDER or FILE.npz")
        if found.triggered is not None:
            found.triggered.check(data.classes, data.train.shape)
        return found.triggered
    if settings.target is None:
        raise ConfigError("triggered images need target: the class they lead to, by name or number")
    known = Path(settings.triggered), data.classes, settings.target, data.train.shape
    return triggered_data.read(*known, scale=settings.image_size is not None)
