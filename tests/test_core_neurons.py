"""Masks, and what they are laid over."""

from collections.abc import Callable

import pytest
import torch
from conftest import scaled
from torch import nn
from torch.func import functional_call

from rnp_mlflow.core.neurons import (
    Mask,
    check_mask,
    copy_sharing_weights,
    flatten,
    masked_parameters,
    ones_mask,
)
from rnp_mlflow.core.units import norm_layers, remember_units, units_of
from rnp_mlflow.errors import MaskError, ModelError
from rnp_mlflow.models.registry import build


class MaskedNorm(nn.BatchNorm2d):
    """The other way to mask: a BatchNorm class of its own, as the references have it."""

    mask: torch.Tensor
    momentum: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._check_input_dim(x)
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight * self.mask, self.bias,
            self.training, self.momentum, self.eps,
        )  # fmt: skip


def test_layers_stand_in_state_dict_order_and_count_every_scale() -> None:
    model = build("preactresnet18", 10, 3, width=8)
    names = list(norm_layers(model))
    keys = [key.removesuffix(".running_mean") for key in model.state_dict() if key.endswith("running_mean")]
    assert names == keys
    assert len(flatten(ones_mask(build("resnet18", 10, 3)))) == 4800  # RNP.md's count


def test_model_without_batchnorm_is_refused_with_a_way_out() -> None:
    with pytest.raises(ModelError, match=r"no BatchNorm.*give remember_units a few inputs"):
        units_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)))
    model = nn.Sequential(nn.BatchNorm2d(3, affine=False))
    remember_units(model, torch.zeros(2, 3, 4, 4))
    with pytest.raises(ModelError, match="has no neurons to prune: no BatchNorm"):
        units_of(model)


def test_a_copy_sharing_weights_answers_alike_and_has_norms_and_buffers_of_its_own(
    small_net: nn.Sequential, images: torch.Tensor
) -> None:
    small_net.append(nn.Linear(3, 3))
    small_net.append(nn.Linear(3, 3))
    small_net[-1].weight = small_net[-2].weight  # tied
    light, inputs = copy_sharing_weights(small_net), scaled(images, None)
    assert torch.equal(light(inputs), small_net(inputs))
    own = {name for name in small_net.state_dict() if name.startswith(("1.", "4."))}  # the two norms
    for name, value in light.state_dict(keep_vars=True).items():
        assert (value.data_ptr() == small_net.state_dict()[name].data_ptr()) is (name not in own), name
        assert value.requires_grad is small_net.state_dict(keep_vars=True)[name].requires_grad, name
    assert light.get_parameter("10.weight") is light.get_parameter("9.weight")
    light.requires_grad_(False)
    assert all(value.requires_grad for value in small_net.parameters())


def test_mask_equals_a_masked_norm_class_bit_for_bit(small_net: nn.Sequential, images: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(3)
    values = [torch.rand(4, generator=generator), torch.rand(6, generator=generator)]
    other, theirs = nn.Sequential(*small_net), {}
    for name, mask in zip(("1", "4"), values, strict=True):
        replaced = MaskedNorm(len(mask))
        replaced.load_state_dict(small_net[int(name)].state_dict())
        replaced.mask = theirs[name] = mask.clone().requires_grad_()
        other[int(name)] = replaced
    ours = {name: m.clone().requires_grad_() for name, m in zip(("1", "4"), values, strict=True)}

    x = scaled(images, None)
    got = functional_call(small_net.train(), masked_parameters(small_net, ours), x)
    want = other.train()(x)
    got.square().sum().backward()
    want.square().sum().backward()
    assert torch.equal(got, want)
    for name, mine in ours.items():
        own, their = mine.grad, theirs[name].grad
        assert own is not None
        assert their is not None
        assert torch.equal(own, their)
    assert torch.equal(small_net.get_buffer("4.running_var"), other.get_buffer("4.running_var"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("4"), "lacks layer 4"),
        (lambda m: m.update({"9": torch.ones(2)}), "names layer 9"),
        (lambda m: m.update({"4": torch.ones(5)}), "6 neurons"),
        (lambda m: m["1"].fill_(1.1), "outside"),
        (lambda m: m["1"][2:3].fill_(float("nan")), "NaN"),
        (lambda m: m["1"].fill_(-0.1), "outside"),
    ],
)
def test_a_mask_that_is_not_this_models_is_refused(
    small_net: nn.Module, change: Callable[[Mask], object], message: str
) -> None:
    mask = ones_mask(small_net)
    check_mask(small_net, mask)
    change(mask)
    with pytest.raises(MaskError, match=message):
        check_mask(small_net, mask)
