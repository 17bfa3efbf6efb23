"""Attacks: each trigger against its paper's formula, written out a second time; who is poisoned, and how."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tensors import seeded
from torch import nn

from rnp_mlflow import attacks, config
from rnp_mlflow.attacks import NAMES, adaptive_blend, input_aware, label_consistent, poison, registry, train, trojannn
from rnp_mlflow.attacks.trigger import AttackContext, BlendTrigger, PoisoningAttack
from rnp_mlflow.core.evaluate import accuracy, predict
from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.errors import ConfigError


def small_net(channels: int = 3, classes: int = 4) -> nn.Sequential:
    """A quick convolutional classifier that takes float pixels."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, classes)).eval()


def no_surrogate() -> nn.Module:
    raise AssertionError("this attack needs no surrogate")


def attack_context(
    side: int = 32, count: int = 80, surrogate: bool = False, seed: int = 0, width: int | None = None
) -> AttackContext:
    images = torch.randint(256, (count, 3, side, width or side), dtype=torch.uint8, generator=seeded(seed))
    clean = ImageSet(images, torch.arange(count) % 4)
    return AttackContext(clean, 1, seeded(seed), small_net if surrogate else no_surrogate)


def planted(name: str, **given: int) -> PoisoningAttack:
    needs = name in ("label_consistent", "input_aware", "trojannn")
    return registry.find_entry(name).build(attack_context(surrogate=needs, **given))


def test_the_interface_names_every_attack() -> None:
    files = {file.stem for file in Path(attacks.__file__).parent.glob("*.py") if "ENTRY = " in file.read_text()}
    assert files == set(NAMES)
    assert all(name in str(config.Attack.model_fields["attack"].description) for name in NAMES)


@pytest.mark.parametrize("width", [32, 20])
@pytest.mark.parametrize("name", NAMES)
def test_a_trigger_is_pure_seeded_and_survives_storage(name: str, width: int) -> None:
    trigger, images = planted(name, width=width).trigger, attack_context(seed=7, width=width).clean.images
    before = images.clone()
    out = trigger(images)
    assert torch.equal(images, before)
    assert out.dtype == torch.uint8
    assert out.shape == images.shape
    assert not torch.equal(out, images)
    assert torch.equal(trigger(images[3:4]), out[3:4])  # an image's trigger does not depend on its neighbours
    assert torch.equal(planted(name, width=width).trigger(images), out)
    again = registry.restore(name, {key: value.clone() for key, value in vars(trigger).items()})
    assert torch.equal(again(images), out)


def test_a_stored_trigger_of_another_attack_is_refused() -> None:
    with pytest.raises(ConfigError, match="stored trigger"):
        registry.restore("wanet", vars(planted("badnets").trigger))
    with pytest.raises(ConfigError, match="unknown attack 'badnet'"):
        registry.find_entry("badnet")


def test_badnets_is_a_white_patch_and_nothing_else() -> None:
    images = torch.randint(200, (5, 3, 32, 32), dtype=torch.uint8, generator=seeded())
    out = planted("badnets").trigger(images)
    changed = (out != images).any(0).any(0)
    rows, cols = changed.nonzero().T
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (28, 30, 28, 30)
    assert out[:, :, 28:31, 28:31].eq(255).all()


def test_blended_mixes_a_fifth_of_the_pattern_in() -> None:
    images = attack_context(seed=5).clean.images
    trigger = planted("blended").trigger
    assert isinstance(trigger, BlendTrigger)
    want = np.rint(0.8 * images.numpy() + 0.2 * trigger.pattern.numpy())
    assert np.abs(trigger(images).numpy() - want).max() <= 1  # float32 against float64 at .5
    other = planted("blended", seed=4).trigger
    assert isinstance(other, BlendTrigger)
    assert not torch.equal(trigger.pattern, other.pattern)


