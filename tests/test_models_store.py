"""Architectures by name, and models on disk."""

from pathlib import Path

import pytest
import torch

from rnp_mlflow.core.units import remember_units, units_of
from rnp_mlflow.errors import ModelError
from rnp_mlflow.models import store
from rnp_mlflow.models.registry import REGISTRY, build


@pytest.mark.parametrize("name", [*REGISTRY, "torchvision/resnet18", "densenet121"])
def test_every_architecture_builds_and_has_neurons(name: str) -> None:
    width = 16 if name in REGISTRY and REGISTRY[name].width else None
    model = build(name, 7, 3, width).eval()
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    remember_units(model, torch.zeros(2, 3, 32, 32))
    assert len(units_of(model)) > 1
    if name in REGISTRY:
        assert build(name, 7, 1, width).eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 7)


def test_wrong_models_are_one_line() -> None:
    with pytest.raises(ModelError, match="unknown model 'resnet19'"):
        build("resnet19", 10, 3)
    with pytest.raises(ModelError, match="has no width"):
        build("densenet121", 10, 3, 8)
    with pytest.raises(ModelError, match="unknown model 'small/densenet121'"):
        build("small/densenet121", 10, 3)
    with pytest.raises(ModelError, match="cannot take 1 × 8 × 8"):
        store.ModelSpec("vgg19_bn", 16, ("a", "b"), (1, 8, 8), (0.5,), (0.5,)).build()


def test_a_stored_model_comes_back_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    spec = store.ModelSpec("resnet18_narrow", 4, ("a", "b"), (1, 16, 16), (0.5,), (0.25,))
    model = spec.build()
    store.save(tmp_path, model, spec)
    again, read = store.load(tmp_path)
    assert read == spec
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())

    def refused(message: str, **changes: torch.Tensor | None) -> None:
        weights = {k: v.clone() for k, v in model.state_dict().items()} | changes
        with pytest.raises(ModelError, match=message):
            store.with_weights(spec, {k: v for k, v in weights.items() if v is not None})

    refused("conv1.weight is missing", **{"conv1.weight": None})
    refused("'extra' is not the model's", extra=torch.zeros(1))
    refused("NaN", **{"bn1.weight": torch.full((4,), float("nan"))})
    refused(r"bn1.weight is \(5,\), not \(4,\)", **{"bn1.weight": torch.ones(5)})
    (tmp_path / store.WEIGHTS).write_bytes(b"\x80\x04broken")
    with pytest.raises(ModelError, match="plain Python pickle"):
        store.load(tmp_path)
    (tmp_path / store.SPEC).write_text("{}")
    with pytest.raises(ModelError, match="does not describe a model"):
        store.load(tmp_path)
