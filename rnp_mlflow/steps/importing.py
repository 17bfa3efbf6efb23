"""Entry point `import`: a model that we did not train becomes a model run. Nothing in its files is executed."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rnp_mlflow.artifacts import poisoning
from rnp_mlflow.artifacts import source as source_file
from rnp_mlflow.artifacts.source import Source
from rnp_mlflow.config import DATASETS, Import
from rnp_mlflow.core.evaluate import Scores, evaluate
from rnp_mlflow.core.neurons import norm_layers
from rnp_mlflow.data import sources
from rnp_mlflow.data import triggered as triggered_data
from rnp_mlflow.data.imageset import Dataset
from rnp_mlflow.data.triggered import Triggered
from rnp_mlflow.errors import ConfigError, DataError, ModelError
from rnp_mlflow.interop import backdoorbench
from rnp_mlflow.loading import read_safetensors, read_weights
from rnp_mlflow.method import settle
from rnp_mlflow.models import store
from rnp_mlflow.models.fit import count_classes, fit
from rnp_mlflow.steps import runtime, samples, subject
from rnp_mlflow.steps.plan import Plan
from rnp_mlflow.tracking import outside
from rnp_mlflow.tracking.runs import StepRun

SOURCES = ("attack_result", "checkpoint", "model_uri")


@dataclass(frozen=True)
class Found:
    """What a source says of its model; None where it does not say."""

    weights: dict[str, Tensor]
    architecture: str | None = None
    dataset: str | None = None
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    classes: tuple[str, ...] | None = None
    triggered: Triggered | None = None
    poisoned: Tensor | None = None


def make(run: StepRun, plan: Plan, upstream: dict[str, str], device: torch.device) -> None:
    """Take the model in, judge it; leave what `attack` leaves, ASR and RA only where triggered images are known."""
    settings: Import = plan["import"]
    found = find(settings)
    source = data_source(settings, found, plan.repeating)
    data, digest = subject.load_data(source)
    run.dataset(data.name, digest, source.place)
    model, spec = suspect_model(settings, found, data)
    bad = known_triggered(settings, found, data)
    clean = data.test or data.train
    test, feed = subject.test_set(clean, bad, device), subject.preprocess(spec, data)
    settings = settle(settings, model.to(device), test.images, feed)
    scores = evaluate(model, test, feed, settings.precision)
    store.save(run.folder / "model", model, spec)
    source_file.write(run.folder, source)
    targets = bad.target_labels.unique().tolist() if bad is not None else []
    target = targets[0] if len(targets) == 1 else None
    poisoned = found.poisoned if found.poisoned is not None else torch.empty(0).long()
    known = {"attack": "unknown", "target": target, "label_mode": None, "poison_rate": None}
    poisoning.write(run.folder, known, {"indices": poisoned}, bad)
    if bad is not None:
        answer = samples.answering(model, feed, settings.precision, spec.classes)
        samples.draw(run.folder / "samples.png", bad, spec.classes, answer)
    run.tags({"precision": settings.precision})
    run.metrics({"acc": scores.acc, "asr": scores.asr, "ra": scores.ra})
    report(spec, data, bad, scores)


def suspect_model(settings: Import, found: Found, data: Dataset) -> tuple[nn.Module, store.ModelSpec]:
    """The model that was found, held to the images it is to be judged on.

    Raises:
        ConfigError: nobody says its architecture.
        DataError: the images are of another size.
        ModelError: their classes are others, or the weights do not fit.
    """
    size, side = found.image_size, data.train.shape[-1]
    if not settings.image_size and size not in (None, side):
        raise DataError(f"the model takes images of {size} pixels, these have {side}: give image_size={size}")
    architecture = settings.model or found.architecture
    if architecture is None:
        raise ConfigError("the weights do not say their architecture: give model=NAME (preactresnet18, say)")
    classes = found.classes or data.classes
    numbers = all(name.isdecimal() for name in classes) or all(name.isdecimal() for name in data.classes)
    if len(classes) != len(data.classes) or (classes != data.classes and not numbers):
        ours, theirs = (", ".join(names[:8]) for names in (data.classes, classes))
        raise ModelError(f"the model's {len(classes)} classes are {theirs}; those of the images, in order, {ours}")
    model, spec = fit(architecture, found.weights, classes, data.train.shape, data.mean, data.std)
    norm_layers(model)
    return model, spec


def report(spec: store.ModelSpec, data: Dataset, bad: Triggered | None, scores: Scores) -> None:
    """Say what came in."""
    part = "test" if data.test is not None else "clean"
    width = f" of width {spec.width}" if spec.width else ""
    runtime.say(f"  {spec.architecture}{width}, {len(spec.classes)} classes, normalised by {spec.mean}, {spec.std}")
    runtime.say(f"  ACC {scores.acc:.4f} on {len(data.test or data.train)} {part} images")
    if bad is None or scores.asr is None:
        runtime.say("  no triggered images, so ASR and RA are not known")
    else:
        runtime.say(f"  ASR {scores.asr:.4f}  RA {scores.ra:.4f} on {len(bad.images)} triggered images")


def find(settings: Import) -> Found:
    """Read the one source that the settings name.

    Raises:
        ConfigError: none is named, or more than one.
        ModelError: it is refused or broken.
    """
    given = [name for name in SOURCES if getattr(settings, name)]
    if len(given) != 1:
        raise ConfigError(f"give one of {', '.join(SOURCES)}" + (f", not {' and '.join(given)}" if given else ""))
    if settings.attack_result:
        return from_attack_result(Path(settings.attack_result))
    if settings.checkpoint:
        return from_place(Path(settings.checkpoint))
    with outside.fetched(str(settings.model_uri)) as place:
        return from_place(place)


def from_attack_result(file: Path) -> Found:
    """BackdoorBench's word on its own model."""
    said = backdoorbench.read(file)
    if (held := count_classes(said.model_name, said.weights)) != said.classes:
        raise ModelError(f"{file} says {said.classes} classes, its weights are for {held}")
    return Found(
        said.weights, said.model_name, said.dataset, said.image_size, triggered=said.triggered, poisoned=said.poisoned
    )


