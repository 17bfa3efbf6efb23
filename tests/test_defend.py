"""`from rnp_mlflow import defend`: any module with BatchNorm, no MLflow, the caller's model untouched."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import outside_files as files
import pytest
import torch
from defending import NORMALISATION
from torch import Tensor, nn

from rnp_mlflow import defend, pipeline
from rnp_mlflow.core import detect, trace
from rnp_mlflow.core.curve import CurvePoint
from rnp_mlflow.core.evaluate import EvalSet, Scores, evaluate
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.neurons import Mask, flatten
from rnp_mlflow.core.params import BatchNormStats, DefenseSettings, DetectParams, SelectBy, SweepParams, UnlearnParams
from rnp_mlflow.core.proxy import ProxyTrigger
from rnp_mlflow.core.prune import keep_mask
from rnp_mlflow.core.pruning_curve import PruningCurve
from rnp_mlflow.core.select import SelectionRule
from rnp_mlflow.core.selectors import confidence_of, select_point
from rnp_mlflow.core.units import norm_layers
from rnp_mlflow.core.unlearn import UnlearningResult
from rnp_mlflow.core.verdict import TargetEstimate
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.errors import ConfigError, DataError, ModelError

QUICK: DefenseSettings = {
    "unlearning_epochs": 1, "recovering_epochs": 1, "holdout_crops": 1, "select_by": "number", "pruning_by": "number",
    "proxy_steps": 2, "repair_steps": 2,
    "pruning_max": 0.2, "pruning_step": 0.1, "pruning_number": 0.1,
}  # fmt: skip


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "timm":
        import timm

        return timm.create_model("resnet10t", num_classes=4)
    from torchvision import models

    rest = {"init_weights": False} if "google" in kind else {}
    model: nn.Module = models.get_model(kind, weights=None, num_classes=4, **rest)
    return model


def pixels(side: int = 32) -> tuple[Tensor, Tensor]:
    images = torch.randint(256, (24, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return images, torch.arange(24) % 4


@pytest.mark.parametrize("kind", ["mobilenet_v3_small", "vgg11_bn", "googlenet", "timm"])
def test_torchvision_and_timm_modules_are_defended_and_left_as_they_were(kind: str) -> None:
    """vgg11_bn has dropout, whose draws must come from the seed; googlenet gives three outputs in training."""
    model = network(kind).train()
    frozen = next(iter(norm_layers(model).values())).eval()
    before, flags = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    images, labels = pixels()
    drawn = torch.get_rng_state()
    first = defend(model, images, labels, **NORMALISATION, **QUICK | {"seed": 3})
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not frozen.training
    assert [p.requires_grad for p in model.parameters()] == flags
    torch.rand(5)
    again = defend(model, images, labels, **NORMALISATION, **QUICK | {"seed": 3})
    assert all(torch.equal(first.mask[name], again.mask[name]) for name in first.mask)
    assert first.curve == again.curve
    kept = keep_mask(first.mask, first.chosen.num_pruned)
    assert int((kept == 0).sum()) == first.chosen.num_pruned > 0
    scales_before, scales_after = (torch.cat([v.weight for v in norm_layers(m).values()]) for m in (model, first.model))
    assert torch.equal(scales_after == 0, scales_before * kept == 0)
    if first.repaired is None:
        assert torch.equal(scales_after, scales_before * kept)
    assert [p.requires_grad for p in first.model.parameters()] == flags
    assert type(first.model) is type(model)
    assert not first.model.training


def test_without_augmentation_mirroring_is_ignored_and_with_it_is_not() -> None:
    images, labels = pixels()
    model = network("mobilenet_v3_small")
    steps: tuple[Callable[[bool], DefenseSettings], ...] = (
        lambda augment: {"unlearning_augment": augment}, lambda augment: {"recovering_augment": augment}
    )  # fmt: skip
    for step in steps:
        masks = {
            (augment, flip): flatten(
                defend(model, images, labels, flip=flip, **NORMALISATION, **QUICK | step(augment)).mask
            )
            for augment in (False, True) for flip in (True, False)
        }  # fmt: skip
        assert torch.equal(masks[False, True], masks[False, False])
        assert not torch.equal(masks[True, True], masks[True, False])


def test_statistics_move_unless_they_are_kept_and_the_choice_is_refined_unless_told_not_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, labels = pixels()
    asked: list[int] = []

    def running_means(model: nn.Module) -> Tensor:
        return torch.cat([layer.get_buffer("running_mean") for layer in norm_layers(model).values()])

    model = network("mobilenet_v3_small")
    stored = running_means(model)

    def remembered(
        model: nn.Module, mask: Mask, points: list[CurvePoint], *rest: object, bisections: int, **named: object
    ) -> list[CurvePoint]:
        asked.append(bisections)
        return points

    monkeypatch.setattr(trace, "refine_by_bisection", remembered)
    ways: tuple[tuple[BatchNormStats, bool], ...] = (("keep", False), ("shift", True), ("reestimate", True))
    for way, moved in ways:
        changed: DefenseSettings = {"bn_stats": way, "select_by": "number", "refine": 0 if way == "keep" else 4}
        result = defend(model, images, labels, **NORMALISATION, **QUICK | changed)
        assert torch.equal(running_means(result.model), stored) is not moved
    assert asked == []
    for bisections in (0, 3):
        chosen: DefenseSettings = {"select_by": "clean_acc", "refine": bisections}
        defend(model, images, labels, **NORMALISATION, **QUICK | chosen)
    assert asked == [3]


def test_unlearning_has_batches_of_its_own_size() -> None:
    clean = LabeledImages(*pixels())
    transform = Preprocess.for_image_size(32, files.MEAN, files.STD, False)
    for size in (10, 64):
        params = UnlearnParams(unlearning_batch_size=size, unlearning_epochs=1, unlearning_stop="epoch")
        found = pipeline.unlearn_model(network("mobilenet_v3_small"), clean, transform, params)
        assert found.history[0].steps == -(-len(clean.images) // size)


def test_there_is_a_verdict_only_where_the_model_has_forgotten_its_task() -> None:
    images, labels = pixels()
    model = network("mobilenet_v3_small")
    kept = defend(model, images, labels, **NORMALISATION, **QUICK | {"unlearning_lr": 1e-9, "clean_threshold": 0.0})
    assert (kept.unlearned.reached_threshold, kept.estimate, kept.proxy) == (False, None, None)
    lost = defend(model, images, labels, **NORMALISATION, **QUICK | {"clean_threshold": 0.99})
    assert lost.unlearned.reached_threshold
    assert lost.estimate is not None
    assert lost.proxy is not None
    assert lost.proxy.target == lost.estimate.target
    two = defend(model, images, labels % 2, **NORMALISATION, **QUICK | {"clean_threshold": 0.99, "proxy_steps": 0})
    assert two.proxy is None


def test_of_classes_that_may_be_the_target_the_one_whose_proxy_outlives_unlearning_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half of the images are called 1, a third 2, the rest 3; the proxies have the norms and shares of `known`."""
    images, labels = torch.zeros(6, 1, 2, 2), torch.zeros(6, dtype=torch.int64)
    model, empty = nn.BatchNorm2d(1), torch.zeros(1)
    known = {0: (0.9, 0.99), 1: (8.0, 0.7), 2: (9.0, 0.01), 3: (1.0, 0.01)}

    def score(*arguments: Any, target: int, **hooks: object) -> tuple[float, float, ProxyTrigger]:
        return *known[target], ProxyTrigger(target, empty, empty, empty)

    monkeypatch.setattr(detect, "count_classes", lambda *_: 4)
    monkeypatch.setattr(detect, "predict", lambda *_: torch.tensor([1, 1, 1, 2, 2, 3]))
    monkeypatch.setattr(detect, "score_target", score)
    clean, transform = LabeledImages(images, labels), Preprocess.for_image_size(2, (), (), False)
    unlearned = UnlearningResult(model, 0.1, True, [])
    for most, (target, share, rate) in {1: (1, 0.5, 0.7), 2: (2, 1 / 3, 0.01), 3: (3, 1 / 6, 0.01)}.items():
        params = DetectParams(proxy_classes=most)
        estimate, proxy = detect.detect_target(model, unlearned, clean, transform, params)
        assert estimate == TargetEstimate(target, share, rate)
        assert proxy is not None
        assert proxy.target == target
    estimate, _ = detect.detect_target(nn.Identity(), unlearned, clean, transform, DetectParams(proxy_classes=1))
    assert estimate == TargetEstimate(0, 0.0, 0.99, 0.9 / 8)  # without BatchNorm: the smallest proxy of all classes


