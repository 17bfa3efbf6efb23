"""`defend` refuses in one line what does not go together, and warns if the model knows nothing of the images."""

import re
import warnings
from typing import Any

import numpy as np
import outside_files as files
import pytest
import torch
from defending import NORMALISATION, QUICK, pixels
from torch import nn

from rnp_mlflow import defend
from rnp_mlflow.core.evaluate import EvalSet
from rnp_mlflow.errors import ConfigError, DataError, ModelError, RnpError


def tail(first: nn.Module, *more: nn.Module) -> nn.Module:
    return nn.Sequential(first, *more, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))


def mismatches() -> dict[str, tuple[Any, type[RnpError], str]]:
    x, y = pixels()
    bad = {"triggered": x, "true_labels": y, "target_labels": y}
    return {
        "floats": (EvalSet(x.float(), y), DataError, r"test.images must be of the kind of images, torch.uint8"),
        "int32": (EvalSet(x.int(), y), DataError, r"test.images must be of the kind"),
        "size": (EvalSet(x[..., :6], y), DataError, r"test.images must be \(N, 3, 8, 8\), not \(24, 3, 8, 6\)"),
        "empty": (EvalSet(x[:0], y[:0]), DataError, r"test.images must be \(N, 3, 8, 8\)"),
        "lengths": (EvalSet(x, y[:-1]), DataError, r"test.labels must be 24 whole labels"),
        "float labels": (EvalSet(x, y.float()), DataError, r"test.labels must be 24 whole labels, not torch.float32"),
        "labels": (EvalSet(x, y + 1), DataError, r"test.labels must be from 0 to 3"),
        "no labels of triggered": (EvalSet(x, y, x), DataError, "all three or none"),
        "target": (EvalSet(x, y, **bad | {"target_labels": y - 1}), DataError, r"test.target_labels must be from 0"),
        "triggered": (EvalSet(x, y, **bad | {"triggered": x[:, :1]}), DataError, r"test.triggered must be \(N, 3"),
        "pair": ((x, y), ConfigError, r"test must be an EvalSet\(images, labels\), not tuple"),
    }


@pytest.mark.parametrize("case", mismatches())
def test_a_test_set_that_does_not_match_is_refused_before_any_work(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnp_mlflow.defence.unlearn_model", lambda *_, **__: pytest.fail("unlearning began"))
    test, kind, said = mismatches()[case]
    with pytest.raises(kind, match=said) as refused:
        defend(files.suspect(), *pixels(), test=test, **NORMALISATION, **QUICK)
    assert "\n" not in str(refused.value)


def test_mean_and_std_are_taken_as_arrays_tensors_lists_and_numbers() -> None:
    def curve(mean: Any, std: Any) -> Any:
        return defend(files.suspect(), *pixels(), mean=mean, std=std, **QUICK | {"seed": 1}).curve

    wanted = curve((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert wanted == curve(np.full(3, 0.5), np.full(3, 0.25))
    assert wanted == curve(torch.full((3,), 0.5).view(1, 3, 1, 1), [0.25, 0.25, 0.25])
    assert wanted == curve(0.5, 0.25)
    for mean, std in (("a", "b"), (("a",) * 3, files.STD), (object(), files.STD)):
        with pytest.raises(ConfigError, match="mean must be one number per channel"):
            curve(mean, std)
    with pytest.raises(ConfigError, match="3 values each"):
        curve(np.full(2, 0.5), np.full(2, 0.25))


def test_images_of_another_layout_or_type_are_one_line() -> None:
    images, labels = pixels()
    for given in (images.permute(0, 2, 3, 1), images.permute(0, 2, 3, 1)[..., :1]):
        with pytest.raises(DataError, match=r"must be NCHW, not NHWC .*permute\(0, 3, 1, 2\)"):
            defend(files.suspect(), given, labels, **NORMALISATION, **QUICK)
    with pytest.raises(DataError, match=r"^labels must be a tensor or an array of numbers"):
        defend(files.suspect(), images, ["cat"] * 24, **NORMALISATION, **QUICK)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
def test_models_that_cannot_be_worked_on_are_one_line() -> None:
    norm = nn.BatchNorm2d(4)
    cases = (
        (tail(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), norm), r"BatchNorm layers 1 and 3 are one module used twice"),
        (tail(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4)), r"lazy layers without weights yet .*run it once"),
        (tail(nn.Conv2d(3, 4, 3), nn.LazyBatchNorm2d()), r"lazy layers"),
        (tail(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)), r"weight of layer 0 is computed from"),
    )
    for model, said in cases:
        with pytest.raises(ModelError, match=said) as refused:
            defend(model, *pixels(), **NORMALISATION, **QUICK)
        assert "\n" not in str(refused.value)
    # what replaces it is taken
    model = tail(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))
    assert defend(model, *pixels(), **NORMALISATION, **QUICK).curve


def test_accuracy_near_chance_is_one_warning_that_names_the_usual_causes() -> None:
    images, labels = pixels()
    with pytest.warns(UserWarning, match="near chance") as found:
        defend(files.suspect(), images, (labels + 1) % 4, **NORMALISATION, **QUICK)
    said = [str(each.message) for each in found if "near chance" in str(each.message)]
    assert len(said) == 1
    assert "\n" not in said[0]
    assert all(word in said[0] for word in ("order of the classes", "normalisation", "first output of a tuple"))
    assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=re.escape("the model's accuracy on the clean images"))
        defend(files.suspect(), images, labels, **NORMALISATION, **QUICK)
