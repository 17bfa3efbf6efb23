"""Verdict, proxy and number formats, on models whose backdoor is known by construction."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from conftest import scaled
from tensors import seeded
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from rnp_mlflow.core import evaluate
from rnp_mlflow.core.curve import CurvePoint
from rnp_mlflow.core.evaluate import Scores, accuracy, predict
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.neurons import masked_parameters, ones_mask
from rnp_mlflow.core.params import DetectParams, Precision, RecoverParams
from rnp_mlflow.core.precision import forward_fn, functional_logits, prefer_channels_last
from rnp_mlflow.core.proxy import ProxyTrigger, invert_trigger
from rnp_mlflow.core.pruning_curve import PruningCurve
from rnp_mlflow.core.recover import recover
from rnp_mlflow.core.verdict import (
    NORM_FREE_FACTOR,
    benign_score,
    candidate_targets,
    false_alarm_rate,
    forgetting_rate,
    norm_free_score,
    norm_ratio,
    predicted_shares,
    relative_norm,
    removal_cost,
)
from rnp_mlflow.models.registry import build


def inverted(model: nn.Module, images: Tensor, labels: Tensor, target: int, steps: int) -> ProxyTrigger:
    params = DetectParams(proxy_steps=steps)
    return invert_trigger(model, LabeledImages(images, labels), as_is, seeded(), params, target=target)


def as_is(images: Tensor, generator: Generator | None) -> Tensor:
    return images


class Shortcut(nn.Module):
    """Class 1 or 2 by the sign of the first half's mean; class 0 where pixel (0, 0) is above 2."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        sign = x[:, 0, :, :2].mean((1, 2))
        return torch.stack([8 * (x[:, 0, 0, 0] - 2), sign, -sign], 1)


def test_the_class_that_the_unlearned_model_falls_back_on_is_suspected() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2, 2])
    answers = torch.tensor([2, 1, 2, 2, 0, 2, 2, 2])
    found = predicted_shares(answers, labels, 3)
    assert found == [1 / 6, 1 / 6, 0.75]  # of four images that are not of class 2, three are called 2
    assert candidate_targets(found, 3) == [2]
    assert predicted_shares(labels, labels, 3) == [0, 0, 0]
    assert predicted_shares(torch.tensor([1, 1]), torch.tensor([0, 0]), 3) == [0, 1, 0]
    assert predicted_shares(torch.tensor([0, 1]), torch.tensor([0, 0]), 3) == [0, 0.5, 0]


def test_classes_of_a_third_of_the_largest_share_are_rivals_the_lower_first_of_equals() -> None:
    assert candidate_targets([0.1, 0.3, 0.3, 0.09], 4) == [1, 2, 0]
    assert candidate_targets([0.1, 0.3, 0.3, 0.09], 2) == [1, 2]
    assert candidate_targets([0.1, 0.3, 0.3, 0.09], 1) == [1]
    assert candidate_targets([0.0, 0.0], 1) == [0]


def test_what_unlearning_took_of_a_proxy_is_told_by_images_that_are_not_called_so_anyway() -> None:
    plain, suspect = torch.tensor([1, 0, 0, 0, 0, 0]), torch.tensor([1, 1, 1, 1, 1, 0])
    unlearned = torch.tensor([0, 1, 1, 0, 1, 1])  # told by images 1 to 4; one of the four is lost
    assert forgetting_rate(plain, suspect, unlearned, 1) == 2 / 6
    assert forgetting_rate(torch.ones(3), torch.ones(3), torch.zeros(3), 1) == 0.5
    assert benign_score(0.2, 0.1, 0.4) == pytest.approx(0.01)


def test_a_change_is_measured_by_how_far_images_lie_from_their_mean() -> None:
    inputs = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4)  # each √48 from their mean, 0
    assert relative_norm(torch.full((3, 4, 4), 0.5), inputs) == pytest.approx(0.5)
    assert relative_norm(torch.full((3, 4, 4), 0.5), inputs + 7) == pytest.approx(0.5)
    assert relative_norm(torch.ones(3, 4, 4), torch.ones(5, 3, 4, 4)) == 0


