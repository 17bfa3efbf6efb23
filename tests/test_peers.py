"""The peers that ours is compared with, each against its formula or a case made by hand."""

import copy
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tensors import same, seeded
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks import norm_free
from benchmarks.peers import anp, fine_pruning, finetuning, ibau
from rnp_mlflow.attacks.train import TrainParams
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.data.preprocess import Preprocess

TRANSFORM = Preprocess.for_image_size(8, (0.5,), (0.5,), False)


@pytest.fixture
def clean() -> LabeledImages:
    """Images whose class is the brightest of three columns."""
    images = torch.randint(0, 120, (60, 1, 8, 8), dtype=torch.uint8, generator=seeded(1))
    labels = torch.arange(60) % 3
    for k, label in enumerate(labels.tolist()):
        images[k, :, :, 1 + 2 * label : 3 + 2 * label] += 120
    return LabeledImages(images, labels)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.GroupNorm(2, 6), nn.GELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(54, 3)
    ).eval()


def loss(net: nn.Module, clean: LabeledImages) -> float:
    with torch.no_grad():
        return float(cross_entropy(net(TRANSFORM(clean.images, None)), clean.labels))


def test_finetuning_lowers_the_loss_of_a_copy(
    model: nn.Module, clean: LabeledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetuning, "SETTINGS", TrainParams(5, lr=0.01, batch_size=20))
    before = copy.deepcopy(model.state_dict())
    tuned = finetuning.purify(model, clean, TRANSFORM, 0)
    assert loss(tuned, clean) < 0.7 * loss(model, clean)
    assert same(before, model.state_dict())
    assert same(tuned.state_dict(), finetuning.purify(model, clean, TRANSFORM, 0).state_dict())


