"""Pruning, sweeps, and the choice of a point, against hand-made cases."""

import copy
import dataclasses
from collections.abc import Sequence

import pytest
import torch
from conftest import scaled
from torch import nn

from rnp_mlflow.core import curve
from rnp_mlflow.core.bn_stats import bn_shift_fn, reestimate_
from rnp_mlflow.core.evaluate import EvalSet, Scores, accuracy, der, evaluate, predict
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.neurons import Mask, ones_mask
from rnp_mlflow.core.proxy import ProxyTrigger
from rnp_mlflow.core.prune import (
    SweepPoint,
    as_count,
    decimal_range,
    keep_mask,
    pruned_copy,
    sweep,
    sweep_cutoffs,
    sweep_point,
)
from rnp_mlflow.core.select import SelectionRule, best_der_index
from rnp_mlflow.core.verdict import removal_cost
from rnp_mlflow.errors import ConfigError, MaskError


@pytest.fixture
def mask() -> Mask:
    """Ten neurons; two ties at 0.3, one value just above 0.7."""
    return {
        "1": torch.tensor([0.3, 0.9, 0.0, 1.0]),
        "4": torch.tensor([0.3, 0.7, 0.70003, 0.05, 1.0, 0.5]),
    }


def count_zeros(model: nn.Module) -> int:
    """How many neurons of `small_net`, or a copy of it, are pruned."""
    return sum(int((model.get_parameter(f"{k}.weight") == 0).sum()) for k in (1, 4))


def test_thresholds_are_the_exact_decimals() -> None:
    found = decimal_range(0.9, 0.05)
    assert found == [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75,
                     0.8, 0.85, 0.9]  # fmt: skip
    assert len(decimal_range(1, 0.001)) == 1001
    assert decimal_range(1, 0.001)[-1] == 1.0
    with pytest.raises(ConfigError):
        decimal_range(0.9, 0)


def test_a_threshold_prunes_values_at_it_and_none_above(mask: Mask) -> None:
    assert sweep_point(mask, "threshold", 0.3).num_pruned == 4  # 0, 0.05 and both 0.3
    assert sweep_point(mask, "threshold", 0.7).num_pruned == 6  # not 0.70003
    assert sweep_point(mask, "threshold", 0.0).num_pruned == 1


def test_by_number_prunes_exactly_that_many_lowest_first(small_net: nn.Sequential, mask: Mask) -> None:
    for count in range(11):
        pruned = pruned_copy(small_net, mask, count)
        zeros = count_zeros(pruned)
        assert zeros == count == sweep_point(mask, "number", count).num_pruned if count else zeros == 0
    three = pruned_copy(small_net, mask, 3)
    assert three.get_parameter("1.weight").eq(0).tolist() == [True, False, True, False]  # of the tie, the earlier layer
    assert three.get_parameter("4.weight").eq(0).tolist() == [False, False, False, True, False, False]
    assert torch.equal(three.get_parameter("4.bias"), small_net.get_parameter("4.bias"))


def test_counts_below_one_are_shares_of_all_neurons() -> None:
    assert [as_count(v, 200) for v in (0, 0.05, 0.7, 1, 12, 200)] == [0, 10, 140, 1, 12, 200]
    for wrong in (-1, 1.5, 201):
        with pytest.raises(ConfigError):
            as_count(wrong, 200)


def test_sweeps_start_unpruned_and_end_at_their_maximum(mask: Mask) -> None:
    by_threshold = sweep_cutoffs(mask, "threshold", 0.9, 0.05)
    assert (by_threshold[0].cutoff, by_threshold[0].num_pruned) == (None, 0)
    assert [c.cutoff for c in by_threshold[1:]] == decimal_range(0.9, 0.05)
    by_number = sweep_cutoffs(mask, "number", 7, 2)
    assert [(c.cutoff, c.num_pruned) for c in by_number] == [(None, 0), (2, 2), (4, 4), (6, 6)]