def test_a_proxy_that_turns_nothing_is_no_sign_of_a_backdoor() -> None:
    """A model that answers class 0 to every image: the smallest change leads there."""
    images, labels = pixels()
    model = network("mobilenet_v3_small")
    [*_, head] = model.modules()
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([9.0, 0, 0, 0]))
    changed: DefenseSettings = {"clean_threshold": 0.99, "select_by": "proxy"}
    found = defend(model, images, labels, **NORMALISATION, **QUICK | changed)
    assert found.proxy is not None
    assert float(found.proxy.delta.norm()) < 2
    assert found.benign_score is not None
    assert found.benign_score > SweepParams().benign_threshold
    assert found.chosen.num_pruned == 0


def test_no_sign_of_a_backdoor_means_nothing_is_pruned() -> None:
    counts = ((0, 0.9), (1, 0.0), (2, 0.0), (9, 0.0))
    rows = [CurvePoint(n, n, Scores(0.9), 1.0 - n * n / 100, rate) for n, rate in counts]
    sizes = (None, 1.0, 2.0)  # × a removal cost of 0.01 × (0.1 + 0.5) = benign score; the limit is 0.007
    ways: tuple[SelectBy, ...] = ("proxy", "clean_acc", "number")
    chosen = {
        (way, size): select_point(
            PruningCurve(rows, rows[3], None, size, 0.01, 0.5), SweepParams(select_by=way)
        ).num_pruned
        for way in ways for size in sizes
    }  # fmt: skip
    assert chosen == {
        ("proxy", None): 1, ("proxy", 1.0): 1, ("proxy", 2.0): 0,
        **{("clean_acc", size): 2 for size in sizes},
        **{("number", size): 9 for size in sizes},
    }  # fmt: skip


