"""The suspect model with its data, as a model run (`attack` or `import`) leaves and gives them."""

import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rnp_mlflow.artifacts.table import DATA, POISON_PLAN, TRIGGER, TRIGGERED
from rnp_mlflow.attacks import poison, registry
from rnp_mlflow.attacks.trigger import Trigger
from rnp_mlflow.config import Unlearn
from rnp_mlflow.core.evaluate import TestSet
from rnp_mlflow.core.seeds import generator
from rnp_mlflow.data import sources, spill, subset
from rnp_mlflow.data.imageset import Dataset, ImageSet
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.data.triggered import Triggered
from rnp_mlflow.errors import LineageError
from rnp_mlflow.interop import indices
from rnp_mlflow.method import S, settle
from rnp_mlflow.models import store
from rnp_mlflow.steps import runtime
from rnp_mlflow.steps.plan import Plan
from rnp_mlflow.tracking import lineage
from rnp_mlflow.tracking.runs import StepRun

SETTLED: dict[tuple[object, ...], str] = {}  # what `precision=auto` was found to mean (`Subject.settle`)


@dataclass(frozen=True)
class Source:
    """Where a model run's images come from: the arguments of `sources.load`."""

    dataset: str
    data_dir: str | None = None
    image_size: int | None = None
    train_size: int | None = None
    test_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_order: str = "number"
    flip: str = "auto"
    grey: bool = False

    @property
    def place(self) -> str:
        return self.data_dir or "embedded"


@dataclass(frozen=True)
class Subject:
    """A model run: its model (eval mode, on its device), spec, data, triggered images if known, how they are fed."""

    run_id: str
    model: nn.Module
    spec: store.ModelSpec
    data: Dataset
    data_digest: str
    place: str
    triggered: Triggered | None
    transform: Preprocess

    def judged_by(self, held: ImageSet) -> TestSet:
        """What the model is tested on: the data's test part or, where there is none, `held`."""
        return test_set(self.data.test or held, self.triggered, held.images.device)

    def settle(self, run: StepRun, settings: S, clean: "CleanImages") -> S:
        """The settings with the precision that `auto` means here, which the run is tagged with.

        Three steps in a row ask the same of the same model: it is measured once a process.
        """
        images = tuple(clean.indices.tolist()), tuple(clean.held_indices.tolist())
        asked = settings.precision, settings.device, settings.threads, self.run_id, *images
        if asked not in SETTLED:
            SETTLED[asked] = settle(settings, self.model, clean.used.images, self.transform).precision
        run.tags({"precision": SETTLED[asked]})
        return settings.model_copy(update={"precision": SETTLED[asked]})


@lru_cache(maxsize=1)
def load_data(source: Source) -> tuple[Dataset, str]:
    """The dataset, and its digest; read once a process."""
    arguments = asdict(source)
    data = sources.load(arguments.pop("dataset"), arguments.pop("data_dir"), **arguments)
    for part, images in (("training", data.train), ("test", data.test)):
        if images is not None and images.images.nbytes > spill.LIMIT:
            size = images.images.nbytes / 2**30
            runtime.say(f"  {len(images)} {part} images take {size:.1f} GiB (a folder's are kept on disk)")
    return data, data.digest()


def preprocess(spec: store.ModelSpec, data: Dataset) -> Preprocess:
    """The model's normalisation, and the augmentation that suits these images."""
    return Preprocess.for_side(data.train.shape[-1], spec.mean, spec.std, data.flip)


def test_set(clean: ImageSet, triggered: Triggered | None, device: torch.device) -> TestSet:
    """Clean images and, where there are any, triggered ones with both labels, on the device.

    Images that memory only maps stay where they are; `core.evaluate.predict` fetches them batch by batch.
    """
    if clean.images.nbytes > spill.LIMIT:
        device = clean.images.device
    if triggered is None:
        return TestSet(clean.images.to(device), clean.labels.to(device))
    bad = (triggered.images, triggered.true_labels, triggered.target_labels)
    return TestSet(clean.images.to(device), clean.labels.to(device), *(part.to(device) for part in bad))


