"""The suspect model with its data, as a model run left them."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rnp_mlflow.attacks import poison, registry
from rnp_mlflow.config import Attack, Unlearn
from rnp_mlflow.core.evaluate import TestSet
from rnp_mlflow.data import sources, subset
from rnp_mlflow.data.imageset import Dataset, ImageSet
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.errors import LineageError
from rnp_mlflow.interop import indices
from rnp_mlflow.models import store
from rnp_mlflow.steps import runtime
from rnp_mlflow.steps.plan import Plan
from rnp_mlflow.tracking import lineage

CROP_SHARE = 8  # random crops shift by up to an eighth of the side: 4 of 32 pixels, as RNP
EMBEDDED = "embedded"
DATA = ("dataset", "data_dir", "image_size", "train_size", "test_size", "mean", "std")


@dataclass(frozen=True)
class Subject:
    """Model (eval mode), its spec, data, the test set on the device, and how images are fed."""

    model: nn.Module
    spec: store.ModelSpec
    data: Dataset
    data_digest: str
    source: str
    test: TestSet
    transform: Preprocess


def load_data(settings: Attack) -> tuple[Dataset, str]:
    """The dataset that these settings name, and its digest; read once a process."""
    values = {name: getattr(settings, name) for name in DATA}
    return _load_data(values.pop("dataset"), values.pop("data_dir"), tuple(sorted(values.items())))


@lru_cache(maxsize=1)
def _load_data(name: str, data_dir: str | None, rest: tuple[tuple[str, Any], ...]) -> tuple[Dataset, str]:
    data = sources.load(name, data_dir, **dict(rest))
    return data, data.digest()


def preprocess(data: Dataset) -> Preprocess:
    """Normalisation and augmentation for this dataset."""
    return Preprocess(data.mean, data.std, data.train.images.shape[-1] // CROP_SHARE, data.flip)


def load(model_run_id: str, plan: Plan, device: torch.device) -> Subject:
    """The subject of a model run. `data_dir` of the plan, if given, wins over the logged one.

    Raises:
        LineageError: the images are no longer those of that run.
    """
    run = lineage.require(model_run_id, "attack")
    logged = Attack.model_validate(lineage.settings_of(model_run_id)["settings"]["attack"])
    moved = plan["attack"].data_dir
    settings = logged.model_copy(update={"data_dir": moved}) if moved else logged
    data, digest = load_data(settings)
    if digest != lineage.tag(run, "data") and not plan.repeating:
        raise LineageError(
            f"the images of dataset {settings.dataset} in {settings.data_dir} are not those that run "
            f"{model_run_id} was made with (they changed); give their old data_dir, or attack anew"
        )
    model, spec = store.load(lineage.fetch(model_run_id, "model"))
    trigger_plan = json.loads(lineage.fetch(model_run_id, "poison_plan.json").read_text())
    trigger = None
    if trigger_plan["attack"] != registry.NONE:
        trigger = registry.restore(load_file(lineage.fetch(model_run_id, "trigger.safetensors")))
    test = test_set(data.test, trigger, trigger_plan["target"], device)
    source = settings.data_dir or EMBEDDED
    return Subject(model.to(device), spec, data, digest, source, test, preprocess(data))


def test_set(test: ImageSet, trigger: poison.Trigger | None, target: int, device: torch.device) -> TestSet:
    """Clean test images and, where there is a trigger, the triggered ones with both labels, on the device."""
    clean = test.to(device)
    if trigger is None:
        return TestSet(clean.images, clean.labels)
    bad = poison.triggered(test, target, trigger).to(device)
    wanted = torch.full_like(bad.labels, target)
    return TestSet(clean.images, clean.labels, bad.images, bad.labels, wanted)


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

    Raises:
        DataError: bad index file, or fewer than two images of a class.
    """
    labels = data.train.labels
    if settings.index:
        given = indices.read(Path(settings.index), labels)
    else:
        given = subset.defence_indices(labels, settings.ratio, runtime.generator(settings.seed, "defence"))
    held = subset.hold_out(labels[given], settings.holdout, runtime.generator(settings.seed, "holdout"))
    return split(data, given, given[held], device)