def test_sweep_evaluators_each_set_of_pruned_neurons_once_and_leaves_the_model(
    small_net: nn.Sequential, mask: Mask
) -> None:
    before = copy.deepcopy(small_net.state_dict())
    seen: list[int] = []

    def evaluator(model: nn.Module) -> int:
        seen.append(count_zeros(model))
        return seen[-1]

    rows = list(sweep(small_net, mask, sweep_cutoffs(mask, "threshold", 0.9, 0.05), evaluator))
    assert [found for _, found in rows] == [cut.num_pruned for cut, _ in rows]
    assert len(seen) == len(set(seen))
    assert all(torch.equal(value, before[key]) for key, value in small_net.state_dict().items())


def test_sweep_may_go_down_again_and_gives_what_a_pruned_copy_gives(
    small_net: nn.Sequential, mask: Mask, images: torch.Tensor
) -> None:
    points = [sweep_point(mask, "number", n) for n in (8, 2, 5)]
    got = [out for _, out in sweep(small_net.eval(), mask, points, lambda m: m(scaled(images, None)))]
    want = [pruned_copy(small_net, mask, p.num_pruned)(scaled(images, None)) for p in points]
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_refit_serves_every_pruned_point_and_leaks_into_none(
    small_net: nn.Sequential, mask: Mask, images: torch.Tensor
) -> None:
    def refit(model: nn.Module) -> nn.Module:
        return reestimate_(model, images, scaled)

    points = [sweep_point(mask, "number", n) for n in (5, 0, 3)]
    x = scaled(images[:8], None)
    got = [out for _, out in sweep(small_net.eval(), mask, points, lambda m: m(x), refit)]
    assert torch.equal(got[1], small_net(x))  # unpruned: the model as it came, with its own statistics
    for point, out in zip(points, got, strict=True):
        assert torch.equal(out, pruned_copy(small_net, mask, point.num_pruned, refit)(x))
    assert not torch.equal(got[0], pruned_copy(small_net, mask, 5)(x))


def test_sweep_refuses_a_foreign_mask(small_net: nn.Module) -> None:
    with pytest.raises(MaskError):
        list(sweep(small_net, {"1": torch.ones(4)}, [], lambda m: m))


def test_keep_vector_of_nothing_pruned_is_all_ones(small_net: nn.Module) -> None:
    assert keep_mask(ones_mask(small_net), 0).eq(1).all()


