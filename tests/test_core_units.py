"""Neurons in networks without BatchNorm: which there are, and that masking one is the same as removing it."""

import copy
from collections import Counter

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from rnp_mlflow.core.neurons import masked_parameters, ones_mask
from rnp_mlflow.core.prune import originals, prune_
from rnp_mlflow.core.units import Units, find_units, meta_copy, remember_units, units_of

INPUTS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def counts(units: Units) -> dict[str, int]:
    found: Counter[str] = Counter()
    for layer in units.values():
        found[layer.kind] += layer.count
    return dict(found)


def randomised(model: nn.Module) -> nn.Module:
    """Return the model in eval mode with all parameters drawn anew: biases and scales as built are 0 and 1."""
    generator = torch.Generator().manual_seed(2)
    for value in model.parameters():
        value.data = 0.3 * torch.randn(value.shape, generator=generator)
    remember_units(model.eval(), INPUTS)
    return model


def masked(model: nn.Module, layer: str, neuron: int) -> Tensor:
    """Return the model's answer with one neuron masked."""
    mask = ones_mask(model)
    mask[layer][neuron] = 0
    answer: Tensor = functional_call(model, masked_parameters(model, mask), (INPUTS,))
    return answer


def small_vit() -> nn.Module:
    model: nn.Module = torchvision.models.VisionTransformer(16, 8, 2, 4, 16, 24, num_classes=5)
    return model


def small_convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig

    stages = [CNBlockConfig(8, 12, 1), CNBlockConfig(12, None, 1)]
    model: nn.Module = torchvision.models.ConvNeXt(stages, num_classes=5)
    return model


def small_swin() -> nn.Module:
    model: nn.Module = torchvision.models.SwinTransformer([2, 2], 8, [2], [2], [2, 2], num_classes=5)
    return model


def group_norm_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.GELU(), nn.Conv2d(8, 8, 3, groups=8), nn.SiLU(), nn.Flatten(),
        nn.Linear(8 * 12 * 12, 5),
    )  # fmt: skip


SMALL = [small_vit, small_convnext, small_swin, group_norm_net]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("vit_b_16", {"hidden": 36_864, "head": 144}),
        ("convnext_tiny", {"norm": 6_720, "hidden": 26_496}),
        ("swin_t", {"norm": 96, "hidden": 17_664, "head": 138}),  # the norm after the patch embedding, as ConvNeXt's
        ("vgg19", {"hidden": 5_504 + 2 * 4_096}),
        ("alexnet", {"hidden": 1_152 + 2 * 4_096}),
        ("resnet18", {"norm": 4_800}),
    ],
)
def test_torchvision_networks_have_as_many_neurons_as_their_definitions_say(name: str, wanted: dict[str, int]) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    remember_units(model, torch.zeros(2, 3, 224, 224))
    assert counts(units_of(model)) == wanted


@pytest.mark.parametrize("build", SMALL)
def test_a_mask_of_ones_changes_no_bit_and_every_neuron_gets_a_gradient(build: type[nn.Module]) -> None:
    model = randomised(build())
    mask = {name: values.requires_grad_() for name, values in ones_mask(model).items()}
    answer = functional_call(model, masked_parameters(model, mask), (INPUTS,))
    assert torch.equal(answer, model(INPUTS))
    weights = torch.randn(answer.shape, generator=torch.Generator().manual_seed(3))
    (answer * weights).sum().backward()
    for name, values in mask.items():
        assert values.grad is not None
        assert not bool((values.grad == 0).any()), name


@pytest.mark.parametrize("build", SMALL)
def test_pruning_sets_what_the_mask_would(build: type[nn.Module]) -> None:
    model = randomised(build())
    layers, generator = units_of(model), torch.Generator().manual_seed(4)
    keep = (torch.rand(sum(layer.count for layer in layers.values()), generator=generator) > 0.5).float()
    parts = keep.split([layer.count for layer in layers.values()])
    wanted = functional_call(model, masked_parameters(model, dict(zip(layers, parts, strict=True))), (INPUTS,))
    pruned = copy.deepcopy(model)
    prune_(pruned, originals(pruned), keep)
    assert torch.equal(pruned(INPUTS), wanted)


