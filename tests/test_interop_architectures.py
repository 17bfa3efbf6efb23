"""BackdoorBench's model names mean its own definitions, coming in and going out."""

from pathlib import Path
from typing import Any

import outside_files as files
import pytest
import torch
from checkpoint_files import MAKERS, defense
from mlflow.tracking import MlflowClient
from stores import enter
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import Resize

from rnp_mlflow.cli import main
from rnp_mlflow.errors import ConfigError, ModelError
from rnp_mlflow.interop import architectures, backdoorbench
from rnp_mlflow.models.fit import candidates
from rnp_mlflow.models.registry import build
from rnp_mlflow.steps.model_source import from_attack_result, from_path

# Every name that generate_cls_model knows (commit f02e353).
NAMES = {
    "resnet18", "preactresnet18", "resnet34", "resnet50", "alexnet", "vgg11", "vgg16", "vgg19", "vgg19_bn",
    "squeezenet1_0", "densenet161", "inception_v3", "googlenet", "shufflenet_v2_x1_0", "mobilenet_v2",
    "mobilenet_v3_large", "resnext50_32x4d", "wide_resnet50_2", "mnasnet1_0", "efficientnet_b0", "efficientnet_b3",
    "vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "densenet121", "resnext29", "senet18", "convnext_tiny",
}  # fmt: skip
OWN = ("preactresnet18", "resnext29", "senet18")


def test_every_name_of_backdoorbench_is_taken_and_others_are_refused_with_a_way_out() -> None:
    assert set(architectures.OURS) == NAMES
    with pytest.raises(ModelError, match=r"model_name 'lenet' is not one of BackdoorBench's .*: give model=NAME"):
        architectures.our_name("lenet")


@pytest.mark.parametrize("name", sorted(set(architectures.OURS) - set(OWN) - {"vit_l_16", "vit_l_32"}))
def test_a_name_of_torchvisions_is_torchvisions_by_key_and_by_forward_pass(name: str) -> None:
    """As BackdoorBench builds it: `torchvision.models.NAME(num_classes=K)`."""
    from torchvision import models

    torch.manual_seed(0)
    theirs = getattr(models, name)(
        num_classes=4, **({"init_weights": False} if name in ("googlenet", "inception_v3") else {})
    )
    [one] = candidates(architectures.our_name(name), theirs.state_dict(), exact=True)
    side = {"inception_v3": 80, "alexnet": 64, "squeezenet1_0": 64}.get(name, 32)
    images = torch.rand(2, 3, side, side)
    if name.startswith("vit_"):
        theirs = nn.Sequential(Resize((224, 224)), theirs)
    ours, _ = one.build(tuple("abcd"), (3, side, side), (0.0,) * 3, (1.0,) * 3)
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs.eval()(images))


def weigh(out: torch.Tensor, block: nn.Module) -> torch.Tensor:
    """Hu et al. 2018, equations 2 to 4, on pooled channels as a matrix product."""
    pooled = out.mean((2, 3))
    (w1, b1), (w2, b2) = (
        (block.get_parameter(f"{name}.weight")[:, :, 0, 0], block.get_parameter(f"{name}.bias"))
        for name in ("fc1", "fc2")
    )
    inner = F.relu(F.linear(pooled, w1, b1))
    return out * F.linear(inner, w2, b2).sigmoid()[:, :, None, None]


def by_formula(name: str, model: Any, x: torch.Tensor) -> torch.Tensor:
    """The three models of BackdoorBench's own, from their weights, with nothing of our forward passes."""
    x = model.conv1(x)
    if name != "preactresnet18":
        x = F.relu(model.bn1(x))
    stages = [getattr(model, f"layer{k}") for k in (1, 2, 3, 4) if hasattr(model, f"layer{k}")]
    for block in (block for stage in stages for block in stage):
        if name == "resnext29":
            out = F.relu(block.bn1(block.conv1(x)))
            out = block.bn3(block.conv3(F.relu(block.bn2(block.conv2(out)))))
            x = F.relu(out + block.shortcut(x))
        else:
            active = F.relu(block.bn1(x))
            out = block.conv2(F.relu(block.bn2(block.conv1(active))))
            out = weigh(out, block) if name == "senet18" else out
            x = out + (x if block.shortcut is None else block.shortcut(active))
    logits: torch.Tensor = model.linear(x.mean((2, 3)))
    return logits


@pytest.mark.parametrize("name", OWN)
def test_its_own_models_are_what_their_definitions_say(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, 5, 3).eval()
    keys = list(model.state_dict())
    assert keys[0] == "conv1.weight"
    assert keys[-2:] == ["linear.weight", "linear.bias"]
    assert ("bn1.weight" in keys) == (name != "preactresnet18")
    assert ("layer4.1.conv2.weight" in keys) == (name != "resnext29")
    assert ("layer1.0.fc1.bias" in keys) == (name == "senet18")
    assert ("layer2.0.shortcut.1.weight" in keys) == (name == "resnext29")  # a norm in the shortcut
    sizes = {"preactresnet18": (64, 3, 3, 3), "resnext29": (64, 3, 1, 1), "senet18": (64, 3, 3, 3)}
    assert tuple(model.get_parameter("conv1.weight").shape) == sizes[name]
    linear = model.get_submodule("linear")
    assert isinstance(linear, nn.Linear)
    assert linear.in_features == (1024 if name == "resnext29" else 512)
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), by_formula(name, model, images))