def test_a_borderline_verdict_keeps_nearly_all_accuracy() -> None:
    """The benign score is norm × 0.01 × (0.1 + 0.5); held-out accuracy is 1, .995, .98, .955, .595."""
    counts = ((0, 0.9), (1, 0.7), (2, 0.3), (3, 0.0), (9, 0.0))
    rows = [CurvePoint(n, n, Scores(0.9), 1.0 - n * n / 200, rate) for n, rate in counts]
    curves = [PruningCurve(rows, rows[4], None, norm, 0.01, 0.5) for norm in (0.6, 0.7, 1.0, 1.2)]
    for budget, pruned in ((0.99, [3, 1, 1, 0]), (0.98, [3, 2, 2, 0])):
        params = SweepParams(borderline_acc_ratio=budget)
        assert [confidence_of(each, params) for each in curves] == ["clear", "borderline", "borderline", "no sign"]
        assert [select_point(each, params).num_pruned for each in curves] == pruned


def test_the_curve_is_measured_on_a_part_of_the_test_images_and_what_is_reported_on_all() -> None:
    images, labels = pixels()
    model = network("mobilenet_v3_small")
    bad = images[labels > 0], labels[labels > 0], torch.zeros(18, dtype=torch.int64)
    test = EvalSet(images, labels, *bad)
    whole, part = (
        defend(model, images, labels, test=test, **NORMALISATION, **QUICK | {"curve_eval_size": count})
        for count in (0, 7)
    )  # fmt: skip
    assert flatten(whole.mask).equal(flatten(part.mask))
    assert whole.chosen == part.chosen
    some = EvalSet(
        *(values[[0, 3, 6, 10, 13, 17, 20]] for values in (images, labels)),
        *(values[[0, 2, 5, 7, 10, 12, 15]] for values in bad),
    )
    after = evaluate(part.model, some, Preprocess.for_image_size(32, files.MEAN, files.STD, False))
    assert after in [point.scores for point in part.curve]
    assert [point.holdout_acc for point in whole.curve] == [point.holdout_acc for point in part.curve]