def test_reestimated_statistics_are_the_batch_moments(small_net: nn.Sequential, images: torch.Tensor) -> None:
    weights = copy.deepcopy(dict(small_net.named_parameters()))
    reestimate_(small_net, images, scaled)
    first = small_net[0](scaled(images, None))
    assert torch.allclose(small_net.get_buffer("1.running_mean"), first.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(small_net.get_buffer("1.running_var"), first.var((0, 2, 3)), atol=1e-5)
    assert small_net[1].momentum == 0.1
    assert not any(module.training for module in small_net.modules())
    assert all(torch.equal(weights[k], v) for k, v in small_net.named_parameters())
    once = copy.deepcopy(small_net.state_dict())
    reestimate_(small_net, images, scaled)
    assert all(torch.equal(once[k], v) for k, v in small_net.state_dict().items())


def test_statistics_are_taken_in_batches_as_equal_as_can_be_of_64_small_or_32_large_images_at_most() -> None:
    seen: list[int] = []
    net = nn.Sequential(nn.BatchNorm2d(1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    for side, sizes in ((32, [50, 50, 50, 50]), (128, [31] * 10 + [30] * 4)):
        seen.clear()
        reestimate_(net, torch.zeros(sum(sizes), 1, side, side), lambda images, generator: images)
        assert seen == sizes


def test_der_by_hand() -> None:
    # The authors' log at threshold 0.30: ACC .9340 → .9277, ASR 1.000 → .0172 (RNP.md gives .988).
    assert der(Scores(0.9340, 1.0), Scores(0.9277, 0.0172)) == pytest.approx(0.98825)
    assert der(Scores(0.9, 1.0), Scores(0.9, 1.0)) == 0.5
    assert der(Scores(0.5, 0.2), Scores(0.6, 0.4)) == 0.5  # better ACC or worse ASR count for nothing
    assert der(Scores(0.9), Scores(0.8)) is None


def test_figures_count_images(small_net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    answers = predict(small_net, images, scaled)
    small_net.eval()
    plain = torch.cat([small_net(scaled(image[None], None)) for image in images]).argmax(1)
    assert torch.equal(answers, plain)
    target = torch.zeros(40, dtype=torch.int64)
    scores = evaluate(small_net, EvalSet(images, labels, images, labels, target), scaled)
    assert scores == Scores(
        sum(int(a == b) for a, b in zip(plain, labels, strict=True)) / 40,
        sum(int(a == 0) for a in plain) / 40,
        accuracy(plain, labels),
    )
    assert evaluate(small_net, EvalSet(images, labels), scaled).asr is None


def selection_rule(
    acc_ratio: float, proxy_ratio: float | None = None, min_acc_ratio: float = 0.8, margin_ratio: float = 1.0
) -> SelectionRule:
    """A rule without a margin, unless one is given."""
    return SelectionRule(acc_ratio, proxy_ratio, min_acc_ratio, margin_ratio)


def seen(val_acc: list[float], proxy: list[float] | None = None) -> list[curve.CurvePoint]:
    """Points of which only what the rule sees is of interest."""
    rates: Sequence[float | None] = proxy or [None] * len(val_acc)
    return [
        curve.CurvePoint(n, n, Scores(0.0), acc, rate) for n, (acc, rate) in enumerate(zip(val_acc, rates, strict=True))
    ]


def test_by_accuracy_the_last_point_before_the_first_fall_is_chosen() -> None:
    rule = selection_rule(0.95)
    assert rule.select(seen([1.0, 0.99, 0.96, 0.94, 0.97])) == 2
    assert rule.select(seen([1.0, 0.5])) == 0
    assert rule.select(seen([0.8, 0.76, 0.76])) == 2  # exactly the floor is kept
    assert rule.select(seen([1.0, 0.99])) == 1


def test_by_proxy_the_first_point_that_stops_it_is_chosen_where_accuracy_allows() -> None:
    rule = selection_rule(0.95, 0.05)
    assert rule.select(seen([1.0, 0.99, 0.98, 0.97], [0.8, 0.3, 0.04, 0.0])) == 2  # 0.04 is exactly 0.05 × 0.8
    assert rule.select(seen([1.0, 0.99, 0.90, 0.88, 0.7], [0.8, 0.3, 0.2, 0.0, 0.0])) == 3  # past acc_ratio
    assert rule.select(seen([1.0, 0.99, 0.98])) == 2  # no proxy: as far as accuracy allows
    assert rule.select(seen([1.0, 0.99, 0.98], [0.0, 0.0, 0.0])) == 2  # one that never worked says nothing
    assert selection_rule(0.95).select(seen([1.0, 0.99, 0.98], [0.8, 0.0, 0.0])) == 2


def test_a_proxy_that_is_never_stopped_is_weighed_against_accuracy() -> None:
    rule = selection_rule(0.95, 0.05)
    assert rule.select(seen([1.0, 0.99, 0.90, 0.79, 0.7], [0.8, 0.3, 0.2, 0.0, 0.0])) == 2  # 0.375 + 0.01, 0.25 + 0.1
    assert rule.select(seen([1.0, 0.99, 0.90, 0.88], [0.8, 0.2, 0.16, 0.16])) == 1  # 0.25 + 0.01, 0.2 + 0.1
    assert rule.select(seen([1.0, 0.99, 0.98], [0.8, 0.8, 0.8])) == 0  # nothing is gained


def test_past_the_point_pruning_goes_on_while_it_costs_next_to_nothing() -> None:
    rule = selection_rule(0.95, 0.05, margin_ratio=0.98)
    assert rule.select(seen([1.0, 0.90, 0.89, 0.885, 0.88], [0.8, 0.0, 0.0, 0.0, 0.0])) == 3  # 0.98 × 0.90 = 0.882
    assert rule.select(seen([1.0, 0.90, 0.88, 0.90], [0.8, 0.0, 0.0, 0.0])) == 1
    assert rule.select(seen([1.0, 0.99, 0.90, 0.79, 0.78], [0.8, 0.3, 0.2, 0.0, 0.0])) == 2
    assert rule.select(seen([1.0, 0.81, 0.795], [0.8, 0.0, 0.0])) == 1  # min_acc_ratio holds; 0.98 × 0.81 is less
    assert rule.select(seen([1.0, 1.0, 1.0], [0.8, 0.8, 0.8])) == 0  # nothing to go on from


def test_what_it_costs_to_stop_the_proxy_tells_a_shortcut_from_the_task() -> None:
    assert removal_cost(seen([1.0, 0.99, 0.90, 0.70], [0.8, 0.4, 0.08, 0.0])) == pytest.approx(0.2)  # 0.1 + 0.1
    assert removal_cost(seen([0.5, 0.5, 0.45], [0.8, 0.0, 0.0])) == 0  # at no cost at all
    assert (
        removal_cost(seen([1.0, 0.9], [0.0, 0.0])) == removal_cost(seen([1.0, 0.9])) == 1
    )  # no proxy, or one that never worked
    assert removal_cost(seen([1.0, 0.5, 0.1], [0.8, 0.8, 0.4])) == 1  # at the unpruned model


def test_authors_curve_without_trigger_gives_their_best_point() -> None:
    # RNP.md's table; "within 2 points" picks threshold .30, DER .988, and that is near the oracle's.
    acc = [.9340, .9347, .9338, .9340, .9280, .9270, .9277, .9094, .9077, .8941, .8201, .8167, .2519]  # fmt: skip
    asr = [1.000, .9986, .9876, .4796, .0661, .0424, .0172, .0112, .0059, .0026, .0021, .0011, 0]  # fmt: skip
    scores = [Scores(*pair) for pair in zip(acc, asr, strict=True)]
    index = selection_rule(0.914 / 0.934).select(seen(acc))
    assert index == 6
    assert der(scores[0], scores[index]) == pytest.approx(0.988, abs=5e-4)
    assert best_der_index(scores) == 6
    assert best_der_index([Scores(a) for a in acc]) is None


def test_shift_moves_statistics_as_pruning_moved_them_and_leaves_a_whole_model_alone(images: torch.Tensor) -> None:
    """Against the batch statistics written out by hand: norm, 1 × 1 convolution, norm."""
    torch.manual_seed(0)
    first, conv, second = nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)
    net = nn.Sequential(first, conv, second, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for layer in (first, second):  # stored statistics that a few images would not give
        layer.get_buffer("running_mean").uniform_(-1, 1)
        layer.get_buffer("running_var").uniform_(0.5, 2)
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.uniform_(layer.bias, -1, 1)
    x = scaled(images, None)

    def seen_by_second(scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        hat = (x - mean.view(1, 2, 1, 1)) / (var.view(1, 2, 1, 1) + first.eps).sqrt()
        out = conv(hat * scale.view(1, 2, 1, 1) + first.bias.view(1, 2, 1, 1))
        return out.mean((0, 2, 3)), out.var((0, 2, 3))

    shift = bn_shift_fn(net.eval(), images, scaled)
    whole = shift(copy.deepcopy(net))
    for name in ("0.running_mean", "0.running_var", "2.running_mean", "2.running_var"):
        torch.testing.assert_close(whole.get_buffer(name), net.get_buffer(name))
    pruned = copy.deepcopy(net)
    scale = pruned.get_parameter("0.weight")
    with torch.no_grad():
        scale[1] = 0
    (m, v), (m_new, v_new) = seen_by_second(first.weight), seen_by_second(scale)
    shift(pruned)
    torch.testing.assert_close(pruned.get_buffer("2.running_var"), second.get_buffer("running_var") * v_new / v)
    wanted = m_new + (second.get_buffer("running_mean") - m) * (v_new / v).sqrt()
    torch.testing.assert_close(pruned.get_buffer("2.running_mean"), wanted)
    torch.testing.assert_close(pruned.get_buffer("0.running_mean"), first.running_mean)


SWEEP = [SweepPoint(None, 0), SweepPoint(0.4, 4), SweepPoint(0.7, 8)]


@pytest.mark.parametrize(("bisections", "found"), [(1, 6), (2, 7), (3, 7), (9, 7)])
def test_refining_finds_the_last_count_that_keeps_accuracy(
    bisections: int, found: int, monkeypatch: pytest.MonkeyPatch, small_net: nn.Sequential, images: torch.Tensor
) -> None:
    """Accuracy here depends on the count alone: kept to 7 neurons of 10. The sweep knows 4 and 8."""
    mask = {"1": torch.tensor([0.1, 0.2, 0.3, 0.4]), "4": torch.tensor([0.45, 0.5, 0.6, 0.7, 0.8, 0.9])}
    labels = torch.zeros(len(images), dtype=torch.int64)

    def answers(model: nn.Module, *rest: object) -> torch.Tensor:
        return labels if count_zeros(model) <= 7 else labels + 1

    monkeypatch.setattr(curve, "predict", answers)
    evaluator, rule = (
        curve.Evaluator(EvalSet(images, labels), LabeledImages(images, labels), scaled),
        selection_rule(0.95),
    )
    points = curve.evaluate_sweep(
        small_net, mask, [SweepPoint(None, 0), SweepPoint(0.4, 4), SweepPoint(0.7, 8)], evaluator
    )
    refined = curve.refine_by_bisection(small_net, mask, points, rule, evaluator, bisections=bisections)
    assert [(p.cutoff, p.num_pruned) for p in refined] == [
        (None, 0), (0.4, 4), (pytest.approx({6: 0.5, 7: 0.6}[found]), found), (0.7, 8),
    ]  # fmt: skip
    assert rule.select(refined) == 2
    assert curve.refine_by_bisection(small_net, mask, points[:2], rule, evaluator, bisections=bisections) == points[:2]
    by_number = [dataclasses.replace(p, cutoff=p.num_pruned) for p in points]
    assert curve.refine_by_bisection(small_net, mask, by_number, rule, evaluator, bisections=9)[2].cutoff == 7


def test_where_the_proxy_decides_nothing_is_refined(
    monkeypatch: pytest.MonkeyPatch, small_net: nn.Sequential, images: torch.Tensor
) -> None:
    """The proxy works up to 5 neurons of 10 here, and accuracy is always kept. The sweep knows 4 and 8."""
    mask = {"1": torch.tensor([0.1, 0.2, 0.3, 0.4]), "4": torch.tensor([0.45, 0.5, 0.6, 0.7, 0.8, 0.9])}
    labels = torch.ones(len(images), dtype=torch.int64)

    def rate(self: ProxyTrigger, model: nn.Module, *rest: object, **named: object) -> float:
        return float(count_zeros(model) <= 5)

    monkeypatch.setattr(ProxyTrigger, "success_rate", rate)
    monkeypatch.setattr(curve, "predict", lambda model, *rest: labels)
    proxy = ProxyTrigger(0, torch.ones(2, 6, 6), torch.zeros(2, 1, 1), torch.ones(2, 1, 1))
    evaluator, rule = (
        curve.Evaluator(EvalSet(images, labels), LabeledImages(images, labels), scaled, proxy),
        selection_rule(0.95, 0.05),
    )
    points = curve.evaluate_sweep(
        small_net, mask, [SweepPoint(None, 0), SweepPoint(0.4, 4), SweepPoint(0.7, 8), SweepPoint(0.9, 10)], evaluator
    )
    assert [p.proxy_asr for p in points] == [1.0, 1.0, 0.0, 0.0]
    assert rule.select(points) == 3  # accuracy is still whole there
    assert curve.refine_by_bisection(small_net, mask, points, rule, evaluator, bisections=4) == points


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, small_net: nn.Sequential, images: torch.Tensor) -> curve.Evaluator:
    """What depends on the number of pruned neurons of 10 alone: accuracy is lost from 9 on, the proxy works to 3."""
    labels = torch.ones(len(images), dtype=torch.int64)
    monkeypatch.setattr(
        ProxyTrigger, "success_rate", lambda self, model, *rest, **named: float(count_zeros(model) <= 3)
    )
    monkeypatch.setattr(curve, "predict", lambda model, *rest: labels if count_zeros(model) < 9 else labels + 1)
    proxy = ProxyTrigger(0, torch.ones(2, 6, 6), torch.zeros(2, 1, 1), torch.ones(2, 1, 1))
    return curve.Evaluator(EvalSet(images, labels), LabeledImages(images, labels), scaled, proxy)


TENTHS = {"1": torch.tensor([0.1, 0.2, 0.3, 0.4]), "4": torch.tensor([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])}


def test_a_borderline_verdict_looks_for_the_end_of_its_budget(
    counted: curve.Evaluator, small_net: nn.Sequential
) -> None:
    """Accuracy is kept up to 8 neurons; the sweep knows 2 and 10."""
    points = curve.evaluate_sweep(
        small_net, TENTHS, [SweepPoint(None, 0), SweepPoint(0.2, 2), SweepPoint(1.0, 10)], counted
    )
    rule = dataclasses.replace(selection_rule(0.95, 0.05, min_acc_ratio=0.99), borderline=True)
    refined = curve.refine_by_bisection(small_net, TENTHS, points, rule, counted, bisections=9)
    assert [(p.num_pruned, p.holdout_acc, p.proxy_asr) for p in refined] == [
        (0, 1, 1),
        (2, 1, 1),
        (8, 1, 0),
        (10, 0, 0),
    ]
    assert rule.select(refined) == 2
    sure = dataclasses.replace(rule, borderline=False)
    assert curve.refine_by_bisection(small_net, TENTHS, points, sure, counted, bisections=9) == points


@pytest.mark.parametrize(
    ("stride", "looked_at"),
    [
        (1, [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (2, [0, 0, 2, 3, 4, 6, 8, 9]),  # 3 is before the first where it fails, 9 after the last that keeps accuracy
        (3, [0, 0, 3, 4, 5, 6, 7, 8, 9]),  # 6 fails, so does 5, so does 4; and 7, and 8, keep accuracy
        (20, [0, 0, 9]),  # accuracy is lost at both ends but the first: nothing is pruned
    ],
)
def test_a_coarse_sweep_looks_at_every_point_beside_its_choice(
    stride: int, looked_at: list[int], counted: curve.Evaluator, small_net: nn.Sequential
) -> None:
    points = sweep_cutoffs(TENTHS, "threshold", 0.9, 0.1)
    plan, steps = curve.SweepPlan(points, selection_rule(0.95, 0.05), stride), []
    found = curve.adaptive_sweep(small_net, TENTHS, plan, counted, on_point=lambda point: steps.append(1))
    assert [cut.num_pruned for cut in found] == looked_at
    assert len(steps) == len(found)
    assert [(cut.cutoff, cut.num_pruned) for cut in found] == [
        (point.cutoff, point.num_pruned) for point in found.values()
    ]
    if stride < 20:
        full = curve.evaluate_sweep(small_net, TENTHS, points, counted)
        chosen = list(found.values())[plan.rule.select(list(found.values()))]
        assert chosen == full[plan.rule.select(full)]
        assert chosen.num_pruned == 8


def test_a_coarse_sweep_evaluators_what_it_is_told_to(counted: curve.Evaluator, small_net: nn.Sequential) -> None:
    points = sweep_cutoffs(TENTHS, "threshold", 0.9, 0.1)
    rule = selection_rule(0.95, 0.05)
    found = curve.adaptive_sweep(
        small_net, TENTHS, curve.SweepPlan(points, rule, 4, [sweep_point(TENTHS, "threshold", 0.15)]), counted
    )
    assert list(found)[-1] == SweepPoint(0.15, 1)
    again = curve.adaptive_sweep(small_net, TENTHS, curve.SweepPlan(points, rule, 4, [points[5]]), counted)
    assert [cut for cut in again if cut == points[5]] == [points[5]]
