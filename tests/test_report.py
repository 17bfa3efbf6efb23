"""Pictures show what was measured, are legible, and come out the same twice."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from pictured import CLASSES, Wrong, columns, shades, texts, xs, ys
from PIL import Image
from scipy.stats import binomtest
from torch import Tensor, nn

from rnp_mlflow.core.activation import trigger_change
from rnp_mlflow.core.evaluate import predict
from rnp_mlflow.core.proxy import ProxyTrigger
from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.data.triggered import Triggered, find_counterparts
from rnp_mlflow.report import style
from rnp_mlflow.report.activation import TriggerChange, draw_activation, layer_ranks
from rnp_mlflow.report.confusion import ClassAnswers, class_accuracy, confusion, draw_confusion
from rnp_mlflow.report.curve import Point, Sweep, draw_curve
from rnp_mlflow.report.intervals import wilson
from rnp_mlflow.report.layers import draw_layers
from rnp_mlflow.report.mask import draw_mask
from rnp_mlflow.report.phases import Phase, draw_phases
from rnp_mlflow.report.samples import LINE
from rnp_mlflow.report.style import LINES, MARKS, Caption, short
from rnp_mlflow.report.tradeoff import RunPoints, draw_tradeoff
from rnp_mlflow.steps import samples

CAPTION = Caption("resnet18_narrow of width 16", "my $data$", "badnets", 0.1, 0, "0123456789abcdef")
NAMES = ("threshold", "number", "pruned", "acc", "asr", "ra", "val_acc", "proxy_asr")
VALUES = (
    (None, None, 0, 0.98, 1.0, 0.0, 0.97, 0.9),
    (0.2, 20, 20, 0.97, 0.4, 0.5, 0.96, 0.1),
    (0.4, 40, 40, 0.9, 0.0, 0.8, 0.9, 0.0),
)
ROWS = [dict(zip(NAMES, values, strict=True)) for values in VALUES]
POINTS = [Point("chosen", 0.4, 40, True), Point("fixed", 0.7, 60, False), Point("oracle", 0.4, 40, False)]


def contrast(first: str, second: str = "#ffffff") -> float:
    """The contrast ratio of WCAG 2.2."""

    def luminance(colour: str) -> float:
        values = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_stand_out_from_white_and_no_curve_differs_by_colour_alone() -> None:
    assert contrast("#000000") == pytest.approx(21)
    for colour in (style.INK, style.MUTED, style.BLUE, style.RED, style.GREEN):
        assert contrast(colour) >= 3, colour
    for colour in (style.INK, style.MUTED):  # of text
        assert contrast(colour) >= 4.5, colour
    looks = [(line.marker, line.dash, line.hollow) for line in LINES.values()]
    assert len(set(looks)) == len(looks)
    assert len({(mark.marker, mark.dash) for mark in MARKS.values()}) == len(MARKS)


@pytest.mark.parametrize("count", [1, 7, 200, 10_000])
def test_an_interval_is_wilsons(count: int) -> None:
    for right in {0, 1, count // 3, count}:
        expected = binomtest(right, count).proportion_ci(method="wilson")
        assert wilson(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def pair(folder: Path, draw: Callable[[Path], None]) -> str:
    """Draw twice and check that both files come out the same; the texts of the SVG, one after the other."""
    for name in ("a.png", "b.png"):
        draw(folder / name)
    for suffix in (".png", ".svg"):
        assert (folder / f"a{suffix}").read_bytes() == (folder / f"b{suffix}").read_bytes()
    svg = (folder / "a.svg").read_text()
    assert "dc:date" not in svg
    return f">{'< >'.join(re.findall(r'<text[^>]*>([^<]+)</text>', svg))}<"


def sentence(svg_text: str) -> str:
    """The same texts as one line, as if none had been wrapped."""
    return svg_text.replace("< >", " ")


def test_a_curve_shows_its_points_intervals_and_operating_points(tmp_path: Path, drawn: list[Figure]) -> None:
    sweep = Sweep(ROWS, "threshold", POINTS, {"acc": 500, "asr": 90}, note="repaired: ACC 0.990")
    text = pair(tmp_path, lambda file: draw_curve(file, sweep, CAPTION))
    for words in (
        "chosen: 40 neurons (pruned here)", "fixed: 60 neurons", "oracle (sees the trigger): 40 neurons", "my $data$",
        "badnets 10 %", "run\xa001234567", "n\xa0=\xa0500 clean, 90 triggered", "all 4 points",
        "pruned up to this mask value", "neurons pruned", "repaired: ACC 0.990",
    ):  # fmt: skip
        assert words in sentence(text), words
    ax = drawn[0].axes[0]
    curves = {line.get_label(): line for line in ax.lines}
    assert ys(curves["ACC"]) == [0.98, 0.97, 0.9]
    assert xs(curves["ACC"]) == pytest.approx([-0.012, 0.2, 0.4])
    bands = [np.asarray(band.get_paths()[0].vertices) for band in ax.collections]
    for (name, count), band in zip((("acc", 500), ("asr", 90)), bands, strict=True):
        for row, x in zip(ROWS, (-0.012, 0.2, 0.4), strict=True):
            own = band[abs(band[:, 0] - x) < 1e-9, 1]
            share = row[name]
            assert share is not None
            assert (own.min(), own.max()) == pytest.approx(wilson(share, count))
    symbols = {str(k): v for k, v in curves.items() if "neurons" in str(k)}
    places = {k.split()[0].rstrip(":"): (xs(v)[0], ys(v)[0]) for k, v in symbols.items()}
    assert {name: x for name, (x, _) in places.items()} == {"chosen": 0.4, "fixed": 0.7, "oracle": 0.4}
    assert places["chosen"][1] < places["oracle"][1], "stacked, because both are at 0.4"
    box, picture = drawn[0].legends[0].get_window_extent(), drawn[0].bbox
    assert picture.x0 <= box.x0 < box.x1 <= picture.x1
    assert Image.open(tmp_path / "a.png").width == round(3.3 * style.DPI)


def test_by_number_the_lower_axis_has_mask_values_and_an_unpruned_point_is_at_the_left(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    points = [Point("chosen", None, 0, True)]
    draw_curve(tmp_path / "c.png", Sweep(ROWS, "number", points, values=[0.11, 0.33]), CAPTION)
    found = texts(drawn[0])
    assert {"none", "0.11", "0.33", "highest mask value pruned"} <= set(found)
    assert not any("oracle" in word or "Wilson" in word for word in found)
    (chosen,) = (line for line in drawn[0].axes[0].lines if "chosen" in str(line.get_label()))
    assert xs(chosen)[0] == xs(drawn[0].axes[0].lines[0])[0]


def test_three_phases_stand_side_by_side_and_the_proxy_stands_in_for_asr(tmp_path: Path, drawn: list[Figure]) -> None:
    unlearned = [
        {"step": 0.0, "acc": 0.99, "asr": None, "proxy_asr": 0.9, "rule_accuracy": None},
        {"step": 1.0, "acc": None, "asr": None, "proxy_asr": None, "rule_accuracy": 0.7},
        {"step": 2.0, "acc": 0.1, "asr": None, "proxy_asr": 0.8, "rule_accuracy": 0.15},
    ]
    known = [row | {"asr": 1.0 - k / 2} for k, row in enumerate(unlearned)]
    for rows, own, other in ((unlearned, "proxy's success", "ASR"), (known, "ASR", "proxy's success")):
        pruned = [row | ({"asr": None} if own != "ASR" else {}) for row in ROWS]
        phases = [
            Phase("unlearning", "steps", "step", rows, {"acc": 200}, limit=0.2),
            Phase("recovery", "steps", "step", rows, {"acc": 200}),
            Phase("pruning", "mask value", "threshold", pruned, {"acc": 500}, points=POINTS),
        ]
        text = pair(tmp_path, lambda file, phases=phases: draw_phases(file, phases, CAPTION))  # type: ignore[misc]
        assert all(f">{phase.title}<" in text for phase in phases)
        assert f">{own}<" in text
        assert f">{other}<" not in text
        assert ("stands in for ASR" in sentence(text)) == (own != "ASR")
        lines = {line.get_label(): line for line in drawn[-1].axes[0].lines}
        assert ys(lines["seen by the stop rule"]) == [0.7, 0.15]
        assert xs(lines["ACC"]) == [0.0, 2.0]


def test_confusion_counts_and_holds_up_with_any_number_of_classes(tmp_path: Path, drawn: list[Figure]) -> None:
    truth, before, after = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 1, 2, 0]), torch.tensor([0, 0, 1, 2, 2])
    expected = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 1]])
    assert torch.equal(confusion(truth, before, 3), expected)
    assert class_accuracy(expected).tolist() == [0.5, 1.0, 0.5]
    assert math.isnan(class_accuracy(confusion(truth, after, 4))[3])
    for count in (3, 6, 25, 120):
        names = [f"a very long class name, as of ImageNet, ${k}$" for k in range(count)]
        answers = ClassAnswers(truth, before, after)
        text = pair(tmp_path, lambda file, a=answers, n=names: draw_confusion(file, a, n, CAPTION))  # type: ignore[misc]
        assert "n = 5 clean images" in sentence(text)
        assert ("before pruning: ACC 0.600" in text) == (count <= 100)
        assert ("no class lost accuracy" in sentence(text)) == (count > 100)
        numbers = [word for ax in drawn[-1].axes[:1] for word in (t.get_text() for t in ax.texts) if word.isdecimal()]
        assert sorted(numbers) == (5 * ["1"] if count <= 20 else [])


def test_layers_have_their_counts(tmp_path: Path, drawn: list[Figure]) -> None:
    layers = {"bn1": (5, 16), "layer1.0.bn1": (0, 32)}
    text = pair(tmp_path, lambda file: draw_layers(file, layers, CAPTION))
    assert all(word in sentence(text) for word in ("bn1", "5 of 16", "0 of 32", "5 of 48 neurons pruned"))
    assert [bar.get_width() for bar in drawn[0].axes[0].patches if isinstance(bar, Rectangle)] == [5 / 16, 0]
    many = {f"features.denseblock{k}.norm": (k % 2, 8) for k in range(121)}
    draw_layers(tmp_path / "many.png", many, CAPTION)
    assert "60 of 968 neurons pruned; not shown: 61 layers that lose none" in " ".join(texts(drawn[-1])).replace(
        "\n", " "
    )


def test_a_line_of_equal_der_has_that_der(tmp_path: Path, drawn: list[Figure]) -> None:
    """BackdoorBench's formula, for two points on each line."""
    first = RunPoints("first", [(0.9, 0.96), (0.88, 0.5), (0.7, 0.0)], {"chosen": (0.7, 0.0)})
    second = RunPoints("second", [(0.8, 0.9), (0.81, 0.1)])
    text = pair(tmp_path, lambda file: draw_tradeoff(file, [first, second], "two runs"))
    assert ">first<" in text
    assert ">second<" in text
    ax = drawn[0].axes[0]
    runs = {line.get_label(): line for line in ax.lines}
    assert xs(runs["first"]) == pytest.approx([0, 0.02, 0.2])
    assert ys(runs["second"]) == [0.9, 0.1]
    lines = [line for line in ax.lines if len(xs(line)) == 3 and line.get_linewidth() == 0.5]
    asr_before, found = 0.93, []
    for line in lines:
        ders = [(max(0, asr_before - asr) + 1 - max(0, lost)) / 2 for lost, asr in zip(xs(line), ys(line), strict=True)]
        assert ders == pytest.approx(3 * [ders[0]])
        found.append(round(ders[0], 3))
    assert found == [0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]