def test_sig_adds_a_sinusoid_along_the_columns() -> None:
    grey = torch.full((2, 3, 32, 32), 128, dtype=torch.uint8)
    out = planted("sig").trigger(grey)
    for column in range(32):
        want = round(128 + 40 * math.sin(2 * math.pi * column * 6 / 32))
        assert (out[..., column].int() - want).abs().max() <= 1
    assert planted("sig").trigger(torch.full_like(grey, 250)).max() == 255


def test_wanet_reads_each_pixel_bilinearly_where_its_grid_says() -> None:
    made, images = planted("wanet"), attack_context(seed=2, count=2).clean.images
    out, grid = made.trigger(images), vars(made.trigger)["grid"].double()
    x, y = (grid[..., 0] + 1) / 2 * 31, (grid[..., 1] + 1) / 2 * 31  # in pixels
    picture = images.double()
    for row, column in [(0, 0), (5, 9), (16, 16), (20, 3), (31, 31)]:
        left, top = int(x[row, column]), int(y[row, column])
        right, low = min(left + 1, 31), min(top + 1, 31)
        a, b = x[row, column] - left, y[row, column] - top
        want = (1 - b) * ((1 - a) * picture[..., top, left] + a * picture[..., top, right])
        want = want + b * ((1 - a) * picture[..., low, left] + a * picture[..., low, right])
        assert (out[..., row, column] - want).abs().max() <= 0.51
    identity = torch.linspace(-1, 1, 32).double()
    moved = torch.stack([grid[..., 0] - identity[None, :], grid[..., 1] - identity[:, None]]) * 32 / 0.5
    assert 0.2 < moved.abs().mean() < 1.2  # a field of mean size 1 on its control points, in units of s / height
    assert made.cover is not None
    noisy = made.cover(images, seeded())
    assert not torch.equal(noisy, out)
    assert not torch.equal(noisy, made.cover(images, seeded(1)))


def floyd_steinberg(picture: np.ndarray, levels: int) -> np.ndarray:
    """The textbook loop over one grey image."""
    work, unit = picture.astype(np.float64), 255 / (levels - 1)
    height, width = work.shape
    for i in range(height):
        for j in range(width):
            old = work[i, j]
            work[i, j] = min(max(round(old / unit), 0), levels - 1) * unit
            for di, dj, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                if i + di < height and 0 <= j + dj < width:
                    work[i + di, j + dj] += (old - work[i, j]) * share / 16
    return work


def test_bpp_is_floyd_and_steinbergs_dithering_to_eight_levels() -> None:
    made, images = planted("bpp"), attack_context(side=12, count=3, seed=1).clean.images
    out = made.trigger(images)
    assert len(out.unique()) == 8
    for n in range(3):
        for channel in range(3):
            want = floyd_steinberg(images[n, channel].numpy(), 8)
            close = np.abs(out[n, channel].numpy() - want) <= 1
            assert close.mean() > 0.97  # float32 and float64 part ways at a tie, and the error then spreads
    assert made.cover is not None
    other = images[torch.randperm(3, generator=seeded())]
    wanted = (images.int() + made.trigger(other).int() - other.int()).clamp(0, 255)
    assert torch.equal(made.cover(images, seeded()).int(), wanted)


def test_label_consistent_makes_its_images_harder_within_the_bound_and_patches_the_corners() -> None:
    given = attack_context(surrogate=True, count=64)
    net = small_net()
    train.train(
        net, given.clean, Preprocess((0.0,) * 3, (1 / 255,) * 3), seeded(), train.TrainParams(8, lr=0.05, batch_size=16)
    )
    net.eval().requires_grad_(False)
    own = given.clean.images[given.clean.labels == 1]
    hard = label_consistent.perturb(net, own, 1, seeded())
    assert (hard.int() - own.int()).abs().max() <= 17  # ε and the rounding
    loss = [nn.functional.cross_entropy(net(x.float()), torch.ones(len(own)).long()) for x in (own, hard)]
    assert loss[1] > loss[0]
    made = label_consistent.build(given)
    assert made.poison is not None
    out = made.poison(own, seeded())
    board = torch.tensor([[255, 0, 255], [0, 255, 0], [255, 0, 255]])
    for rows in (slice(0, 3), slice(29, 32)):
        for columns in (slice(0, 3), slice(29, 32)):
            assert (out[:, :, rows, columns] == board).all()
            assert (made.trigger(own)[:, :, rows, columns] == board).all()
    assert torch.equal(made.trigger(own)[:, :, 3:29], own[:, :, 3:29])