def test_the_sweep_looks_beside_the_choice_that_is_told_whichever_point_is_taken() -> None:
    ways: tuple[SelectBy, ...] = ("proxy", "number", "asr", "clean_acc")
    rules = {way: SelectionRule.from_params(SweepParams(select_by=way)) for way in ways}
    assert rules["number"] == rules["asr"] == rules["proxy"]
    assert (rules["proxy"].proxy_ratio, rules["clean_acc"].proxy_ratio) == (0.01, None)


def test_of_many_clean_images_some_make_statistics_and_views(monkeypatch: pytest.MonkeyPatch) -> None:
    transform = Preprocess.for_image_size(8, (0.5,), (0.25,), False)
    pictures = torch.arange(1000).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).to(torch.uint8)
    clean = LabeledImages(pictures, torch.arange(1000))
    sizes = {
        (views, count): len(pipeline.holdout_views(
            clean.select(torch.arange(count)), transform, SweepParams(holdout_crops=views)
        ).images)
        for views in (0, 1, 5) for count in (100, 300, 1000)
    }  # fmt: skip
    assert sizes == {
        (0, 100): 100, (0, 300): 300, (0, 1000): 1000,
        (1, 100): 100, (1, 300): 300, (1, 1000): 1000,
        (5, 100): 500, (5, 300): 900, (5, 1000): 1000,
    }  # fmt: skip
    monkeypatch.setattr(pipeline, "VIEWS", 100)
    _, labels = pipeline.holdout_views(clean, transform, SweepParams())
    assert labels.tolist() == list(range(0, 1000, 10))
    asked: list[Tensor] = []
    monkeypatch.setattr(pipeline, "bn_shift_fn", lambda model, images, *rest: asked.append(images))
    assert pipeline.bn_calibration(nn.Identity(), clean, transform, SweepParams()) is None
    pipeline.bn_calibration(nn.BatchNorm2d(1), clean, transform, SweepParams())
    assert asked[0].equal(pictures[::5])


def test_floats_are_taken_as_they_are_and_arrays_as_tensors() -> None:
    images, labels = pixels()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (files.MEAN, files.STD))
    floats = (images.float() / 255 - mean) / std
    model = network("mobilenet_v3_small")
    # Without crops and mirroring the two ways see the very same numbers.
    one = defend(model, images, labels, **NORMALISATION, flip=False, **QUICK | {"holdout_crops": 0})
    arrays = floats.numpy(), labels.numpy()
    two = defend(model, *arrays, flip=False, **QUICK | {"holdout_crops": 0})  # type: ignore[arg-type]
    assert one.curve[0] == two.curve[0]


def test_what_cannot_be_defended_says_why() -> None:
    images, labels = pixels()
    model = network("mobilenet_v3_small")
    with pytest.raises(ConfigError, match="mean and std"):
        defend(model, images, labels)
    with pytest.raises(ConfigError, match="no setting alhpa"):
        defend(model, images.float(), labels, alhpa=1)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="alpha=-1"):
        defend(model, images.float(), labels, alpha=-1)
    with pytest.raises(ConfigError, match="triggered"):
        defend(model, images.float(), labels, **QUICK | {"select_by": "asr"})
    with pytest.raises(DataError, match="as many whole labels"):
        defend(model, images.float(), labels[:-1])
    with pytest.raises(DataError, match="int32"):
        defend(model, images.int(), labels)
    with pytest.raises(DataError, match="from 0 to 3"):
        defend(model, images.float(), labels + 1)
    with pytest.raises(ModelError, match="no BatchNorm"):
        defend(nn.Sequential(nn.Flatten(), nn.Linear(3072, 4)), images.float(), labels)


def test_defend_needs_no_mlflow() -> None:
    asked = (
        "import sys; from rnp_mlflow import defend; print([m for m in ('mlflow', 'torchvision') if m in sys.modules])"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