def test_fine_pruning_takes_the_least_active_inputs_of_the_classifier_while_accuracy_lasts(
    clean: LabeledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten inputs of the classifier, one of which tells the classes; the others are dormant, less and less."""

    class Features(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            columns = torch.stack([x[..., 1 + 2 * k : 3 + 2 * k].mean((1, 2, 3)) for k in range(3)], 1)
            return torch.cat([torch.linspace(0.1, 0.7, 7).expand(len(x), 7), 10 * (columns + 2)], 1)

    net = nn.Sequential(Features(), nn.Linear(10, 3, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.cat([torch.ones(3, 7), torch.eye(3)], 1))  # type: ignore[operator]
    monkeypatch.setattr(finetuning, "purify", lambda net, *rest: net)
    pruned = fine_pruning.purify(net.eval(), clean, TRANSFORM, 0)
    gone = fine_pruning.last_linear(pruned).weight.abs().sum(0) == 0
    assert gone.tolist() == 7 * [True] + 3 * [False], "the next to go would cost a class"


def test_anp_perturbs_scale_and_shift_and_learns_by_the_gradient(
    model: nn.Module, clean: LabeledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = anp.norms_of(model)
    assert list(layers) == ["1"]
    norm = layers["1"]
    values = [{"1": torch.rand(6, generator=seeded(k))} for k in range(3)]
    found = anp.perturbed(layers, *values)
    m, d, x = (each["1"] for each in values)
    assert torch.equal(found["1.weight"], (m + d) * norm.get_parameter("weight"))
    assert torch.equal(found["1.bias"], (1 + x) * norm.get_parameter("bias"))

    monkeypatch.setattr(anp, "STEPS", 1)
    monkeypatch.setattr(anp, "ALPHA", 1.0)  # without the adversary
    seen: list[tuple[Tensor, Tensor]] = []
    whole = len(clean.labels)
    monkeypatch.setattr(anp, "BATCH_SIZE", whole)

    def recorded(images: Tensor, generator: torch.Generator | None) -> Tensor:
        seen.append((images, TRANSFORM(images, generator)))
        return seen[-1][1]

    mask = anp.learn_mask(model, clean, recorded, 0)["1"]  # type: ignore[arg-type]
    ((images, inputs),) = seen
    labels = torch.stack([clean.labels[(clean.images == image).flatten(1).all(1)][0] for image in images])
    scaled_net = copy.deepcopy(model)
    out = cross_entropy(scaled_net(inputs), labels)
    (by_gamma,) = torch.autograd.grad(out, scaled_net[1].weight)  # type: ignore[index]
    expected = (1 - anp.LR * by_gamma * scaled_net[1].weight).clamp(0, 1)  # type: ignore[index]
    torch.testing.assert_close(mask, expected)


def test_anp_prunes_what_accuracy_allows_and_does_not_run_without_norms(
    model: nn.Module, clean: LabeledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anp, "learn_mask", lambda *_: {"1": torch.tensor([0.0, 0.9, 0.9, 0.9, 0.9, 0.9])})
    monkeypatch.setattr(anp, "predict", lambda net, *_: clean.labels.clone() if alive(net) > 4 else 1 + clean.labels)
    pruned = anp.purify(model, clean, TRANSFORM, 0)
    assert pruned
    assert alive(pruned) == 5
    assert anp.purify(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), clean, TRANSFORM, 0) is None


def alive(net: nn.Module) -> int:
    return int((anp.norms_of(net)["1"].get_parameter("weight") != 0).sum())


def test_the_hypergradient_is_the_slope_along_the_best_perturbation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against differences of w → loss(w, δ*(w)), with δ* found anew for each w."""
    monkeypatch.setattr(ibau, "PENALTY", 2.0)  # the inner problem has one solution
    monkeypatch.setattr(ibau, "FIXED_POINT_STEPS", 300)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    inputs, labels = torch.randn(12, 1, 2, 2, dtype=torch.float64), torch.arange(12) % 3

    def best() -> Tensor:
        delta = torch.zeros(1, 2, 2, dtype=torch.float64, requires_grad=True)
        for _ in range(2000):
            (slope,) = torch.autograd.grad(ibau.inner_loss(net, delta, inputs, labels), delta)
            delta = (delta - 0.1 * slope).detach().requires_grad_()
        return delta

    def value() -> float:
        return float(cross_entropy(net(inputs + best()), labels).detach())

    found = ibau.hypergradient(net, best(), inputs, labels)
    direct = torch.autograd.grad(cross_entropy(net(inputs + best().detach()), labels), list(net.parameters()))
    weight, step = net.get_parameter("1.weight").data, 1e-5
    for place in ((0, 0), (2, 3)):
        weight[place] += step
        above = value()
        weight[place] -= 2 * step
        below = value()
        weight[place] += step
        slope = (above - below) / (2 * step)
        assert float(found[0][place]) == pytest.approx(slope, rel=1e-3)
        assert float(direct[0][place]) != pytest.approx(slope, rel=1e-3)


def test_ibau_leaves_the_model_given_as_it_was(
    model: nn.Module, clean: LabeledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ibau, "ROUNDS", 1)
    monkeypatch.setattr(ibau, "INNER_STEPS", 3)
    before = copy.deepcopy(model.state_dict())
    one, other = (ibau.purify(model, clean, TRANSFORM, 0).state_dict() for _ in range(2))
    assert same(before, model.state_dict())
    assert same(one, other)
    assert not same(one, before)
    assert float(ibau.clipped(torch.full((400,), 5.0)).norm()) == pytest.approx(ibau.RADIUS)


def test_the_table_says_on_how_many_suspects_a_peer_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_free, "RESULTS", tmp_path)
    for attack, model, rating in (("badnets", "vgg8", 0.9), ("blended", "vit_mini", 0.7), ("none", "vgg8", None)):
        figures = {"acc": 0.9, "asr": 0.1, "der": rating}
        others = {name: figures if name != "anp" or model != "vgg8" else None for name in norm_free.PEERS}
        own = {"before": figures, "after": figures, "verdict": {"confidence": "no sign", "benign_score": 0.02}}
        suspect = {"attack": attack, "model": model, "dataset": "digits", "seed": "1"}
        (tmp_path / f"{attack}.json").write_text(json.dumps({"suspect": suspect, "ours": own, "peers": others}))
    done = CliRunner().invoke(norm_free.main, ["table"], catch_exceptions=False)
    lines = done.output.splitlines()
    (whole,) = {line for line in lines if line.startswith("| all")}
    assert whole.startswith("| all | 2 | 0.800 (0.700), ASR 0.100, ACC 0.900 |")
    assert "0.700 (0.700), ASR 0.100, ACC 0.900 (n = 1)" in whole
    assert "| vgg8, digits, 1 | no sign | 0.900 → 0.900 | 0.0200 |" in lines