def test_trojannns_patch_excites_the_best_connected_neuron() -> None:
    given = attack_context(surrogate=True)
    net = small_net()
    last = trojannn.last_linear(net)
    neuron = int(last.weight.abs().sum(0).argmax())
    trigger = trojannn.build(given).trigger
    assert isinstance(trigger, BlendTrigger)
    assert trigger.opacity.sum() == 64
    noise = torch.randint(256, trigger.pattern.shape, dtype=torch.uint8, generator=seeded(9))
    features = nn.Sequential(*list(net)[:-1])
    with torch.no_grad():
        mean = [
            features(t(given.clean.images).float())[:, neuron].mean()
            for t in (trigger, BlendTrigger(noise, trigger.opacity))
        ]
    assert mean[0] > mean[1]


def test_adaptive_blend_trains_on_half_the_pieces_and_tests_on_all() -> None:
    images = attack_context(seed=3).clean.images
    made = planted("adaptive_blend")
    where = adaptive_blend.random_pieces(images, seeded())
    assert where.shape == (len(images), 1, 32, 32)
    assert (where.sum((1, 2, 3)) == 512).all()
    pieces = where.view(len(images), 4, 8, 4, 8)
    assert torch.equal(pieces.amin((2, 4)), pieces.amax((2, 4)))  # whole pieces
    assert len(where.flatten(1).unique(dim=0)) > 70  # an image's own draw
    assert made.poison is not None
    changed = (made.poison(images, seeded()).int() - images.int()).abs()
    assert changed[(where == 0).expand_as(changed)].max() == 0
    assert (made.trigger(images).int() - images.int()).abs().float().mean() > changed.float().mean() * 2


def test_input_aware_gives_each_image_its_own_trigger_and_crosses_them_for_covers() -> None:
    made, images = planted("input_aware"), attack_context(seed=3).clean.images
    assert isinstance(made.trigger, input_aware.GeneratedTrigger)
    out = made.trigger(images)
    changed = (out != images).any(1).flatten(1).float().mean(1)
    assert changed.max() <= 0.033  # the paper's density, 0.032
    assert changed.min() > 0.02
    where = torch.randn(2, 1, 4, 8, generator=seeded())
    mixed = input_aware.apply_trigger(torch.zeros(2, 3, 4, 8), where, torch.full((2, 3, 4, 8), 99.0))
    assert torch.equal(mixed > 254, (where == where.amax((2, 3), keepdim=True)).expand_as(mixed))  # 1 of 32 pixels
    assert made.cover is not None
    covers = made.cover(images, seeded())
    source = torch.randperm(len(images), generator=seeded())
    assert torch.equal((covers != images).any(1) & (out[source] != images[source]).any(1), (covers != images).any(1))
    state = torch.random.get_rng_state()
    made.trigger(images)
    assert torch.equal(torch.random.get_rng_state(), state)


def classes_of_eight(count: int = 200) -> ImageSet:
    images = torch.randint(200, (count, 1, 8, 8), dtype=torch.uint8, generator=seeded())
    return ImageSet(images, torch.arange(count) % 4)


def make_plan(name: str, rate: float = 0.1, target: int = 2, mode: str = "all_to_one") -> poison.PoisonPlan:
    return poison.plan(classes_of_eight().labels, registry.find_entry(name), target, mode, rate, generator=seeded())


