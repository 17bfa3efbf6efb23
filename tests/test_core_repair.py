"""The repair of a pruned model, against the formula and cases made by hand."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tensors import same, seeded
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu

from rnp_mlflow.core.curve import CurvePoint
from rnp_mlflow.core.evaluate import Scores
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.neurons import scaled_parameters
from rnp_mlflow.core.params import DetectParams, RepairParams, SweepParams
from rnp_mlflow.core.proxy import ProxyTrigger, invert_trigger
from rnp_mlflow.core.prune import pruned_copy
from rnp_mlflow.core.pruning_curve import PruningCurve
from rnp_mlflow.core.repair import divergence, is_kept, repair
from rnp_mlflow.core.selectors import rule_of
from rnp_mlflow.core.units import norm_layers, remember_units, units_of
from rnp_mlflow.core.verdict import NORM_FREE_FACTOR
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.pipeline import Repair, repair_pruned

STEPS = RepairParams(repair_steps=40, precision="fp32")
TRANSFORM = Preprocess.for_image_size(8, (0.5,), (0.5,), False)


def as_floats(images: Tensor, generator: torch.Generator | None) -> Tensor:
    return images.float() / 255


@pytest.fixture
def suspect() -> nn.Module:
    torch.manual_seed(3)
    last = nn.Linear(8 * 16, 4)
    last.weight.data *= 20  # so that answers differ
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), last,
    ).eval()  # fmt: skip


@pytest.fixture
def clean() -> LabeledImages:
    images = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8, generator=seeded(1))
    return LabeledImages(images, torch.arange(50) % 4)


@pytest.fixture
def pruned(suspect: nn.Module) -> nn.Module:
    """Four of 14 neurons pruned: two of each layer."""
    mask = {"1": torch.tensor([0.1, 0.2, 0.9, 0.9, 0.9, 0.9]), "4": torch.tensor([0.1, 0.2] + 6 * [0.9])}
    return pruned_copy(suspect, mask, 4).eval()


def test_the_loss_is_hintons() -> None:
    logits, wanted = (torch.randn(5, 3, generator=seeded(k), dtype=torch.float64) for k in (1, 2))
    p, q = (np.exp(x.numpy() / 2) / np.exp(x.numpy() / 2).sum(1, keepdims=True) for x in (wanted, logits))
    assert float(divergence(logits, wanted)) == pytest.approx(4 * (p * np.log(p / q)).sum(1).mean())
    assert float(divergence(wanted, wanted)) == pytest.approx(0)


def test_the_pruned_model_answers_as_the_suspect_again_and_stays_pruned(
    suspect: nn.Module, pruned: nn.Module, clean: LabeledImages
) -> None:
    before = copy.deepcopy(suspect.state_dict()), copy.deepcopy(pruned.state_dict())
    losses: list[float] = []
    repaired = repair(
        pruned, suspect, clean, as_floats, seeded(), params=STEPS, on_step=lambda step, loss: losses.append(loss)
    )
    assert same(before[0], suspect.state_dict())
    assert same(before[1], pruned.state_dict())
    inputs = as_floats(clean.images, None)
    with torch.no_grad():
        distances = [float(divergence(model(inputs), suspect(inputs))) for model in (pruned, repaired)]
    assert distances[1] < 0.3 * distances[0]
    assert len(losses) == 40
    for name, layer in norm_layers(repaired).items():
        gone = norm_layers(pruned)[name].weight == 0
        assert int(gone.sum()) == 2
        assert torch.equal(layer.weight == 0, gone)
        assert torch.equal(layer.running_mean, norm_layers(pruned)[name].running_mean)  # type: ignore[arg-type]


def test_neurons_of_every_kind_stay_pruned(clean: LabeledImages) -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(1, 8, 2, 2), nn.GroupNorm(2, 8)
            self.attention, self.hidden, self.last = nn.MultiheadAttention(8, 4), nn.Linear(8, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.norm(self.stem(x)).flatten(2).permute(2, 0, 1)
            tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
            answer: Tensor = self.last(gelu(self.hidden(tokens.mean(0))))
            return answer

    torch.manual_seed(1)
    suspect = Attends().eval()
    remember_units(suspect, as_floats(clean.images[:2], None))
    assert {layer.kind for layer in units_of(suspect).values()} == {"norm", "head", "hidden"}
    mask = {name: torch.linspace(0.1, 0.9, layer.count) for name, layer in units_of(suspect).items()}
    pruned = pruned_copy(suspect, mask, 8).eval()
    repaired = repair(pruned, suspect, clean, as_floats, seeded(), params=STEPS)
    before, after = pruned.state_dict(), repaired.state_dict()
    assert not same(before, after)
    for name in scaled_parameters(suspect):
        assert bool((before[name] == 0).any())
        assert torch.equal(before[name] == 0, after[name] == 0)


def test_weights_can_be_trained_afterwards_if_they_could_before(
    suspect: nn.Module, pruned: nn.Module, clean: LabeledImages
) -> None:
    flags = [k % 3 > 0 for k, _ in enumerate(pruned.parameters())]
    for flag, weight in zip(flags, pruned.parameters(), strict=True):
        weight.requires_grad_(flag)
    repaired = repair(pruned, suspect, clean, as_floats, seeded(), params=STEPS)
    assert [weight.requires_grad for weight in repaired.parameters()] == flags
    assert all(weight.grad is None for weight in repaired.parameters())


def test_the_same_seed_gives_the_same_weights(suspect: nn.Module, pruned: nn.Module, clean: LabeledImages) -> None:
    one, other, third = (
        repair(pruned, suspect, clean, as_floats, seeded(seed), params=STEPS).state_dict() for seed in (0, 0, 1)
    )
    assert same(one, other)
    assert not same(one, third)


def test_labels_are_not_used(suspect: nn.Module, pruned: nn.Module, clean: LabeledImages) -> None:
    wrong = LabeledImages(clean.images, 3 - clean.labels)
    one, other = (repair(pruned, suspect, x, as_floats, seeded(), params=STEPS).state_dict() for x in (clean, wrong))
    assert same(one, other)


def point(holdout_acc: float, proxy_asr: float | None = None, num_pruned: int = 4) -> CurvePoint:
    return CurvePoint(0.5, num_pruned, Scores(0.5, None, None), holdout_acc, proxy_asr)


@pytest.mark.parametrize(
    ("after_pruning", "after_repair", "kept"),
    [
        ((0.80, None), (0.80, None), True),
        ((0.80, None), (0.79, None), False),  # accuracy fell
        ((0.80, 0.000), (0.85, 0.009), True),  # up to a hundredth of the 0.9 before is taken as gone
        ((0.80, 0.000), (0.85, 0.010), False),  # the proxy works again
        ((0.80, 0.100), (0.85, 0.100), True),  # it works no better than after pruning
        ((0.80, 0.100), (0.85, 0.101), False),
    ],
)
def test_a_repair_is_kept_if_accuracy_does_not_fall_and_the_proxy_does_not_come_back(
    after_pruning: tuple[float, float | None], after_repair: tuple[float, float | None], kept: bool
) -> None:
    assert is_kept(point(*after_pruning), point(*after_repair), point(0.9, 0.9)) is kept


@pytest.mark.parametrize(("steps", "num_pruned", "holdout_acc"), [(0, 4, 0.8), (40, 0, 0.8), (40, 4, 0.91)])
def test_nothing_is_repaired_if_nothing_was_pruned_or_lost_or_it_is_not_wanted(
    suspect: nn.Module, pruned: nn.Module, clean: LabeledImages, steps: int, num_pruned: int, holdout_acc: float
) -> None:
    chosen = point(holdout_acc, num_pruned=num_pruned)
    task = Repair(suspect, clean, TRANSFORM, RepairParams(repair_steps=steps), PruningCurve([point(0.9)], chosen))
    model, found = repair_pruned(pruned, task, chosen, SweepParams())
    assert model is pruned
    assert found is None


def test_a_repair_that_did_not_help_is_dropped(suspect: nn.Module, pruned: nn.Module, clean: LabeledImages) -> None:
    for after, kept in ((0.7, False), (0.85, True)):
        curve = PruningCurve([point(0.9)], point(0.8), measure=lambda at, model, acc=after: point(acc))  # type: ignore[misc]
        task = Repair(suspect, clean, TRANSFORM, STEPS, curve)
        model, found = repair_pruned(pruned, task, point(0.8), SweepParams())
        assert (model is not pruned, found is not None) == (kept, kept)


def proxy_to(target: int, norm: float = 1.0) -> ProxyTrigger:
    """Return a proxy for images (1, 8, 8) of a given norm."""
    delta = torch.randn(1, 8, 8, generator=seeded(5))
    return ProxyTrigger(target, delta / delta.norm() * norm, torch.zeros(1, 1, 1), torch.ones(1, 1, 1))


def test_with_a_proxy_the_model_learns_to_ignore_it(
    suspect: nn.Module, pruned: nn.Module, clean: LabeledImages
) -> None:
    found = invert_trigger(suspect, clean, as_floats, seeded(), DetectParams(precision="fp32"), target=2)
    proxy = found.scaled(1.5)
    assert float(proxy.delta.norm()) == pytest.approx(1.5 * float(found.delta.norm()))
    plain, against = (
        repair(suspect, suspect, clean, as_floats, seeded(), params=STEPS, proxy=p) for p in (None, proxy)
    )
    assert proxy.success_rate(suspect, clean, as_floats) == 1
    assert proxy.success_rate(plain, clean, as_floats) == 1
    assert proxy.success_rate(against, clean, as_floats) == 0
    inputs = as_floats(clean.images, None)
    with torch.no_grad():
        assert torch.equal(against(inputs).argmax(1), suspect(inputs).argmax(1))
    from_pruned = repair(pruned, suspect, clean, as_floats, seeded(), params=STEPS, proxy=proxy)
    for name, layer in norm_layers(from_pruned).items():
        assert torch.equal(layer.weight == 0, norm_layers(pruned)[name].weight == 0)


def test_a_proxy_moves_towards_success_and_keeps_to_the_radius(suspect: nn.Module, clean: LabeledImages) -> None:
    proxy, inputs = proxy_to(2, norm=0.5), as_floats(clean.images, None)
    radius = torch.tensor(0.8)
    moved = proxy
    for _ in range(20):
        moved = moved.moved(suspect, inputs, radius)
        assert float(moved.delta.norm()) <= 0.8 * 1.0001
    assert float(moved.delta.norm()) > 0.7, "it may grow up to the radius"
    wanted = torch.full((len(inputs),), 2)
    with torch.no_grad():
        before, after = (float(cross_entropy(suspect(p(inputs)), wanted)) for p in (proxy, moved))
    assert after < 0.7 * before


@pytest.mark.parametrize(
    ("costs", "score", "found_at"),
    [
        ((0.02, 0.0, 0.0), 0.003, 1.0),  # clear: .95 of accuracy is enough
        ((0.06, 0.02, 0.0), 0.003, 0.75),
        ((0.06, 0.06, 0.02), 0.003, 0.5),
        ((0.06, 0.06, 0.06), 0.003, None),
        ((0.03, 0.03, 0.01), 0.006, 0.5),  # borderline: .98
        ((0.03, 0.03, 0.03), 0.006, None),
        ((), 0.008, None),  # no sign
    ],
)
def test_without_batchnorm_the_largest_norm_that_accuracy_allows_is_ignored(
    suspect: nn.Module,
    pruned: nn.Module,
    clean: LabeledImages,
    monkeypatch: pytest.MonkeyPatch,
    costs: tuple[float, ...],
    score: float,
    found_at: float | None,
) -> None:
    unpruned, proxy = point(1.0, 0.9, 0), proxy_to(1)
    ratio = (score / NORM_FREE_FACTOR) ** 0.5
    curve = PruningCurve(
        [unpruned], unpruned, proxy_norm=0.1, removal_cost=1.0, careful=True, norm_ratio=ratio,
        measure=lambda at, model: point(1 - costs[tried.index(model)], 0.0),
    )  # fmt: skip
    tried: list[nn.Module] = []
    norms: list[float] = []

    def repaired(start: nn.Module, *rest: object, proxy: ProxyTrigger, **more: object) -> nn.Module:
        assert more["params"] == RepairParams(repair_steps=180, repair_lr=0.03), "a thorough one"
        tried.append(copy.deepcopy(start))
        norms.append(float(proxy.delta.norm()))
        return tried[-1]

    monkeypatch.setattr("rnp_mlflow.pipeline.repair", repaired)
    assert rule_of(curve, SweepParams()).min_acc_ratio == SweepParams().borderline_acc_ratio
    assert rule_of(replace(curve, careful=False), SweepParams(clear_threshold=1)).min_acc_ratio == 0.8
    task = Repair(suspect, clean, TRANSFORM, RepairParams(repair_steps=60, repair_lr=0.01, repair_proxy=2.0), curve)
    model, found = repair_pruned(pruned, task, point(0.99, 0.9, 4 if costs else 0), SweepParams(), proxy)
    if found_at is None:
        assert model is pruned
        assert found is None
    else:
        assert model is tried[-1]
        assert norms[-1] == pytest.approx(2 * found_at)
        assert found == point(1 - costs[len(tried) - 1], 0.0)
