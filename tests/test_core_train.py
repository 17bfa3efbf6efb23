"""Unlearning and recovery against the same thing written out with plain torch."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TwoPaths, scaled
from tensors import seeded
from torch import nn
from torch.nn.functional import cross_entropy

from rnp_mlflow.core import evaluate
from rnp_mlflow.core.batches import NO_HOOKS, TrainingHooks, batches
from rnp_mlflow.core.bn_stats import bn_shift_fn
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.moments import MomentMeter
from rnp_mlflow.core.neurons import ones_mask
from rnp_mlflow.core.params import DetectParams, RecoverParams, StopRule, UnlearnParams
from rnp_mlflow.core.precision import forward_fn
from rnp_mlflow.core.proxy import invert_trigger
from rnp_mlflow.core.prune import SweepPoint, pruned_copy, sweep
from rnp_mlflow.core.recover import RecoveryResult, recover
from rnp_mlflow.core.sgd import SGD
from rnp_mlflow.core.unlearn import UnlearningResult, unlearn
from rnp_mlflow.errors import ModelError


def run_unlearn(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, hooks: TrainingHooks = NO_HOOKS, **params: Any
) -> UnlearningResult:
    return unlearn(model, LabeledImages(images, labels), scaled, seeded(5), UnlearnParams(**params), hooks=hooks)


def run_recover(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, hooks: TrainingHooks = NO_HOOKS, **params: Any
) -> RecoveryResult:
    return recover(model, LabeledImages(images, labels), scaled, seeded(5), RecoverParams(**params), hooks=hooks)


def test_what_leaves_the_weights_alone_works_on_a_copy_that_shares_them(
    small_net: nn.Sequential, images: torch.Tensor, labels: torch.Tensor
) -> None:
    inputs, mask, conv = scaled(images, None), ones_mask(small_net), small_net[3]
    seen: list[tuple[nn.Module, bool]] = []

    def note(own: nn.Module, *_: object) -> None:
        seen.append((own, own.get_parameter("weight").data_ptr() == conv.get_parameter("weight").data_ptr()))

    conv.register_forward_hook(note)
    ways: dict[str, Callable[[], object]] = {
        "recover": lambda: recover(
            small_net, LabeledImages(images, labels), scaled, seeded(5), RecoverParams(recovering_epochs=1)
        ),
        "invert_trigger": lambda: invert_trigger(
            small_net, LabeledImages(images, labels), scaled, seeded(5), DetectParams(proxy_steps=1), target=0
        ),
        "bn_shift_fn": lambda: bn_shift_fn(small_net, images, scaled),
        "sweep": lambda: list(sweep(small_net, mask, [SweepPoint(1, 1)], lambda net: net(inputs))),
        "pruned_copy": lambda: pruned_copy(small_net, mask, 1)(inputs),
    }
    for name, way in ways.items():
        seen.clear()
        way()
        assert seen, name
        assert all(own is not conv and shared for own, shared in seen), name


def test_batches_are_a_partition_in_near_equal_parts() -> None:
    parts = list(batches(129, 128, seeded(5)))
    assert [len(p) for p in parts] == [65, 64]
    assert torch.cat(parts).sort().values.tolist() == list(range(129))
    assert [len(p) for p in batches(5, 128, seeded(5))] == [5]
    again = torch.cat(list(batches(129, 128, seeded(5))))
    assert torch.equal(torch.cat(parts), again)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_descent_is_torchs_sgd_and_leaves_alone_what_has_no_gradient(weight_decay: float) -> None:
    start = [torch.randn(3, generator=seeded(5)), torch.randn(2, 2, generator=seeded(6)), torch.ones(1)]
    ours, theirs = ([x.clone().requires_grad_() for x in start] for _ in range(2))
    sgd = SGD(ours, 0.1, 0.9, weight_decay)
    optimizer = torch.optim.SGD(theirs, 0.1, 0.9, weight_decay=weight_decay)
    for k in range(4):
        for x, y, _ in (ours, theirs):
            loss = x.square().sum() + y.sin().sum()
            (loss if k else y.square().sum()).backward()  # the first has no gradient at first
        sgd.step()
        optimizer.step()
        optimizer.zero_grad()
        if k == 2:
            sgd.lr = optimizer.param_groups[0]["lr"] = 0.01
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not torch.equal(ours[0], start[0])
    assert all(x.grad is None for x in ours)


def test_unlearning_and_recovery_do_without_the_compiler() -> None:
    asked = (
        "import sys, torch; from rnp_mlflow import defend\n"
        "net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.AdaptiveAvgPool2d(1),"
        " torch.nn.Flatten(), torch.nn.Linear(4, 3))\n"
        "defend(net, torch.rand(12, 1, 8, 8), torch.arange(12) % 3, clean_threshold=0.9, unlearning_epochs=1,"
        " recovering_epochs=1)\n"
        "print([name for name in ('torch._dynamo', 'torch._inductor') if name in sys.modules])"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_unlearning_equals_ascent_written_out(
    small_net: nn.Module, images: torch.Tensor, labels: torch.Tensor, clip: float
) -> None:
    got = unlearn(
        small_net,
        LabeledImages(images, labels),
        scaled,
        seeded(5),
        UnlearnParams(
            unlearning_lr=0.1,
            unlearning_epochs=3,
            clean_threshold=0.0,
            schedule=(2,),
            unlearning_batch_size=16,
            grad_clip_norm=clip,
            unlearning_stop="epoch",
        ),
    )

    model, generator = copy.deepcopy(small_net).train(), seeded(5)
    buffers = [torch.zeros_like(p) for p in model.parameters()]
    for epoch in range(3):
        rate = 0.1 if epoch < 2 else 0.01
        for index in batches(40, 16, generator):
            loss = cross_entropy(model(scaled(images[index], None)), labels[index])
            grads = torch.autograd.grad(-loss, list(model.parameters()))
            norm = torch.stack([g.norm() for g in grads]).norm()
            factor = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
            with torch.no_grad():
                for p, g, b in zip(model.parameters(), grads, buffers, strict=True):
                    b.mul_(0.9).add_(g * factor + 5e-4 * p)
                    p.sub_(rate * b)
    for a, b in zip(got.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert [record.steps for record in got.history] == [3, 3, 3]


def test_reference_mode_stops_on_the_epochs_running_accuracy(
    small_net: nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> None:
    settings: dict[str, Any] = {
        "unlearning_lr": 0.3, "unlearning_epochs": 8, "unlearning_batch_size": 16, "grad_clip_norm": 0.0,
        "unlearning_stop": "epoch",
    }  # fmt: skip
    free = unlearn(
        small_net, LabeledImages(images, labels), scaled, seeded(5), UnlearnParams(clean_threshold=0.0, **settings)
    )
    wanted = free.history[2].accuracy
    first = next(r.epoch for r in free.history if r.accuracy <= wanted)
    stopped = unlearn(
        small_net, LabeledImages(images, labels), scaled, seeded(5), UnlearnParams(clean_threshold=wanted, **settings)
    )
    assert stopped.reached_threshold
    assert len(stopped.history) == first


def test_a_step_check_stops_in_the_middle_of_an_epoch_and_moves_no_statistics(
    small_net: nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> None:
    result = unlearn(
        small_net,
        LabeledImages(images, labels),
        scaled,
        seeded(5),
        UnlearnParams(unlearning_lr=0.5, unlearning_epochs=4, clean_threshold=0.99, unlearning_batch_size=10),
    )
    assert result.reached_threshold
    assert [record.steps for record in result.history] == [1]
    model, first = copy.deepcopy(small_net).train(), next(iter(batches(40, 10, seeded(5))))
    with forward_fn(model, "fp32") as forward:
        forward(scaled(images[first], None))
    assert torch.equal(result.model.get_buffer("1.running_mean"), model.get_buffer("1.running_mean"))


def test_a_threshold_out_of_reach_is_said(small_net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    result = unlearn(
        small_net,
        LabeledImages(images, labels),
        scaled,
        seeded(5),
        UnlearnParams(unlearning_lr=1e-9, unlearning_epochs=2, clean_threshold=0.0),
    )
    assert not result.reached_threshold
    assert len(result.history) == 2


@pytest.mark.parametrize(
    ("right", "limit", "found", "looks"),
    [
        (40, 0.2, 0.25, 1),  # 10 of 40 right: known after the first batch
        (0, 0.2, 0.0, 4),
        (8, 0.2, 0.2, 4),  # exactly at the limit
        (9, 0.2, 0.225, 1),  # the ninth is in the first batch
    ],
)
def test_the_stop_rule_looks_at_no_more_images_than_it_takes(
    right: int, limit: float, found: float, looks: int, monkeypatch: pytest.MonkeyPatch, small_net: nn.Module
) -> None:
    images, labels = torch.arange(40).view(40, 1, 1, 1), torch.ones(40, dtype=torch.int64)
    seen = []

    def answers(model: nn.Module, part: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(len(part))
        return (part.flatten() < right).long()

    monkeypatch.setattr(evaluate, "predict", answers)
    monkeypatch.setattr(evaluate, "batch_for", lambda images, device: 10)
    assert evaluate.accuracy_with_early_exit(limit, small_net, LabeledImages(images, labels), scaled) == (
        found,
        10 * looks,
    )
    assert seen == [10] * looks


def test_what_unlearning_says_of_itself_is_the_accuracy_on_all_images(
    monkeypatch: pytest.MonkeyPatch, small_net: nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> None:
    monkeypatch.setattr(evaluate, "batch_for", lambda images, device: 4)
    for limit, reached in ((0.1, False), (0.325, True)):  # it is 0.325 of 40
        result = unlearn(
            small_net,
            LabeledImages(images, labels),
            scaled,
            seeded(5),
            UnlearnParams(unlearning_lr=1e-9, unlearning_epochs=1, clean_threshold=limit),
        )
        own = evaluate.accuracy(evaluate.predict(result.model, images, scaled), labels)
        assert (result.accuracy, result.reached_threshold) == (own, reached)


@pytest.mark.parametrize("stop", ["step", "epoch"])
def test_measuring_moments_changes_nothing(
    stop: StopRule, small_net: nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> None:
    """Recovery shows the unlearned model with the mask on its γ, and its statistics. No random number is drawn."""
    once: dict[str, Any] = {"unlearning_epochs": 2, "unlearning_batch_size": 16, "unlearning_stop": stop}
    test = evaluate.EvalSet(images, labels, images[:9], labels[:9], 1 - labels[:9])
    meter = MomentMeter(test, scaled, "fp32")
    modes: list[bool] = []

    def measure(step: int, accuracy: float, model: Callable[[], nn.Module]) -> None:
        before, state = model().training, torch.get_rng_state()
        meter.measure(step, model())
        modes.append(before == model().training)
        assert torch.equal(torch.get_rng_state(), state)

    plain, seen = (
        run_unlearn(small_net, images, labels, hooks, clean_threshold=0.0, **once)
        for hooks in (NO_HOOKS, TrainingHooks(on_model=measure))
    )
    assert all(torch.equal(value, seen.model.state_dict()[name]) for name, value in plain.model.state_dict().items())
    assert [moment.step for moment in meter.found] == [check.step for check in seen.checks]
    assert meter.found[-1].scores == evaluate.evaluate(seen.model, test, scaled)
    steps = sum(record.steps for record in seen.history)
    assert [check.step for check in seen.checks][-1] == steps
    assert all(modes)

    meter.found.clear()
    shown: list[dict[str, torch.Tensor]] = []

    def show(step: int, accuracy: float, model: Callable[[], nn.Module]) -> None:
        measure(step, accuracy, model)
        shown.append(copy.deepcopy(model().state_dict()))

    twice: dict[str, Any] = {"recovering_epochs": 2, "recovering_batch_size": 16, "mask_averaging": "none"}
    plain_mask, mask = (
        run_recover(plain.model, images, labels, hooks, **twice).mask
        for hooks in (NO_HOOKS, TrainingHooks(on_model=show))
    )
    assert all(torch.equal(mask[name], plain_mask[name]) for name in mask)
    assert len(shown) == len(meter.found) == 2
    for name, values in mask.items():
        assert torch.equal(shown[1][f"{name}.weight"], plain.model.state_dict()[f"{name}.weight"] * values)
        assert not torch.equal(shown[1][f"{name}.running_mean"], plain.model.state_dict()[f"{name}.running_mean"])
    assert torch.equal(shown[1]["0.weight"], plain.model.state_dict()["0.weight"])


def test_the_last_check_is_the_accuracy_at_which_unlearning_stops(small_net: nn.Module, images: torch.Tensor) -> None:
    labels = evaluate.predict(small_net, images, scaled)  # so that accuracy is 1 at first
    for stop in ("step", "epoch"):
        result = run_unlearn(small_net, images, labels, unlearning_stop=stop, unlearning_lr=0.1, clean_threshold=0.3)
        assert result.reached_threshold
        assert result.checks[-1].accuracy == result.accuracy
        assert result.checks[-1].images == len(images)
        assert all(check.accuracy > 0.3 for check in result.checks[:-1])


def test_moments_are_few_and_lie_where_accuracy_falls(
    small_net: nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> None:
    meter = MomentMeter(evaluate.EvalSet(images, labels), scaled, "fp32")
    for step in range(1000):
        meter.after_fall(step, 1 - step / 1000, lambda: small_net)
    assert [moment.step for moment in meter.found] == [125, 250, 375, 500, 625, 750, 875]
    for epochs, expected in ((1, [1]), (3, [1, 2, 3]), (10, [1, 2, 4, 5, 6, 8, 9, 10]), (80, list(range(10, 81, 10)))):
        meter.found.clear()
        each = meter.every(epochs)
        for epoch in range(1, epochs + 1):
            each(epoch, 0.5, lambda: small_net)
        assert [moment.step for moment in meter.found] == expected


def test_divergence_is_an_error(small_net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(ModelError, match="diverged"):
        unlearn(
            small_net,
            LabeledImages(images, labels),
            scaled,
            seeded(5),
            UnlearnParams(
                unlearning_lr=1e30,
                unlearning_epochs=3,
                clean_threshold=0.0,
                grad_clip_norm=0.0,
                unlearning_stop="epoch",
            ),
        )


def test_the_callers_model_is_left_as_it_was(small_net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    before = copy.deepcopy(small_net.state_dict())
    unlearned = unlearn(
        small_net,
        LabeledImages(images, labels),
        scaled,
        seeded(5),
        UnlearnParams(unlearning_epochs=1, clean_threshold=0.0),
    ).model
    kept = copy.deepcopy(unlearned.state_dict())
    run_recover(unlearned, images, labels, recovering_epochs=2)
    assert all(torch.equal(v, before[k]) for k, v in small_net.state_dict().items())
    assert all(torch.equal(v, kept[k]) for k, v in unlearned.state_dict().items())
    assert all(p.requires_grad for p in unlearned.parameters())


def test_recovery_equals_projected_descent_written_out(
    small_net: nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> None:
    settings: dict[str, Any] = {
        "alpha": 0.5, "recovering_lr": 0.7, "recovering_epochs": 4, "recovering_batch_size": 16,
    }  # fmt: skip
    got = recover(
        small_net, LabeledImages(images, labels), scaled, seeded(5), RecoverParams(mask_averaging="none", **settings)
    ).mask
    mean = run_recover(small_net, images, labels, **settings).mask

    model, generator = copy.deepcopy(small_net).train(), seeded(5)
    weights = [model.get_parameter("1.weight"), model.get_parameter("4.weight")]
    scales = [weight.detach().clone() for weight in weights]
    mask = [torch.ones(4), torch.ones(6)]
    speed = [torch.zeros(4), torch.zeros(6)]
    passed = []
    for _ in range(4):
        for index in batches(40, 16, generator):
            with torch.no_grad():
                for weight, scale, m in zip(weights, scales, mask, strict=True):
                    weight.copy_(scale * m)
            loss = 0.5 * cross_entropy(model(scaled(images[index], None)), labels[index])
            grads = torch.autograd.grad(loss, weights)
            for k in range(2):  # chain rule: dL/dm = dL/dγ' · γ
                speed[k] = 0.9 * speed[k] + grads[k] * scales[k]
                mask[k] = (mask[k] - 0.7 * speed[k]).clamp(0, 1)
            passed.append(torch.cat(mask))
    assert torch.allclose(torch.cat([mean["1"], mean["4"]]), torch.stack(passed).mean(0), atol=1e-6)
    assert torch.allclose(got["1"], mask[0], atol=1e-6)
    assert torch.allclose(got["4"], mask[1], atol=1e-6)
    assert got["4"].min() < 1


def test_recovery_drops_the_neuron_that_does_the_harm_and_keeps_the_one_needed() -> None:
    # Neuron 0 tells the classes apart. Neuron 1 sees the same, and pulls every answer the wrong way.
    model = TwoPaths()
    with torch.no_grad():
        model.conv.weight.copy_(torch.ones(2, 1, 1, 1))
        model.linear.weight.copy_(torch.tensor([[-1.0, 3.0], [1.0, -3.0]]))
    values = torch.arange(20, dtype=torch.uint8).repeat_interleave(16).view(20, 1, 4, 4) * 13
    labels = (torch.arange(20) >= 10).long()
    result = recover(
        model,
        LabeledImages(values, labels),
        scaled,
        seeded(5),
        RecoverParams(recovering_lr=0.5, recovering_epochs=30, recovering_batch_size=20, mask_averaging="none"),
    )
    assert result.mask["norm"].tolist() == [1.0, 0.0]
    assert result.history[0].accuracy == 0.0
    assert result.history[-1].accuracy == 1.0


def test_the_same_seed_gives_the_same_bits(small_net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    one, two = (run_recover(small_net, images, labels, recovering_epochs=2).mask for _ in range(2))
    assert all(torch.equal(one[k], two[k]) for k in one)