def test_poison_plan_and_what_follows_from_it() -> None:
    clean = classes_of_eight()
    plan = make_plan("badnets")
    assert len(plan.indices) == 20
    assert (clean.labels[plan.indices] != 2).all()
    made = registry.find_entry("badnets").build(AttackContext(clean, 2, seeded(), no_surrogate))
    bad = poison.poison_training_set(clean, plan, made, seeded())
    touched = (bad.images != clean.images).flatten(1).any(1).nonzero().flatten()
    assert torch.equal(touched, plan.indices)
    assert (bad.labels[plan.indices] == 2).all()
    assert torch.equal(clean.labels, torch.arange(200) % 4)
    test = poison.with_trigger(clean, 4, 2, "all_to_one", made.trigger)
    assert len(test.images) == 150
    assert (test.true_labels != 2).all()
    assert (test.target_labels == 2).all()


def test_all_to_all_leads_each_class_to_the_next() -> None:
    clean, plan = classes_of_eight(), make_plan("badnets", mode="all_to_all")
    assert torch.equal(plan.labels, (clean.labels[plan.indices] + 1) % 4)
    assert set(clean.labels[plan.indices].tolist()) == {0, 1, 2, 3}
    made = registry.find_entry("badnets").build(AttackContext(clean, 2, seeded(), no_surrogate))
    test = poison.with_trigger(clean, 4, 2, "all_to_all", made.trigger)
    assert len(test.images) == 200
    assert torch.equal(test.target_labels, (test.true_labels + 1) % 4)


def test_clean_label_attacks_touch_the_target_class_alone_and_no_label() -> None:
    plan = make_plan("sig")
    assert (plan.indices % 4 == 2).all()
    assert (plan.labels == 2).all()
    assert len(make_plan("sig", rate=0.9).indices) == 50  # all there are
    for name in ("sig", "input_aware"):
        with pytest.raises(ConfigError, match="leads to one class"):
            make_plan(name, mode="all_to_all")


def test_covers_are_altered_and_keep_their_label() -> None:
    clean, plan = classes_of_eight(), make_plan("wanet")
    assert len(plan.covers) == 40
    assert not torch.isin(plan.covers, plan.indices).any()
    made = registry.find_entry("wanet").build(AttackContext(clean, 2, seeded(), no_surrogate))
    bad = poison.poison_training_set(clean, plan, made, seeded())
    assert torch.equal(bad.labels[plan.covers], clean.labels[plan.covers])
    assert (bad.images[plan.covers] != clean.images[plan.covers]).flatten(1).any(1).all()
    rest = torch.ones(200, dtype=torch.bool)
    rest[plan.covers] = rest[plan.indices] = False
    assert torch.equal(bad.images[rest], clean.images[rest])


@pytest.mark.parametrize(
    ("name", "rate", "target", "message"),
    [
        ("badnets", 0.1, 4, "target=4"),
        ("badnets", 0.8, 2, r"at most 0\.75"),
        ("wanet", 0.4, 2, r"at most 0\.33"),
        ("badnets", 0.001, 2, r"is less than one; give at least 0\.005"),
    ],
)
def test_an_impossible_plan_says_what_is_possible(name: str, rate: float, target: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(name, rate, target)


def test_training_plants_a_trigger() -> None:
    clean = ImageSet(
        (torch.arange(64) % 4 * 60).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).to(torch.uint8), torch.arange(64) % 4
    )
    made = registry.find_entry("badnets").build(AttackContext(clean, 1, seeded(), no_surrogate))
    plan = poison.plan(clean.labels, registry.find_entry("badnets"), 1, "all_to_one", 0.25, generator=seeded())
    net, feed = small_net(), Preprocess((0.5,) * 3, (0.5,) * 3)
    train.train(
        net,
        poison.poison_training_set(clean, plan, made, seeded()),
        feed,
        seeded(),
        train.TrainParams(60, lr=0.05, batch_size=16),
    )
    bad = poison.with_trigger(clean, 4, 1, "all_to_one", made.trigger)
    assert accuracy(predict(net, clean.images, feed), clean.labels) > 0.9
    assert accuracy(predict(net, bad.images, feed), bad.target_labels) > 0.9