def test_inversion_finds_the_shortcut_with_a_small_change_in_the_range_of_the_images() -> None:
    model = Shortcut().train()
    images, labels = torch.randn(60, 1, 4, 4, generator=seeded()), torch.arange(60) % 3
    model(images)
    state = copy.deepcopy(model.state_dict())
    proxy = inverted(model, images, labels, 0, 200)
    assert proxy.success_rate(model, LabeledImages(images, labels), as_is) >= 0.9
    assert proxy.success_rate(model, LabeledImages(images, torch.zeros(60)), as_is) == 0  # no image of another class
    energy = proxy.delta[0] ** 2
    assert energy[0, 0] > 0.8 * energy.sum()  # the pixel that the shortcut looks at
    inputs = proxy(images)
    assert inputs.min() >= images.min()
    assert inputs.max() <= images.max()
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    again = inverted(model, images, labels, 0, 200)
    assert torch.equal(again.delta, proxy.delta)
    for impossible in (1, 2):  # no shortcut leads there: more is needed
        other = inverted(model, images, labels, impossible, 200)
        assert other.delta.flatten().abs().topk(2).values.sum() < 0.7 * other.delta.abs().sum()


def test_the_search_ends_by_itself_once_the_proxy_need_not_grow() -> None:
    model, passes = Shortcut(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    images, labels = torch.randn(60, 1, 4, 4, generator=seeded()), torch.arange(60) % 3
    found = inverted(model, images, labels, 0, 200)
    made = len(passes)
    assert 20 < made < 200
    cut = inverted(model, images, labels, 0, made)
    assert torch.equal(cut.delta, found.delta)
    norms = [inverted(model, images, labels, 0, k).delta.norm() for k in (made - 22, made - 20)]
    assert norms[0] < norms[1]  # it grew last in the 20th step before the end


def test_a_proxy_marks_the_images_of_other_classes_and_counts_its_successes() -> None:
    images, labels = torch.zeros(6, 1, 4, 4), torch.tensor([0, 1, 1, 2, 2, 2])
    change = torch.zeros(1, 4, 4)
    change[0, 0, 0] = 5
    proxy = ProxyTrigger(0, change, torch.full((1, 1, 1), -1.0), torch.full((1, 1, 1), 3.0))
    assert proxy(images)[:, 0, 0, 0].tolist() == [3.0] * 6  # clipped
    assert proxy.success_rate(Shortcut(), LabeledImages(images, labels), as_is) == 1.0
    assert proxy.success_rate(Shortcut(), LabeledImages(images - 4, labels), as_is) == 0.0
    already = images.clone()
    already[3, 0, 0, 0] = 3.0  # of the five images of other classes, one is called 0 without the proxy
    assert proxy.success_rate(Shortcut(), LabeledImages(already, labels), as_is) == 0.8


def test_recovery_under_the_proxy_leaves_its_neuron_low() -> None:
    """Two neurons that serve clean images alike; the proxy speaks through the second alone."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(2, affine=True)

        def forward(self, x: Tensor) -> Tensor:
            first, second = self.norm(x).mean((2, 3)).unbind(1)
            return torch.stack([-(first + second), first + second], 1)

    labels = torch.arange(64) % 2
    noise = torch.randn(64, 2, 2, 2, generator=seeded())
    images = (labels * 2.0 - 1).view(-1, 1, 1, 1) + 0.3 * noise
    change = torch.tensor([0.0, 3.0]).view(2, 1, 1).expand(2, 2, 2)
    edge = torch.full((2, 1, 1), 9.0)
    proxy = ProxyTrigger(1, change, -edge, edge)
    clean = LabeledImages(images, labels)
    params = RecoverParams(recovering_epochs=10, recovering_batch_size=32, alpha=1.0)
    with_it = recover(Two(), clean, as_is, seeded(), params, proxy=proxy).mask["norm"]
    without = recover(Two(), clean, as_is, seeded(), params).mask["norm"]
    assert torch.equal(without, torch.ones(2))
    assert with_it[1] < 0.7 < with_it[0]
    # In the suspect the first neuron speaks for nothing, so what the proxy says can be silenced in the second alone.
    unlearned, suspect = Two(), Two()
    nn.init.constant_(unlearned.norm.weight, 0.1)
    state = copy.deepcopy(suspect.state_dict())
    known: dict[str, Any] = {"proxy": proxy, "suspect": suspect}
    weighed = replace(params, suspect_steps=2, suspect_weight=3.0)
    both = recover(unlearned, clean, as_is, seeded(), weighed, **known).mask["norm"]
    alone = recover(unlearned, clean, as_is, seeded(), replace(weighed, suspect_steps=0), **known).mask["norm"]
    assert both[1] < alone[1]
    assert both[0] > 0.7
    assert all(torch.equal(value, state[name]) for name, value in suspect.state_dict().items())
    unused = recover(Two(), clean, as_is, seeded(), replace(params, proxy_share=0.0), proxy=proxy).mask["norm"]
    assert torch.equal(unused, without)


@pytest.mark.parametrize("name", ["preactresnet18", "vgg19_bn"])
def test_bf16_answers_nearly_as_fp32_and_leaves_the_model_as_it_was(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, 10, 3, 16).eval()
    images = torch.randn(64, 3, 32, 32, generator=seeded())
    before = {key: (value.clone(), value.stride()) for key, value in model.state_dict().items()}
    with torch.inference_mode(), forward_fn(model, "bf16") as fast, forward_fn(model, "fp32") as exact:
        quick, slow = fast(images), exact(images)
    assert quick.dtype == torch.float32
    assert (quick - slow).norm() / slow.norm() < 0.05
    after = model.state_dict()
    assert all(torch.equal(after[key], value) and after[key].stride() == s for key, (value, s) in before.items())
    assert not any("forward" in vars(layer) for layer in model.modules())
    predict(model, images, as_is, "bf16")
    assert not any(p.is_inference() for p in model.parameters())
    assert accuracy(predict(model, images, as_is, "bf16"), predict(model, images, as_is)) > 0.9


def test_bf16_logits_are_not_rounded_to_bfloat16() -> None:
    """Else classes tie, and the first of them wins."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 10))
    with torch.inference_mode(), forward_fn(model, "bf16") as forward:
        logits = forward(torch.randn(8, 1, 4, 4))
    assert not torch.equal(logits, logits.bfloat16().float())


class Near(nn.Module):
    """Logits (0, x, -4): nearly a tie at x = ±0.004, which bfloat16 rounds the wrong way where `off` says so."""

    def __init__(self, off: float):
        super().__init__()
        self.norm, self.off = nn.BatchNorm2d(1), off

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((1, 2, 3)) + (self.off if torch.is_autocast_enabled("cpu") else 0.0)
        return torch.stack([torch.zeros_like(x), x, torch.full_like(x, -4.0)], 1)


def test_what_is_close_in_bf16_is_settled_in_fp32() -> None:
    images = torch.tensor([-1.0, -0.004, 0.004, 1.0]).view(4, 1, 1, 1)
    assert predict(Near(0.0), images, as_is).tolist() == [0, 0, 1, 1]
    assert predict(Near(0.01), images, as_is, "bf16").tolist() == [0, 0, 1, 1]
    assert predict(Near(0.1), images, as_is, "bf16").tolist() == [0, 1, 1, 1], (
        "what is not close is not looked at again"
    )
    assert predict(Near(0.0), images[:0], as_is, "bf16").tolist() == []


def test_auto_is_bf16_only_where_it_is_at_home_and_answers_as_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.tensor([-1.0, -0.004, 0.004, 1.0]).view(4, 1, 1, 1)
    monkeypatch.setattr(evaluate, "has_bf16", lambda device: True)
    assert evaluate.resolve_precision("auto", Near(0.01), images, as_is) == "bf16"
    assert evaluate.resolve_precision("auto", Near(0.1), images, as_is) == "fp32"
    assert evaluate.resolve_precision("bf16", Near(0.1), images, as_is) == "bf16"
    monkeypatch.setattr(evaluate, "has_bf16", lambda device: False)
    assert evaluate.resolve_precision("auto", Near(0.01), images, as_is) == "fp32"


def test_channels_last_is_left_out_where_torch_would_corrupt_memory() -> None:
    for precision in ("fp32", "bf16"):
        assert prefer_channels_last(build("preactresnet18", 10, 3, 16), precision)
        assert not prefer_channels_last(build("preactresnet18", 10, 3, 8), precision)
        model = build("preactresnet18", 10, 3, 4)
        with forward_fn(model, precision) as forward:
            forward(scaled(torch.zeros(2, 3, 32, 32), None)).sum().backward()
            assert all(p.is_contiguous() for p in model.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_and_images_are_channels_last_while_a_model_runs_on_a_cpu(precision: Precision) -> None:
    conv = nn.Conv2d(3, 4, 3)
    seen: list[Tensor] = []
    model = nn.Sequential(conv, nn.Flatten())
    conv.register_forward_pre_hook(lambda layer, inputs: seen.extend((layer.get_parameter("weight"), *inputs)))
    with forward_fn(model, precision) as forward:
        forward(torch.zeros(2, 3, 8, 8))
        assert [tensor.is_contiguous(memory_format=torch.channels_last) for tensor in seen] == [True, True]
    assert conv.weight.is_contiguous()


@pytest.mark.parametrize("name", ["preactresnet18", "vgg19_bn", "mobilenet_v2"])
def test_the_fast_layout_gives_what_float64_does(name: str) -> None:
    """Logits, mask gradients and running statistics, from the network called without any of ours."""
    torch.manual_seed(0)
    model = build(name, 10, 3, 16)
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0  # it draws other numbers in float64
    images, labels = torch.randn(32, 3, 32, 32, generator=seeded()), torch.arange(32) % 10

    def passed(model: nn.Module, images: Tensor, ours: bool) -> tuple[Tensor, Tensor, Tensor]:
        model = copy.deepcopy(model)
        mask = {layer: values.requires_grad_() for layer, values in ones_mask(model).items()}
        with forward_fn(model, "fp32") if ours else nullcontext(partial(functional_logits, model)) as forward:
            logits = forward(images, masked_parameters(model, mask))
        slopes = torch.autograd.grad(cross_entropy(logits, labels), list(mask.values()))
        assert all(p.is_contiguous() for p in model.parameters())
        return logits.detach(), torch.cat(slopes), torch.cat([b.flatten().double() for b in model.buffers()])

    exact = passed(copy.deepcopy(model).double(), images.double(), ours=False)
    # A rounding that turns a ReLU on or off moves the gradients by more: the plain layout's are off by up to .009.
    for true, fast, limit in zip(exact, passed(model, images, ours=True), (1e-4, 0.05, 1e-6), strict=True):
        assert (fast - true).norm() < limit * true.norm()


def test_without_batchnorm_the_other_classes_are_the_control() -> None:
    assert norm_ratio([4.0, 1.0, 2.0, 5.0]) == pytest.approx(1 / 4)
    assert norm_ratio([4.0, 1.0, 2.0]) == pytest.approx(1 / 3)
    assert norm_ratio([1.0, 2.0]) is None, "one other class is no control"
    assert norm_free_score(0.5, 0.02) == pytest.approx(0.25 * 0.02 * NORM_FREE_FACTOR)
    assert false_alarm_rate(0.007, norm_free=True) == pytest.approx(0.05, abs=0.02)


def test_a_repair_that_was_tried_counts_as_a_way_to_remove_the_proxy() -> None:
    figures = ((0, 0.8, 0.9), (3, 0.6, 0.0), (3, 0.78, 0.0))
    unpruned, pruned, repaired = (CurvePoint(0.5, count, Scores(0.9), acc, rate) for count, acc, rate in figures)
    curve = PruningCurve([unpruned, pruned], pruned, proxy_norm=0.3, removal_cost=removal_cost([unpruned, pruned]),
                         forgetting_rate=0.5, norm_ratio=0.4, careful=True)  # fmt: skip
    assert curve.removal_cost == pytest.approx(0.25)
    tried = curve.tried(repaired)
    assert tried.removal_cost == pytest.approx(0.025)
    assert tried.benign_score == norm_free_score(0.4, tried.removal_cost or 0.0)
    worse = curve.tried(replace(repaired, holdout_acc=0.4))
    assert worse.removal_cost == curve.removal_cost
