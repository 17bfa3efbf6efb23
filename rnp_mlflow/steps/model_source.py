"""Where an imported model comes from: its weights, what the source says of it, and the images that go with it."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from rnp_mlflow.artifacts.source import Source
from rnp_mlflow.config import DATASETS, Import
from rnp_mlflow.data import folder, sources
from rnp_mlflow.data.triggered import Triggered
from rnp_mlflow.errors import ConfigError, DataError, ModelError
from rnp_mlflow.interop import architectures, backdoorbench
from rnp_mlflow.loading import OwnNorm, check_regular, read_checkpoint, read_safetensors, take_own_norm
from rnp_mlflow.models import store
from rnp_mlflow.models.fit import count_classes
from rnp_mlflow.tracking import remote_model

SOURCES = ("attack_result", "checkpoint", "model_uri")


@dataclass(frozen=True)
class ImportedModel:
    """What a source says of its model; None where it does not say.

    exact: whether `architecture` means that one alone, not one of several of the name. own_norm: a normalisation
    layer that was in the weights.
    """

    weights: dict[str, Tensor]
    architecture: str | None = None
    dataset: str | None = None
    image_size: tuple[int, ...] | None = None  # H and W
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    classes: tuple[str, ...] | None = None
    triggered: Triggered | None = None
    poisoned: Tensor | None = None
    acc: float | None = None
    exact: bool = False
    own_norm: OwnNorm | None = None


def read_source(settings: Import) -> ImportedModel:
    """Read the one source that the settings name.

    Raises:
        ConfigError: none is named, or more than one.
        ModelError: it is refused or broken.
    """
    given = [name for name in SOURCES if getattr(settings, name)]
    if len(given) != 1:
        raise ConfigError(f"give one of {', '.join(SOURCES)}" + (f", not {' and '.join(given)}" if given else ""))
    if settings.attack_result:
        found = from_attack_result(Path(settings.attack_result), settings.model)
    elif settings.checkpoint:
        found = from_path(Path(settings.checkpoint), settings.model)
    else:
        uri = str(settings.model_uri)
        with remote_model.downloaded(uri) as place:
            found = replace(from_path(place, settings.model), acc=remote_model.recorded_accuracy(uri))
    if found.mean is not None:  # a model of ours, whose description says it
        return found
    weights, own_norm = take_own_norm(found.weights)
    return replace(found, weights=weights, own_norm=own_norm)


def from_attack_result(file: Path, model: str | None = None) -> ImportedModel:
    """Read BackdoorBench's result. model: the architecture that the settings give."""
    stated = backdoorbench.read(file)
    architecture = model or architectures.our_name(stated.model_name)
    if (actual := count_classes(architecture, stated.weights)) != stated.classes:
        raise ModelError(f"{file} says {stated.classes} classes, its weights are for {actual}")
    size = None if stated.image_size is None else (stated.image_size,) * 2
    return ImportedModel(
        stated.weights, architecture, stated.dataset, size, triggered=stated.triggered,
        poisoned=stated.poisoned, exact=True,
    )  # fmt: skip


def from_path(place: Path, model: str | None = None) -> ImportedModel:
    """Read a file of weights, a model folder of this project, or an MLflow model with such a description in it."""
    if place.is_file():
        stated = read_checkpoint(place)
        name = None if stated.model_name is None or model else architectures.our_name(stated.model_name)
        return ImportedModel(stated.weights, name, acc=stated.acc, exact=True)
    if not place.is_dir():
        check_regular(place, ModelError)
    weights, spec = read_model_folder(place) if (place / store.SPEC).is_file() else remote_model.read_folder(place)
    if spec is None:
        return ImportedModel(weights)
    return ImportedModel(
        weights, spec.architecture, None, tuple(spec.input_shape[1:]), spec.mean, spec.std, spec.classes, exact=True
    )  # fmt: skip


def read_model_folder(place: Path) -> tuple[dict[str, Tensor], store.ModelSpec | None]:
    """Read weights and spec of a model folder of this project."""
    return read_safetensors(place / store.WEIGHTS), store.read_spec(place / store.SPEC)


def data_source(settings: Import, found: ImportedModel, is_rerun: bool = False, channels: int = 3) -> Source:
    """Return where the clean images are, and the normalisation that the model takes.

    channels: of the images that the model takes. The images' own statistics are no substitute for the
    normalisation: the model was trained with one already.

    Raises:
        ConfigError: there are no images, or no normalisation.
    """
    named = settings.data if settings.data in DATASETS else None
    if settings.data and settings.data_dir and not named and not is_rerun:
        raise ConfigError(f"give data or data_dir, not both ({settings.data}, {settings.data_dir})")
    place = settings.data_dir or (None if named else settings.data)
    requested = settings.dataset or named
    dataset = requested or found.dataset
    if place is None and requested != "digits":
        raise ConfigError("give the clean images: data=FOLDER or FILE.npz, or data_dir of a dataset by name")
    by_name = settings.dataset in sources.NORMALISATION
    mean, std = settings.mean or (None if by_name else found.mean), settings.std or (None if by_name else found.std)
    if found.own_norm is not None:
        own = found.own_norm.per_channel(channels)
        hold_to_norm(settings, own.mean, own.std, "the model normalises its images itself, by")
        mean, std = own.mean, own.std
    elif found.mean is not None and found.std is not None:
        hold_to_norm(settings, found.mean, found.std, "the model's record says")
        mean, std = found.mean, found.std
    if dataset not in sources.NORMALISATION and not (mean and std) and dataset != "digits":
        raise ConfigError(
            "the model's normalisation is not known: give dataset=cifar10 or another by name, or mean and std"
        )
    if dataset not in DATASETS:
        dataset = "npz" if place and Path(place).is_file() else "folder"
    if place is not None and not Path(place).exists():
        raise DataError(f"data={place} does not exist")
    if place is not None and requested is None and Path(place).is_dir() and not folder.is_image_folder(Path(place)):
        raise DataError(
            f"data={place} has no class folders with images; if it has torchvision's files, give their dataset=NAME, "
            "which a result file does not choose"
        )
    sizes = (settings.image_size, settings.train_size, settings.test_size)
    order = (settings.class_order, settings.flip)
    return Source(str(dataset), place, *sizes, mean, std, *order, grey=channels == 1)


def hold_to_norm(settings: Import, mean: tuple[float, ...], std: tuple[float, ...], why: str) -> None:
    """Refuse another normalisation than the model's own. why: how that is known, in words.

    Raises:
        ConfigError: the settings name another.
    """
    named = sources.NORMALISATION.get(settings.dataset or "", (None, None))
    for word, given, actual in (("mean", settings.mean or named[0], mean), ("std", settings.std or named[1], std)):
        if given and (len(given) != len(actual) or max(abs(a - b) for a, b in zip(given, actual, strict=True)) > 0.005):
            source = f"{word}=" if getattr(settings, word) else f"dataset={settings.dataset} with {word} "
            raise ConfigError(f"{why} {word} {actual}, and {source}{given} was given: leave it out")