def from_place(place: Path) -> Found:
    """A file of weights; a model folder of ours, or an MLflow model with one's description in it."""
    if place.is_file():
        return Found(read_weights(place))
    if not place.is_dir():
        raise ModelError(f"{place} does not exist")
    weights, spec = ours(place) if (place / store.SPEC).is_file() else outside.read_folder(place)
    if spec is None:
        return Found(weights)
    return Found(weights, spec.architecture, None, spec.input_shape[-1], spec.mean, spec.std, spec.classes)


def ours(place: Path) -> tuple[dict[str, Tensor], store.ModelSpec | None]:
    """Weights and spec of a model folder of this project."""
    return read_safetensors(place / store.WEIGHTS), store.read_spec(place / store.SPEC)


def data_source(settings: Import, found: Found, repeating: bool = False) -> Source:
    """Where the clean images are, and the normalisation that the model takes.

    The images' own statistics are no substitute for it: the model was trained with one already.

    Raises:
        ConfigError: there are no images, or no normalisation.
    """
    named = settings.data if settings.data in DATASETS else None
    if settings.data and settings.data_dir and not named and not repeating:
        raise ConfigError(f"give data or data_dir, not both ({settings.data}, {settings.data_dir})")
    place = settings.data_dir or (None if named else settings.data)
    dataset = settings.dataset or named or found.dataset
    if place is None and dataset != "digits":
        raise ConfigError("give the clean images: data=FOLDER or FILE.npz, or data_dir of a dataset by name")
    by_name = settings.dataset in sources.NORMALISATION
    mean, std = settings.mean or (None if by_name else found.mean), settings.std or (None if by_name else found.std)
    if dataset not in sources.NORMALISATION and not (mean and std) and dataset != "digits":
        raise ConfigError(
            "the model's normalisation is not known: give dataset=cifar10 or another by name, or mean and std"
        )
    if dataset not in DATASETS:
        dataset = "npz" if place and Path(place).is_file() else "folder"
    if place is not None and not Path(place).exists():
        raise DataError(f"data={place} does not exist")
    sizes = (settings.image_size, settings.train_size, settings.test_size)
    return Source(str(dataset), place, *sizes, mean, std, settings.class_order, settings.flip)


def known_triggered(settings: Import, found: Found, data: Dataset) -> Triggered | None:
    """The triggered images that the settings name or, failing these, those of the source.

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