def test_export_writes_the_name_that_backdoorbench_builds_the_same_from(tmp_path: Path) -> None:
    for name, ours in architectures.OURS.items():
        width = architectures.OWN_WIDTH.get(name)
        assert architectures.backdoorbench_name(ours, width, 3) == name
    assert architectures.backdoorbench_name("torchvision/densenet121", None, 3) == "densenet121"
    for refused in (("resnet18", 64, 3), ("resnet18_narrow", 16, 3), ("mobilenet_v2", 32, 3), ("vgg19_bn", 64, 3),
                    ("resnet18_cifar", None, 3), ("resnet20", 16, 3), ("preactresnet34", 64, 3),
                    ("preactresnet18", 32, 3), ("preactresnet18", 64, 1)):  # fmt: skip
        with pytest.raises(ConfigError, match="export=backdoorbench: BackdoorBench"):
            architectures.backdoorbench_name(*refused)
    model = build("preactresnet18", 4, 3)
    backdoorbench.write_defense(tmp_path / "d.pt", model, "preactresnet18", 4, width=64)
    content = torch.load(tmp_path / "d.pt", weights_only=True)
    assert (content["model_name"], content["num_classes"]) == ("preactresnet18", 4)
    assert all(torch.equal(content["model"][key], value) for key, value in model.state_dict().items())
    with pytest.raises(ConfigError, match="resnet18 is torchvision's"):
        backdoorbench.write_defense(tmp_path / "e.pt", build("resnet18", 4, 3), "resnet18", 4, width=64)


def test_prune_refuses_the_export_before_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enter(tmp_path, monkeypatch)
    files.clean_npz(tmp_path / "clean.npz")
    torch.save(files.suspect().state_dict(), tmp_path / "w.pt")
    assert main(["import", "--checkpoint=w.pt", "--model=preactresnet18", "--data=clean.npz", "--dataset=cifar10"]) == 0
    run = MlflowClient().search_runs(["0"])[0].info.run_id
    mask = tmp_path / "mask.txt"
    mask.write_text("No \t Layer Name \t Neuron Idx \t Mask Score \n")  # is not looked at
    capsys.readouterr()
    arguments = [f"--model_run_id={run}", f"--mask_file={mask}", "--ratio=0.5", "--export=backdoorbench"]
    assert main(["prune", *arguments]) == 2
    assert "BackdoorBench builds preactresnet18 of width 64, this one has 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("form", "poisoned"),
    [("`poison_indicator` as list, bool, float32 or uint8, or absent", [5]), ("`attack_result.pt`", [5, 9])],
)
def test_poisoned_indices_are_read_whatever_their_type(form: str, poisoned: list[int], tmp_path: Path) -> None:
    results = [Path(each[0].partition("=")[2]) for each in MAKERS[form](tmp_path)]
    found = [backdoorbench.read(file).poisoned.tolist() for file in results]
    absent: list[list[int]] = [[]] if len(found) > 1 else []
    assert found == [poisoned] * (len(found) - len(absent)) + absent


@pytest.mark.parametrize(
    "form",
    ["labels as int32, uint8 or plain numbers", "paths with Windows' backslashes", "`img_size` as list or one number"],
)
def test_triggered_images_are_read_whatever_wrote_them(form: str, tmp_path: Path) -> None:
    for arguments in MAKERS[form](tmp_path):
        found = backdoorbench.read(Path(arguments[0].partition("=")[2]))
        assert found.image_size == 8
        assert found.triggered is not None
        assert found.triggered.true_labels.tolist() == [k % 4 for k in range(24) if k % 4]
        assert not found.triggered.target_labels.any()
        assert (found.triggered.images[:, :, :2] == 255).all()


def test_backslashes_lead_nowhere_else(tmp_path: Path) -> None:
    item = {"path": "..\\secret\\1\\0.png", "other_info": [0, 1]}
    file = files.attack_result(tmp_path, bd_test={"bd_data_container": {"data_dict": {0: item}}})
    with pytest.raises(ModelError, match="not a valid path of a triggered image"):
        backdoorbench.read(file)


def test_a_defense_result_says_its_architecture_and_no_more(tmp_path: Path) -> None:
    file = defense(tmp_path, "mobilenet_v2", build("torchvision/mobilenet_v2", 4, 3))
    for found in (from_attack_result(file), from_path(file)):
        assert found.architecture == "torchvision/mobilenet_v2"
        assert (found.dataset, found.image_size, found.triggered) == (None, None, None)
        assert [each.architecture for each in candidates(found.architecture, found.weights, found.exact)] == [
            "torchvision/mobilenet_v2"
        ]
    assert from_path(file, "small/mobilenet_v2").architecture is None  # the settings say it