def without(values: Tensor, place: int, dim: int) -> nn.Parameter:
    return nn.Parameter(torch.cat([values[:place], values[place + 1 :]]) if dim == 0 else without(values.T, place, 0).T)


@pytest.mark.parametrize(
    ("build", "first", "second"),
    [
        (small_vit, "encoder.layers.encoder_layer_1.mlp.0", "encoder.layers.encoder_layer_1.mlp.3"),
        (small_convnext, "features.1.0.block.3", "features.1.0.block.5"),
        (small_swin, "features.1.1.mlp.0", "features.1.1.mlp.3"),
    ],
)
def test_a_masked_hidden_channel_equals_the_network_without_it(build: type[nn.Module], first: str, second: str) -> None:
    model = randomised(build())
    assert units_of(model)[first].kind == "hidden"
    smaller = copy.deepcopy(model)
    one, two = (smaller.get_submodule(name) for name in (first, second))
    assert isinstance(one, nn.Linear)
    assert isinstance(two, nn.Linear)
    one.weight, one.bias = without(one.weight, 3, 0), without(one.bias, 3, 0)
    two.weight = without(two.weight, 3, 1)
    torch.testing.assert_close(masked(model, first, 3), smaller(INPUTS), rtol=0, atol=1e-5)
    assert not torch.allclose(masked(model, first, 3), model(INPUTS))


def test_a_masked_convolution_channel_equals_the_network_without_it() -> None:
    model = randomised(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.GELU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 5))
    )
    smaller = copy.deepcopy(model)
    one, two = (smaller.get_submodule(name) for name in "02")
    assert isinstance(one, nn.Conv2d)
    assert isinstance(two, nn.Conv2d)
    assert one.bias is not None
    one.weight, one.bias = without(one.weight, 2, 0), without(one.bias, 2, 0)
    two.weight = nn.Parameter(two.weight[:, [0, 1, 3, 4, 5]])
    torch.testing.assert_close(masked(model, "0", 2), smaller(INPUTS), rtol=0, atol=1e-5)


def test_a_masked_norm_channel_equals_the_network_in_which_it_is_its_bias() -> None:
    model = randomised(group_norm_net())
    constant = copy.deepcopy(model)

    def only_bias(layer: nn.GroupNorm, inputs: object, output: Tensor) -> Tensor:
        return output.index_fill(1, torch.tensor([5]), layer.bias[5].item())

    constant.get_submodule("1").register_forward_hook(only_bias)
    torch.testing.assert_close(masked(model, "1", 5), constant(INPUTS), rtol=0, atol=1e-5)


class OneHeadLess(nn.Module):
    """`nn.MultiheadAttention` computed head by head, without one of them."""

    def __init__(self, full: nn.MultiheadAttention, left_out: int):
        super().__init__()
        self.full, self.left_out = full, left_out

    def forward(self, x: Tensor, *_: object, **__: object) -> tuple[Tensor, None]:
        q, k, v = F.linear(x, self.full.in_proj_weight, self.full.in_proj_bias).chunk(3, -1)
        size = self.full.head_dim
        total = self.full.out_proj.bias
        for head in range(self.full.num_heads):
            if head != self.left_out:
                part = slice(head * size, (head + 1) * size)
                attention = (q[..., part] @ k[..., part].transpose(1, 2) / size**0.5).softmax(-1)
                total = total + attention @ v[..., part] @ self.full.out_proj.weight[:, part].T
        return total, None