def stored_source(file: Path) -> Source:
    """What a model run's `data.json` says."""
    content = json.loads(file.read_text())
    if content["dataset"] in ("folder", "npz"):
        # Runs made before there was `flip` took it for granted that mirrored images of these keep their label.
        content.setdefault("flip", "yes")
    return TypeAdapter(Source).validate_python(content)


def write_data(folder: Path, source: Source) -> None:
    """`data.json`: what to load the images with."""
    (folder / DATA).write_text(json.dumps(asdict(source), indent=2) + "\n")


def write_poison(
    folder: Path, content: dict[str, Any], poisoned: dict[str, Tensor], known: Trigger | Triggered | None
) -> None:
    """`poison_plan.json`: `content`, and training indices by name; and the trigger, or the images with it.

    content: attack, target, label_mode, poison_rate; None stands for what is not known.
    """
    name = None if known is None else TRIGGERED if isinstance(known, Triggered) else TRIGGER
    content = content | {"triggered": name} | {key: found.tolist() for key, found in poisoned.items()}
    (folder / POISON_PLAN).write_text(json.dumps(content) + "\n")
    if name is not None:
        save_file({key: value.contiguous() for key, value in vars(known).items()}, folder / name)


def stored_triggered(model_run_id: str, data: Dataset) -> Triggered | None:
    """The triggered images of a model run: stored, or made from its trigger; None where none are known."""
    plan = json.loads(lineage.fetch(model_run_id, POISON_PLAN).read_text())
    if plan["triggered"] is None:
        return None
    tensors = load_file(lineage.fetch(model_run_id, plan["triggered"]))
    if plan["triggered"] == TRIGGERED:
        return Triggered(**tensors)
    assert data.test is not None  # attack needs one
    trigger = registry.restore(plan["attack"], tensors)
    return poison.triggered(data.test, len(data.classes), plan["target"], plan.get("label_mode", "all_to_one"), trigger)


def load(model_run_id: str, plan: Plan, device: torch.device) -> Subject:
    """The subject of a model run. `data_dir` of the plan, if given, wins over the logged one.

    Raises:
        LineageError: the images are no longer those of that run.
    """
    run = lineage.require(model_run_id, *lineage.MODEL_RUNS)
    source = stored_source(lineage.fetch(model_run_id, DATA))
    if moved := plan["attack"].data_dir:
        source = replace(source, data_dir=moved)
    data, digest = load_data(source)
    if digest != lineage.tag(run, "data") and not plan.repeating:
        raise LineageError(
            f"the images of dataset {source.dataset} in {source.place} are not those that run "
            f"{model_run_id} was made with (they changed); give their old data_dir, or make that run anew"
        )
    model, spec = store.load(lineage.fetch(model_run_id, "model"))
    triggered = stored_triggered(model_run_id, data)
    return Subject(model_run_id, model.to(device), spec, data, digest, source.place, triggered, preprocess(spec, data))


@dataclass(frozen=True)
class CleanImages:
    """The defender's images: training indices of all, of those held out, and both sets on the device."""

    indices: Tensor
    held_indices: Tensor
    used: ImageSet
    held: ImageSet


def split(data: Dataset, given: Tensor, held: Tensor, device: torch.device) -> CleanImages:
    """Clean images from their indices; `held` is a part of `given`."""
    used = given[~torch.isin(given, held)]
    return CleanImages(given, held, data.train[used].to(device), data.train[held].to(device))


def draw_clean(data: Dataset, settings: Unlearn, device: torch.device) -> CleanImages:
    """The defender's images by `index` or `ratio`, and the part of them held out, by seed.

    Images without a test part are the defender's own: without an `index` all of them are taken.

    Raises:
        DataError: bad index file, or fewer than two images of a class.
    """
    labels = data.train.labels
    if settings.index:
        given = indices.read(Path(settings.index), labels)
    else:
        ratio = settings.ratio if data.test is not None else 1.0
        given = subset.defence_indices(labels, ratio, generator(settings.seed, "defence"))
    held = subset.hold_out(labels[given], settings.holdout, generator(settings.seed, "holdout"))
    return split(data, given, given[held], device)
