"""`defend` takes models as people have them: other dtypes, wrappers and outputs; all else is refused in one line."""

import copy
from types import SimpleNamespace
from typing import Any

import outside_files as files
import pytest
import torch
from defending import NORMALISATION, QUICK, pixels
from tensors import same
from torch import Tensor, nn

from rnp_mlflow import DefenseResult, defend
from rnp_mlflow.core.evaluate import EvalSet
from rnp_mlflow.core.params import DefenseSettings
from rnp_mlflow.core.precision import logits_of
from rnp_mlflow.errors import ConfigError, ModelError


def defended(model: nn.Module) -> DefenseResult:
    torch.manual_seed(0)
    return defend(model, *pixels(), **NORMALISATION, **QUICK | {"seed": 1})


class Answering(nn.Module):
    """A model that puts its logits into something else."""

    def __init__(self, inner: nn.Module, way: str):
        super().__init__()
        self.inner, self.way = inner, way

    def forward(self, x: Tensor) -> Any:
        logits = self.inner(x)
        return {
            "tuple": (logits, x.mean()), "list": [logits], "dict": {"logits": logits, "loss": None},
            "object": SimpleNamespace(logits=logits), "other": {"scores": logits}, "text": "cat",
            "map": logits[:, :, None, None], "empty": (),
        }[self.way]  # fmt: skip


@pytest.fixture(scope="module")
def plain() -> DefenseResult:
    return defended(files.network())


@pytest.mark.parametrize("way", ["tuple", "list", "dict", "object"])
def test_logits_are_found_in_what_a_model_gives(way: str, plain: DefenseResult) -> None:
    found = defended(Answering(files.network(), way))
    assert same({k.removeprefix("inner."): v for k, v in found.mask.items()}, plain.mask)
    assert found.curve == plain.curve


@pytest.mark.parametrize(
    ("way", "said"), [("other", "dict"), ("text", "str"), ("map", "Tensor of shape"), ("empty", "tuple")]
)
def test_other_answers_are_one_line_that_names_the_type(way: str, said: str) -> None:
    with pytest.raises(ModelError, match=f"returns {said}") as refused:
        defended(Answering(files.network(), way))
    assert "\n" not in str(refused.value)


def test_one_place_says_what_the_logits_are() -> None:
    logits = torch.zeros(2, 3)
    for answer in (logits, (logits, 1), [logits], {"logits": logits}, SimpleNamespace(logits=logits)):
        assert logits_of(answer) is logits
    for other in (None, 3, torch.zeros(3), {"a": logits}, (1, logits), SimpleNamespace(logits=None)):
        with pytest.raises(ModelError):
            logits_of(other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_worked_on_in_float32_and_given_back_as_they_were(dtype: torch.dtype) -> None:
    model = files.network().to(dtype)
    before = copy.deepcopy(model.state_dict())
    found, rounded = defended(model), defended(copy.deepcopy(model).float())
    assert same(found.mask, rounded.mask)
    assert found.curve == rounded.curve
    assert same(model.state_dict(), before)
    floats = [v for v in found.model.state_dict().values() if v.is_floating_point()]
    assert {v.dtype for v in floats} == {dtype}
    wanted = {k: v.to(dtype) if v.is_floating_point() else v for k, v in rounded.model.state_dict().items()}
    assert same(found.model.state_dict(), wanted)


def test_mixed_dtypes_come_back_one_by_one() -> None:
    model = files.network().half()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.float()
    dtypes = {key: value.dtype for key, value in model.state_dict().items()}
    assert len(set(dtypes.values())) == 3
    assert {key: value.dtype for key, value in defended(model).model.state_dict().items()} == dtypes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_float_images_of_another_dtype_are_taken(dtype: torch.dtype) -> None:
    images, labels = pixels()
    wanted = (images.float() / 255).to(dtype)
    model = files.network().to(dtype)
    settings: DefenseSettings = QUICK | {"seed": 1}
    found = defend(model, wanted, labels, test=EvalSet(wanted, labels), **settings)
    again = defend(model.float(), wanted.float(), labels, test=EvalSet(wanted.float(), labels), **settings)
    assert same(found.mask, again.mask)
    assert found.curve == again.curve


def test_data_parallel_is_taken_off_and_put_on_again(plain: DefenseResult) -> None:
    model = nn.DataParallel(files.network())
    found = defended(model)
    assert same(found.mask, plain.mask)
    assert type(found.model) is nn.DataParallel
    assert same(found.model.module.state_dict(), plain.model.state_dict())
    compiled = torch.compile(files.network())
    assert isinstance(compiled, nn.Module)
    found = defended(compiled)
    assert same(found.mask, plain.mask)
    assert type(found.model) is type(plain.model)


def test_normalisations_that_cannot_be_are_refused() -> None:
    images, labels = pixels()
    model, floats = files.network(), images.float() / 255
    for mean, std in ((files.MEAN, files.STD), (files.MEAN, None), (None, files.STD)):
        with pytest.raises(ConfigError, match="float images are taken as the model wants them"):
            defend(model, floats, labels, mean=mean, std=std, **QUICK)
    for mean, std in (((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)), (files.MEAN, (63.0, 62.1, 66.7)),
                      ((-0.1, 0.5, 0.5), files.STD), (files.MEAN, (0.0, 0.2, 0.2))):  # fmt: skip
        with pytest.raises(ConfigError, match=r"pixels scaled to \[0, 1\], not 0 to 255"):
            defend(model, images, labels, mean=mean, std=std, **QUICK)


def test_what_is_no_module_or_takes_no_such_images_is_one_line() -> None:
    images, labels = pixels()
    script = torch.jit.trace(files.network().eval(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ModelError, match="TorchScript"):
        defend(script, images, labels, **NORMALISATION, **QUICK)
    with pytest.raises(ModelError, match=r"torch\.nn\.Module, not dict"):
        defend({}, images, labels, **NORMALISATION, **QUICK)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"cannot take images of \(1, 8, 8\)"):
        defend(files.network(), images[:, :1], labels, mean=(0.5,), std=(0.5,), **QUICK)
