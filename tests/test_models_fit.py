"""Weights and the architectures that they fit."""

from pathlib import Path

import outside_files as files
import pytest
import torch
from safetensors.torch import save_file
from tensors import same
from torch import Tensor

from rnp_mlflow import loading
from rnp_mlflow.errors import ModelError
from rnp_mlflow.models.fit import count_classes, match_weights
from rnp_mlflow.models.store import ModelSpec


@pytest.mark.parametrize(
    ("name", "width"),
    [("preactresnet18", 4), ("resnet50", 4), ("vgg19_bn", 8), ("mobilenet_v2", 8), ("densenet121", None)],
)
def test_classes_and_width_are_found_from_weights_in_any_order(name: str, width: int | None, tmp_path: Path) -> None:
    """A safetensors file keeps no order."""
    shape, classes = (3, 32, 32), tuple("abcd")
    built = ModelSpec(name, width, classes, shape, mean=(), std=()).build()
    save_file(built.state_dict(), tmp_path / "w.safetensors")
    weights = loading.read_weights(tmp_path / "w.safetensors")
    assert count_classes(name, weights) == 4
    _, spec = match_weights(name, weights, classes, shape, mean=(), std=())
    assert (spec.architecture, spec.width) == (name, width)


def test_torchvisions_namesake_is_found_from_its_keys() -> None:
    shape, classes = (3, 32, 32), tuple("abcd")
    weights = dict(ModelSpec("torchvision/resnet18", None, classes, shape, mean=(), std=()).build().state_dict())
    model, spec = match_weights("resnet18", weights, classes, shape, mean=(), std=())
    assert (spec.architecture, spec.width) == ("torchvision/resnet18", None)
    assert same(model.state_dict(), weights)


def test_weights_that_do_not_fit_are_listed() -> None:
    weights = dict(files.network().state_dict())
    shape, names = (3, 8, 8), files.spec().classes

    def refused(changed: dict[str, Tensor], match: str, name: str = "preactresnet18") -> None:
        with pytest.raises(ModelError, match=match):
            match_weights(name, changed, names, shape, mean=(), std=())

    refused({k: v for k, v in weights.items() if k != "linear.bias"}, r"linear\.bias is missing")
    refused(weights | {"extra": torch.zeros(1)}, "'extra' is not the model's")
    refused(weights | {"linear.bias": torch.zeros(9)}, r"linear\.bias is \(9,\), not \(4,\)")
    refused(weights | {"linear.bias": torch.full((4,), torch.nan)}, "NaN")
    refused(weights | {"linear.bias": torch.full((4,), 1e300, dtype=torch.float64)}, "infinity")
    refused(weights | {"linear.bias": torch.zeros(4, dtype=torch.complex64)}, "complex64, not torch.float32")
    refused(weights | {"layer1.0.bn1.running_var": torch.full((4,), -1.0)}, "negative variance")
    refused(weights | {"conv1.weight": torch.zeros(2**40, 0, 3, 3)}, r"conv1\.weight")
    refused(weights, r"not resnet50's: .* more\)", "resnet50")
    refused(weights, "unknown model 'lenet'", "lenet")
    refused(weights | {"linear.weight": torch.zeros(0, 32)}, "no classifier")
    refused(weights | {"linear.weight": torch.zeros(7, 32)}, "7 classes, the images have 4")