class Net(nn.Module):
    """Two BatchNorm channels: the image itself, and its negative doubled."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(torch.cat([x, -2 * x], 1))
        return out.mean((2, 3))


def test_what_the_trigger_changes_is_the_mean_of_the_absolute_difference(tmp_path: Path, drawn: list[Figure]) -> None:
    clean = (torch.arange(3 * 16).view(3, 1, 4, 4) * 2).to(torch.uint8)
    bad = clean.clone()
    bad[:, 0, 0, 0] = 255
    net = Net().eval()
    found = trigger_change(net, clean, bad, Preprocess((0.0,), (1.0,)))
    mean = float((255 - clean[:, 0, 0, 0].double()).mean()) / 255 / 16
    scale = 1 / math.sqrt(1 + net.norm.eps)
    assert found["norm"].tolist() == pytest.approx([mean * scale, 2 * mean * scale], rel=1e-5)
    change = {"a": torch.tensor([0.1, 0.9, 0.5]), "b": torch.tensor([2.0, 2.0])}
    assert layer_ranks(change).tolist() == [0, 1, 0.5, 0.5, 0.5]
    mask = {"a": torch.tensor([1.0, 0.1, 0.6]), "b": torch.tensor([0.9, 0.8])}
    pruned = torch.tensor([False, True, False, False, False])
    text = pair(tmp_path, lambda file: draw_activation(file, TriggerChange(change, 3), mask, pruned, CAPTION))
    assert "mean rank of the pruned neurons 1.00" in sentence(text)
    (dot,) = (line for line in drawn[0].axes[0].lines if line.get_label() == "pruned")
    assert xs(dot) == pytest.approx([0.1])
    assert ys(dot) == [1.0]


def test_the_clean_image_behind_a_triggered_one_is_found_or_said_to_be_another() -> None:
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(256, (12, 3, 8, 8), generator=draws, dtype=torch.uint8)
    clean = ImageSet(images, torch.arange(12) % 3)
    bad = images[[4, 7, 1]].clone()
    bad[:, :, :2, :2] = 255
    target = torch.full((3,), 2)
    triggered = Triggered(bad, torch.tensor([1, 1, 1]), target)
    places, same = find_counterparts(triggered, clean, torch.tensor([0, 2]))
    assert (places.tolist(), same.tolist()) == ([4, 1], [True, True])
    others = Triggered(
        torch.randint(256, (3, 3, 8, 8), generator=draws, dtype=torch.uint8), triggered.true_labels, target
    )
    places, same = find_counterparts(others, clean, torch.arange(3))
    assert all(clean.labels[place] == 1 for place in places)
    assert not same.any()
    places, _ = find_counterparts(triggered, clean[torch.arange(0, 12, 3)], torch.arange(3))
    assert places.tolist() == [-1, -1, -1]


def asked(model: nn.Module) -> samples.Respondents:
    return samples.Respondents({"": model}, Preprocess((0.0,), (1.0,)), "fp32", CLASSES)


def name(label: int) -> str:
    """A class as a picture has it, in one line."""
    return short(CLASSES[label], LINE).replace("\n", " ")


def test_under_every_sample_stands_what_the_model_answers_to_it(tmp_path: Path, drawn: list[Figure]) -> None:
    """A model that is wrong of most clean images, and answers another class than the target to triggered ones."""
    test, model = shades(), Wrong()
    bad = test.images.clone()
    bad[:, 0, 0, 0] = 255
    bad[test.labels == 4, 0, 0, 0] = 0  # to this one it answers as without
    kept = test.labels != 0
    triggered = Triggered(bad[kept], test.labels[kept], torch.zeros(int(kept.sum()), dtype=torch.int64))
    draw = samples.draw_triggered
    draw(tmp_path / "s.png", triggered, test, asked(model), CAPTION)
    feed = Preprocess((0.0,), (1.0,))
    for k, column in enumerate(columns(drawn[-1], 5), start=1):
        clean, with_trigger = (int(predict(model, images[[k]], feed)) for images in (test.images, bad))
        assert column[:3] == [name(k), name(clean), name(with_trigger)]
    ticks = [ax.get_xlabel().endswith(" ✓") for ax in drawn[-1].axes[:5]]
    assert ticks == [int(predict(model, test.images[[k]], feed)) == k for k in range(1, 6)]
    assert not any("plane" in text for text in texts(drawn[-1])), "the target, which the model never answers"
    both = samples.Respondents({"before:": model, "after:": model}, feed, "fp32", CLASSES)
    draw(tmp_path / "b.png", triggered, test, both, CAPTION)
    assert drawn[-1].axes[1].get_xlabel().count("\n") >= 1
    assert drawn[-1].axes[1].get_xlabel().startswith("before:")
    draw(tmp_path / "b2.png", triggered, test, both, CAPTION)
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "b2.png").read_bytes()


def test_under_an_image_with_the_proxy_stands_what_the_suspect_answers_to_that(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    holdout, feed, model = shades(), Preprocess((0.0,), (1.0,)), Wrong()
    change = torch.full((1, 8, 8), 0.2)
    proxy = ProxyTrigger(4, change, torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    samples.draw_proxied(tmp_path / "p.png", holdout, proxy, asked(model), CAPTION)
    inputs = feed(holdout.images, None)
    plain, proxied = (model(x).argmax(1).tolist() for x in (inputs, (inputs + change).clamp(0, 1)))
    for k, column in zip((0, 1, 2, 3, 5), columns(drawn[-1], 5), strict=True):
        assert column == [name(k), name(plain[k]), name(proxied[k]), ""]
    assert plain != proxied
    assert 4 not in proxied
    samples.draw_proxied(tmp_path / "p.png", holdout, None, asked(model), CAPTION)
    assert [column[0] for column in columns(drawn[-1], 6)] == [name(k) for k in range(6)]


def test_a_class_name_is_cut_to_two_lines_and_keeps_both_ends() -> None:
    for word in (*CLASSES, "x" * 99, "word " * 20, "a-b-c-d-" * 6, "", " "):
        lines = short(word, LINE).split("\n")
        assert len(lines) <= 2
        assert all(len(line) <= LINE for line in lines)
        if len(word) <= LINE and word.strip():
            assert lines == [word]
    assert "lion" in short(CLASSES[3], LINE)
    assert "a class" in short(CLASSES[3], LINE)


def test_the_masks_picture_shows_beside_each_layers_name_where_its_values_lie(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    heights = []
    for layers in (1, 121):
        mask = {f"layer{k}": torch.tensor(3 * [0.9 * k / layers] + [1.0]) for k in range(layers)}
        draw_mask(tmp_path / "mask.png", mask, CAPTION)
        heights.append(Image.open(tmp_path / "mask.png").height)
        ax = drawn[-1].axes[0]
        drawing = ax.images[0].get_array()
        assert drawing is not None
        counts, (left, right, bottom, top) = np.ma.filled(drawing, 0), ax.images[0].get_extent()
        assert [label.get_text() for label in ax.get_yticklabels()] == list(mask)
        for tick, (layer, values) in zip(ax.get_yticks(), mask.items(), strict=True):
            row = counts[int((tick - top) / (bottom - top) * layers)]
            lies = left + (right - left) * (row.nonzero()[0] + 0.5) / len(row)
            assert row[row > 0].tolist() == [3, 1], layer
            assert lies == pytest.approx([float(values[0]), 1.0], abs=1 / len(row)), layer
    assert 120 * 18 < heights[1] - heights[0] < 120 * 30, "a row has room for its name, whatever the number of layers"


@pytest.mark.filterwarnings("error::UserWarning")
def test_long_names_of_layers_leave_room_and_stay_apart(tmp_path: Path, drawn: list[Figure]) -> None:
    """A vision transformer's; matplotlib warns if the axes have no room."""
    parts = ("self_attention.out_proj", "mlp.0")
    names = [f"encoder.layers.encoder_layer_{k}.{part}" for k in range(12) for part in parts]
    draw_mask(tmp_path / "mask.png", {name: torch.linspace(0, 1, 12) for name in names}, CAPTION)
    draw_layers(tmp_path / "layers.png", {name: (k, 30) for k, name in enumerate(names)}, CAPTION)
    for figure in drawn:
        labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert len(set(labels)) == len(names)
        assert labels[-2:] == ["…_11.self_attention.out_proj", "…yers.encoder_layer_11.mlp.0"]


def test_drawing_leaves_matplotlibs_settings_alone(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    draw_layers(tmp_path / "l.png", {"bn1": (1, 2)}, CAPTION)
    assert dict(matplotlib.rcParams) == before
