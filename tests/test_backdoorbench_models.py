"""BackdoorBench's eight architectures: its result file in, all three steps, and its defence's file out."""

import json
import os
from pathlib import Path

import numpy as np
import outside_files as files
import pytest
import torch
import torchvision
from stores import artifacts, assert_none_running, enter, newest
from torch import nn
from torchvision.transforms import Resize

from rnp_mlflow.cli import main
from rnp_mlflow.core.evaluate import accuracy, predict
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.models.registry import build

CLASSES, SIDE = files.CLASSES, 32
SETTINGS = {
    "ratio": 0.6, "holdout": 0.3, "holdout_crops": 1, "proxy_steps": 1, "proxy_classes": 1, "unlearning_epochs": 1,
    "recovering_epochs": 1, "pruning_by": "number", "pruning_step": 0.5, "pruning_max": 0.5, "pruning_number": 0.1,
    "select_by": "number", "repair_steps": 1, "precision": "fp32", "threads": 1, "export": "backdoorbench",
}  # fmt: skip


def theirs(name: str) -> nn.Module:
    """Build it as BackdoorBench does: its own PreActResNet18, else torchvision's, a ViT behind a Resize."""
    if name == "preactresnet18":
        return build(name, CLASSES, 3)
    model: nn.Module = torchvision.models.get_model(name, num_classes=CLASSES)
    return nn.Sequential(Resize((224, 224)), model) if name == "vit_b_16" else model


LARGE = ("preactresnet18", "vgg19", "vgg19_bn", "densenet161", "vit_b_16")  # half a minute to four minutes each


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v3_large", "efficientnet_b3", "convnext_tiny", *LARGE])
def test_a_result_of_backdoorbench_is_defended_and_goes_back(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in LARGE and "RNP_LONG" not in os.environ:
        pytest.skip("takes minutes; RNP_LONG=1 runs it")
    enter(tmp_path, monkeypatch)
    files.suspect()  # is kept for other tests, whose images are smaller
    monkeypatch.setattr(files, "SIDE", SIDE)
    torch.manual_seed(0)
    model = theirs(name)
    classifier = [value for value in model.parameters() if value.ndim > 1 and len(value) == CLASSES][-1]
    nn.init.normal_(classifier)  # a vision transformer's begins with zeros
    images, labels = files.clean_images(40, 1)
    np.savez(tmp_path / "clean.npz", x_train=images, y_train=labels, x_test=images[:8], y_test=labels[:8])
    files.attack_result(tmp_path, model_name=name, model=model.state_dict(), img_size=(SIDE, SIDE, 3))
    assert main(["import", "--attack_result=attack_result.pt", "--data=clean.npz", "--threads=1"]) == 0
    taken = newest("import")
    flags = [f"--{key}={value}" for key, value in SETTINGS.items()]
    assert main(["prune", f"--model_run_id={taken.info.run_id}", *flags]) == 0
    pruned = newest("prune")
    assert_none_running()
    content = torch.load(artifacts(pruned) / "defense_result.pt", weights_only=True)
    assert content["model_name"] == name
    defended = theirs(name)
    defended.load_state_dict(content["model"], strict=True)
    tests = torch.from_numpy(images[:8]).permute(0, 3, 1, 2)
    answers = predict(defended.eval(), tests, Preprocess(files.MEAN, files.STD))
    assert accuracy(answers, torch.from_numpy(labels[:8])) == pruned.data.metrics["acc"]
    summary = json.loads((artifacts(pruned) / "summary.json").read_text())
    assert summary["points"]["fixed"]["pruned"] > 0