def test_a_masked_head_equals_the_network_without_it() -> None:
    model = randomised(small_vit())
    layer = "encoder.layers.encoder_layer_0.self_attention"
    assert units_of(model)[f"{layer}.out_proj"].count == 4
    smaller = copy.deepcopy(model)
    block = smaller.get_submodule("encoder.layers.encoder_layer_0")
    attention = model.get_submodule(layer)
    assert isinstance(attention, nn.MultiheadAttention)
    block.self_attention = OneHeadLess(attention, 2)
    torch.testing.assert_close(masked(model, f"{layer}.out_proj", 2), smaller(INPUTS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_timm_attention_has_heads_fused_or_not(fused: bool) -> None:
    timm = pytest.importorskip("timm", reason="the extra `timm` is not installed")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5)
    for block in model.get_submodule("blocks").children():
        block.get_submodule("attn").fused_attn = fused
    assert counts(find_units(model, torch.zeros(2, 3, 32, 32))) == {"hidden": 2 * 768, "head": 6}


def test_attention_that_returns_its_weights_has_heads() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.last = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.mean(1)
            answer: Tensor = self.last(self.attention(tokens, tokens, tokens)[0].mean(1))
            return answer

    assert counts(find_units(Pooled(), torch.zeros(2, 3, 8, 16))) == {"head": 4}


class Functional(nn.Module):
    """A functional activation; a layer that is called twice; a squeeze-excite branch; a norm of a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.squeeze, self.excite = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.norm, self.last = nn.GroupNorm(1, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x), inplace=True)
        x = F.silu(self.twice(F.silu(self.twice(x))))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        answer: Tensor = self.last(self.norm(x + x.flip(2)).mean((2, 3)))
        return answer


def test_functional_shared_and_squeezing_layers() -> None:
    found = find_units(Functional(), INPUTS)
    assert {name: (layer.kind, layer.count) for name, layer in found.items()} == {
        "stem": ("hidden", 4), "twice": ("hidden", 4),
    }  # fmt: skip


class NoUnits(nn.Module):
    """What looks like a neuron and is none: a projection that reads its input, too; a norm within heads; f(0) = 1."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.project, self.norm = nn.Linear(16, 16), nn.Linear(16, 16), nn.LayerNorm(4)
        self.step, self.last = nn.Linear(16, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.mean(1)
        query = self.norm(self.query(tokens).unflatten(-1, (4, 4))).transpose(1, 2)
        heads = tokens.unflatten(-1, (4, 4)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, heads, heads).transpose(1, 2).flatten(2)
        answer: Tensor = self.last(F.threshold(self.step(self.project(mixed) + self.project(tokens)), 0.5, 1.0).mean(1))
        return answer


def test_what_only_looks_like_a_neuron_is_none() -> None:
    assert find_units(NoUnits(), INPUTS) == {}


def test_linear_layers_alone_are_enough_and_the_classifier_is_none_of_them() -> None:
    layers = nn.Flatten(), nn.Linear(768, 7), nn.ReLU(), nn.Linear(7, 6), nn.Dropout(), nn.Tanh(), nn.Linear(6, 5)
    assert list(find_units(nn.Sequential(*layers), INPUTS)) == ["1", "3"]
    sigmoid = nn.Sequential(nn.Flatten(), nn.Linear(768, 7), nn.Sigmoid(), nn.Linear(7, 5))
    assert not find_units(sigmoid, INPUTS)  # a sigmoid of 0 is not 0
    squeezenet = torchvision.models.squeezenet1_1(num_classes=5)
    assert "classifier.1" not in find_units(squeezenet, torch.zeros(2, 3, 64, 64))


def test_batchnorm_keeps_other_kinds_out_and_leaves_no_trace_on_the_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    before = set(vars(model))
    remember_units(model, INPUTS)
    assert list(units_of(model)) == ["1"]
    assert set(vars(model)) == before


def test_a_network_that_needs_values_is_traced_all_the_same() -> None:
    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(768, 4), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.two(F.relu(self.one(x.flatten(1) if float(x.sum()) >= 0 else x)))
            return answer

    assert list(find_units(Chooses(), torch.ones(2, 3, 16, 16))) == ["one"]
    assert all(value.is_meta for value in meta_copy(Chooses()).state_dict().values())
