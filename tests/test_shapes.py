"""Images that are not square, through all steps and back; a thousand classes, and 224 pixels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from small import call
from stores import artifacts, enter, newest

import rnp_mlflow
from rnp_mlflow.core.units import remember_units, units_of
from rnp_mlflow.models import store
from rnp_mlflow.models.registry import build


def archive(file: Path, height: int, width: int, channels: int, classes: int = 4) -> Path:
    """Images with a bright column at a place that tells the class."""
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for part, count in (("train", 160), ("test", 40)):
        labels = np.arange(count) % classes
        images = rng.integers(0, 90, (count, height, width, channels))
        images[np.arange(count), :, labels * (width // classes)] += 150
        found |= {f"x_{part}": images.astype(np.uint8), f"y_{part}": labels}
    np.savez(file, **found)
    return file


@pytest.mark.slow
@pytest.mark.parametrize(("model", "width", "channels"), [("resnet18_narrow", 4, 3), ("vit_mini", 16, 1)])
def test_images_that_are_not_square_go_the_whole_way(
    model: str, width: int, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(tmp_path, monkeypatch)
    data = archive(tmp_path / "wide.npz", 12, 20, channels)
    more = {"train_size": 160, "test_size": 40, "select_by": "number", "pruning_by": "number", "pruning_number": 0.4}
    settings = {"dataset": "npz", "data_dir": data, "model": model, "width": width}
    assert call("prune", **settings, **more) == 0
    made = artifacts(newest("prune"))
    purified, spec = store.load(made / "purified_model")
    assert spec.input_shape == (channels, 12, 20)
    with torch.inference_mode():
        assert purified(torch.zeros(2, channels, 12, 20)).shape == (2, 4)
    assert json.loads((made / "summary.json").read_text())["points"]["fixed"]["pruned"] > 0
    assert call("import", checkpoint=made / "purified_model", data=data, dataset="npz") == 0
    again = MlflowClient().get_run(newest("import").info.run_id).data.metrics["acc"]
    assert again == newest("prune").data.metrics["acc"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), [("squeezenet1_1", 224), ("mobilenet_v3_small", 224), ("convnext_tiny", 32)])
def test_a_thousand_classes(name: str, side: int) -> None:
    """A few steps of each phase, with an image of some classes alone."""
    torch.manual_seed(0)
    model = build(f"torchvision/{name}", 1000, 3).eval()
    images = torch.randint(256, (8, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) * 125
    with pytest.warns(UserWarning, match="near chance"):
        found = rnp_mlflow.defend(
            model, images, labels, mean=(0.5,) * 3, std=(0.25,) * 3, holdout=0.5, holdout_crops=1, proxy_steps=2,
            proxy_classes=1, unlearning_epochs=1, recovering_epochs=1, pruning_by="number", pruning_step=0.5,
            pruning_max=0.5, pruning_number=0.5, select_by="number", repair_steps=1, precision="fp32",
        )  # fmt: skip
    remember_units(model, images[:2].float())
    count = sum(layer.count for layer in units_of(model).values())
    assert found.chosen.num_pruned == count // 2
