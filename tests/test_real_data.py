"""Against BackdoorBench's own output on its own model (BadNets 10 %, PreActResNet18, CIFAR-10 images)."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rnp_mlflow.core.evaluate import TestSet, evaluate
from rnp_mlflow.core.prune import cuts, sweep
from rnp_mlflow.data import sources
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.interop import indices, masks
from rnp_mlflow.models import store

NUMPY = [np._core.multiarray._reconstruct, np._core.multiarray.scalar, np.ndarray, np.dtype,
         *(type(np.dtype(name)) for name in ("int64", "float64"))]  # fmt: skip


def triggered(record: Path, bad: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The PNGs of a BackdoorBench test set, uint8 NCHW, and their true labels."""
    items = bad["bd_data_container"]["data_dict"]
    files = [
        record / "bd_test_dataset" / Path(item["path"]).parent.name / Path(item["path"]).name for item in items.values()
    ]
    images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]).transpose(0, 3, 1, 2)
    return torch.from_numpy(images.copy()), torch.tensor([int(item["other_info"][1]) for item in items.values()])


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> tuple[Path, torch.nn.Module, TestSet, Preprocess]:
    root = request.getfixturevalue("shared") / "backdoorbench-badnet"
    record = root / "record/badnet_0_1"
    with torch.serialization.safe_globals(NUMPY):
        result = torch.load(record / "attack_result.pt", weights_only=True)
    mean, std = sources.NORMALISATION["cifar10"]
    spec = store.ModelSpec("preactresnet18", 64, tuple(map(str, range(10))), (3, 32, 32), mean, std)
    model = store.with_weights(spec, result["model"])
    clean = sources.load("npz", str(root / "clean.npz")).test
    bad, truth = triggered(record, result["bd_test"])
    return root, model, TestSet(clean.images, clean.labels, bad, truth, torch.zeros_like(truth)), Preprocess(mean, std)


def test_their_model_gives_their_figures(case: tuple[Path, torch.nn.Module, TestSet, Preprocess]) -> None:
    _, model, test, transform = case
    scores = evaluate(model, test, transform)
    assert scores.acc == 0.710
    assert scores.asr == pytest.approx(0.9556, abs=5e-5)
    assert scores.ra == pytest.approx(0.0333, abs=5e-5)


def test_their_mask_gives_their_curve(case: tuple[Path, torch.nn.Module, TestSet, Preprocess]) -> None:
    """All 19 points, within one image: ACC 1/500, ASR and RA 1/450."""
    root, model, test, transform = case
    wanted = list(csv.DictReader((root / "backdoorbench-output/threshold_df.csv").open()))
    mask = masks.read(root / "backdoorbench-output/mask_values.txt", model)
    points = cuts(mask, "threshold", 0.9, 0.05)
    rows = list(sweep(model, mask, points, lambda m: evaluate(m, test, transform)))[1:]
    assert len(rows) == len(wanted) == 19
    for (cut, scores), row in zip(rows, wanted, strict=True):
        assert cut.at == pytest.approx(float(row["threshold"]))
        assert scores.acc == pytest.approx(float(row["test_acc"]), abs=1 / 500 + 1e-9), cut
        assert scores.asr == pytest.approx(float(row["test_asr"]), abs=1 / 450 + 1e-9), cut
        assert scores.ra == pytest.approx(float(row["test_ra"]), abs=1 / 450 + 1e-9), cut


def test_their_defence_indices_are_taken(case: tuple[Path, torch.nn.Module, TestSet, Preprocess]) -> None:
    root = case[0]
    labels = sources.load("npz", str(root / "clean.npz")).train.labels
    assert len(indices.read(root / "backdoorbench-output/defence_index.txt", labels)) == 500
