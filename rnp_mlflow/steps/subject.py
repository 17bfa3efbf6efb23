"""The suspect model with its data, as a model run (`attack` or `import`) leaves and gives them."""

from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TypeVar

import torch
from torch import nn

from rnp_mlflow.artifacts import poisoning, table
from rnp_mlflow.artifacts import source as source_file
from rnp_mlflow.artifacts.source import Source
from rnp_mlflow.attacks import poison
from rnp_mlflow.config import Common
from rnp_mlflow.core.evaluate import EvalSet, resolve_precision
from rnp_mlflow.core.params import Precision
from rnp_mlflow.data import sources, spill
from rnp_mlflow.data.imageset import Dataset, ImageSet
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.data.triggered import Triggered
from rnp_mlflow.errors import LineageError
from rnp_mlflow.models import store
from rnp_mlflow.steps import runtime
from rnp_mlflow.steps.clean import CleanImages
from rnp_mlflow.steps.images import log_images
from rnp_mlflow.steps.plan import Plan
from rnp_mlflow.steps.progress import note
from rnp_mlflow.tracking import lineage
from rnp_mlflow.tracking.runs import StepRun

RESOLVED_PRECISION: dict[
    tuple[object, ...], Precision
] = {}  # what `precision=auto` stands for (`Suspect.resolve_precision`)


S = TypeVar("S", bound=Common)


@dataclass(frozen=True)
class Suspect:
    """A model run: its model (eval mode, on its device), spec, data, triggered images if known, and transform."""

    run_id: str
    model: nn.Module
    spec: store.ModelSpec
    data: Dataset
    data_digest: str
    place: str
    triggered: Triggered | None
    transform: Preprocess

    def eval_set(self, holdout: ImageSet) -> EvalSet:
        """Return what the model is tested on: the data's test part or, if there is none, `holdout`."""
        return test_set(self.data.test or holdout, self.triggered, holdout.images.device)

    def log_images(self, run: StepRun, clean: CleanImages) -> None:
        """Log the images that a step works with as the run's datasets."""
        log_images(
            run, self.data, self.data_digest, self.place, suspect_id=self.run_id, clean=clean, triggered=self.triggered
        )

    def resolve_precision(self, run: StepRun, settings: S, clean: CleanImages) -> S:
        """Return the settings with the precision that `auto` stands for here; tag the run with it.

        Three steps in a row ask the same of the same model: it is measured once a process.
        """
        images = tuple(clean.indices.tolist()), tuple(clean.holdout_indices.tolist())
        key = settings.precision, settings.device, settings.threads, self.run_id, *images
        if key not in RESOLVED_PRECISION:
            RESOLVED_PRECISION[key] = resolve_precision(
                settings.precision, self.model, clean.train.images, self.transform
            )
        run.tags({"precision": RESOLVED_PRECISION[key]})
        return settings.model_copy(update={"precision": RESOLVED_PRECISION[key]})


@lru_cache(maxsize=1)
def load_data(source: Source) -> tuple[Dataset, str]:
    """Load the dataset and its digest, once per process."""
    arguments = asdict(source)
    with note(f"loading {source.dataset}"):
        data = sources.load(arguments.pop("dataset"), arguments.pop("data_dir"), **arguments)
        digest = data.digest()
    for part, images in (("training", data.train), ("test", data.test)):
        if images is not None and images.images.nbytes > spill.LIMIT:
            size = images.images.nbytes / 2**30
            runtime.log(f"  {len(images)} {part} images take {size:.1f} GiB of memory (those of a folder: of the disk)")
    return data, digest


def preprocess(spec: store.ModelSpec, data: Dataset) -> Preprocess:
    """Return the model's normalisation with the augmentation that suits these images."""
    return Preprocess.for_image_size(min(data.train.shape[1:]), spec.mean, spec.std, data.flip)


def test_set(clean: ImageSet, triggered: Triggered | None, device: torch.device) -> EvalSet:
    """Return clean images and, if there are any, triggered ones with both labels, on the device.

    Images that memory only maps stay in place; `core.evaluate.predict` fetches them batch by batch.
    """
    if clean.images.nbytes > spill.LIMIT:
        device = clean.images.device
    if triggered is None:
        return EvalSet(clean.images.to(device), clean.labels.to(device))
    bad = (triggered.images, triggered.true_labels, triggered.target_labels)
    return EvalSet(clean.images.to(device), clean.labels.to(device), *(part.to(device) for part in bad))


def stored_triggered(model_run_id: str, data: Dataset) -> Triggered | None:
    """Read the triggered images of a model run, or make them from its trigger; None if none are known."""
    plan = poisoning.read(lineage.fetch(model_run_id, table.POISON_PLAN))
    if plan["triggered"] is None:
        return None
    file = lineage.fetch(model_run_id, plan["triggered"])
    if plan["triggered"] == table.TRIGGERED:
        return poisoning.read_triggered(file)
    assert data.test is not None  # attack needs one
    trigger = poisoning.read_trigger(file, plan["attack"])
    return poison.with_trigger(data.test, len(data.classes), plan["target"], plan["label_mode"], trigger)


def load(model_run_id: str, plan: Plan, device: torch.device) -> Suspect:
    """Load the suspect of a model run. `data_dir` of the plan, if given, overrides the logged one.

    Raises:
        LineageError: the images are no longer those of that run.
    """
    run = lineage.require(model_run_id, *lineage.MODEL_RUNS)
    source = source_file.read(lineage.fetch(model_run_id, table.DATA))
    if moved := plan["attack"].data_dir:
        source = replace(source, data_dir=moved)
    data, digest = load_data(source)
    if digest != lineage.tag(run, "data") and not plan.is_rerun:
        raise LineageError(
            f"the images of dataset {source.dataset} in {source.place} are not those that run "
            f"{model_run_id} was made with (they changed); give their old data_dir, or make that run again"
        )
    model, spec = store.load(lineage.fetch(model_run_id, table.MODEL_FOLDER))
    triggered = stored_triggered(model_run_id, data)
    return Suspect(model_run_id, model.to(device), spec, data, digest, source.place, triggered, preprocess(spec, data))
