"""docs/models.md says which forms of model are taken: every row of its tables is made and tried with `import`."""

import re
from collections.abc import Iterator
from pathlib import Path

import checkpoint_files
import numpy as np
import outside_files as files
import pytest
import torch
from stores import enter, newest
from torch import nn

from rnp_mlflow import loading
from rnp_mlflow.cli import main
from rnp_mlflow.config import Import
from rnp_mlflow.core.evaluate import ahead
from rnp_mlflow.errors import ModelError
from rnp_mlflow.models import store
from rnp_mlflow.models.fit import candidates, count_channels
from rnp_mlflow.models.registry import build
from rnp_mlflow.steps import importing, model_source, subject

pytestmark = pytest.mark.slow

DOC = Path(__file__).parents[1] / "docs" / "models.md"
ROWS = dict(re.findall(r"^\| (.+?) \| (yes|no) \| .+ \|$", DOC.read_text(), re.M))


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    files.clean_npz(folder / "clean.npz")
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        yield folder


def test_every_line_of_the_tables_is_a_row_and_every_row_has_a_maker() -> None:
    lines = [line for line in DOC.read_text().splitlines() if line.startswith("| ")]
    headings = [line for line in lines if "| taken | what" in line]
    assert len(lines) - len(headings) == len(ROWS)
    assert set(ROWS) == set(checkpoint_files.MAKERS)
    assert {form for form, taken in ROWS.items() if taken == "no"} == set(checkpoint_files.SAID)


@pytest.mark.parametrize("form", ROWS)
def test_a_form_is_taken_as_the_table_says(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in checkpoint_files.MAKERS[form](tmp_path):
        capsys.readouterr()
        code = main(["import", "--threads=1", *arguments])
        told = capsys.readouterr()
        errors = [line for line in told.err.splitlines() if line.startswith("error: ")]
        if ROWS[form] == "no":
            assert code == 2, arguments
            assert len(errors) == 1, told.err
            assert re.search(checkpoint_files.SAID[form], errors[0]), errors[0]
            for word in ("weights_only", "PyTorch 2.6", "add_safe_globals", "defect"):
                assert word not in errors[0]
            continue
        assert code == 0, told.err
        run = newest("import")
        assert run.data.metrics["acc"] == 1.0, (arguments, told.err)


def take(**given: str) -> tuple[nn.Module, store.ModelSpec]:
    """What `import` makes of these parameters, without a run."""
    settings = Import.model_validate(given)
    found = model_source.read_source(settings)
    fits = importing.fitting(settings, found)
    source = model_source.data_source(settings, found, False, fits[0].channels)
    return importing.suspect_model(settings, found, fits, subject.load_data(source)[0])


def test_a_model_of_one_channel_gets_images_of_one_channel(tmp_path: Path) -> None:
    _, spec = taken_by(checkpoint_files.one_channel(tmp_path)[0])
    assert spec.input_shape == (1, 16, 16)


def taken_by(arguments: list[str]) -> tuple[nn.Module, store.ModelSpec]:
    return take(**dict(each.removeprefix("--").split("=", 1) for each in arguments))


def test_the_log_says_which_weights_were_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for form, words in (
        ("`netC` (WaNet, input-aware)", r"weights under 'netC' are read, not 'netG', 'netM'"),
        ("weights beside averaged ones (`model_ema`)", r"weights under 'model' are read, not 'model_ema'"),
        ("averaged weights alone (`state_dict_ema`)", r"averaged \(EMA\) weights under 'state_dict_ema' are read"),
        ("`torch.optim.swa_utils.AveragedModel`", r"the average of .* models \(torch.optim.swa_utils\)"),
        ("a normalisation layer inside the model", r"normalises its images itself \(0.mean, 0.std\)"),
        ("`defense_result.pt` as `attack_result`", r"lists no triggered images"),
    ):
        caplog.clear()
        taken_by(checkpoint_files.MAKERS[form](tmp_path)[0])
        assert re.search(words, caplog.text), form


def test_a_normalisation_layer_gives_mean_and_std_on_either_scale(tmp_path: Path) -> None:
    for arguments in checkpoint_files.norm_inside(tmp_path):
        _, spec = taken_by(arguments)
        assert spec.mean == pytest.approx(files.MEAN, abs=1e-6)
        assert spec.std == pytest.approx(files.STD, abs=1e-6)
    weights = {"0.mean": torch.tensor([0.5]), "0.std": torch.tensor([0.25]), "1.a.w": torch.zeros(1)}
    left, norm = loading.take_own_norm(weights | {"1.b.w": torch.zeros(1)})
    assert list(left) == ["a.w", "b.w"]
    assert norm is not None
    assert norm.per_channel(3) == loading.OwnNorm((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    with pytest.raises(ModelError, match="2 values"):
        loading.OwnNorm((0.5, 0.5), (0.5, 0.5)).per_channel(3)


def test_candidates_are_told_apart_by_images_and_a_full_name_is_not_doubted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, ours = checkpoint_files.told_apart(tmp_path)
    for arguments, name in ((theirs, "torchvision/mobilenet_v2"), (ours, "mobilenet_v2")):
        assert taken_by(arguments)[1].architecture == name
        told = capsys.readouterr().err
        assert re.search(r"small/mobilenet_v2 \(ACC [\d.]+\)", told)
        assert re.search(r"torchvision/mobilenet_v2 \(ACC [\d.]+\)", told)
    for wanted in ("torchvision/mobilenet_v2", "small/mobilenet_v2"):
        arguments = [a for a in theirs if not a.startswith("--model=")] + [f"--model={wanted}"]
        assert taken_by(arguments)[1].architecture == wanted.removeprefix("small/")
        assert capsys.readouterr().err == ""
    [arguments] = checkpoint_files.not_told_apart(tmp_path)
    with pytest.raises(ModelError, match=r"give model=\S+mobilenet_v2 or model=\S+mobilenet_v2"):
        taken_by(arguments)


def test_ahead_is_two_standard_errors_of_the_paired_difference() -> None:
    def answers(b: int, c: int) -> tuple[torch.Tensor, torch.Tensor]:
        both = [True] * 20
        first, second = both + [True] * b + [False] * c, both + [False] * b + [True] * c
        return torch.tensor(first), torch.tensor(second)

    for b, c in ((5, 0), (4, 0), (20, 9), (20, 8), (0, 0), (0, 9)):
        # (b - c)² > 4 (b + c), as whole numbers
        assert ahead(*answers(b, c)) is (b > c and (b - c) ** 2 > 4 * (b + c)), (b, c)


def test_the_stem_of_a_cifar_resnet_is_found_with_and_without_max_pool(tmp_path: Path) -> None:
    for name in ("resnet18_cifar", "resnet18_cifar_maxpool"):
        model, images, labels = checkpoint_files.tuned(name)
        torch.save(model.state_dict(), tmp_path / "w.pt")
        np.savez(tmp_path / f"{name}.npz", x=images, y=labels)
        known = {"data": str(tmp_path / f"{name}.npz"), "dataset": "cifar10", "checkpoint": str(tmp_path / "w.pt")}
        assert take(model="resnet18", **known)[1].architecture == name
        assert take(model=name, **known)[1].architecture == name


def test_a_stem_of_three_is_torchvisions_resnet_patched_by_hand() -> None:
    from torchvision import models

    for name, depth in (("resnet18_cifar", 18), ("resnet34_cifar_maxpool", 34), ("resnet50_cifar", 50)):
        patched = models.get_model(f"resnet{depth}", weights=None, num_classes=5)
        patched.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        if not name.endswith("maxpool"):
            patched.maxpool = nn.Identity()
        ours = build(name, 5, 3)
        ours.load_state_dict(patched.state_dict())
        images = torch.randn(2, 3, 16, 16)
        assert torch.equal(ours.eval()(images), patched.eval()(images))


def test_resnet20_has_the_papers_sizes_and_shortcuts_without_weights() -> None:
    """Table 6 of He et al. (CVPR 2016): 0.27, 0.46, 0.66, 0.85 and 1.7 million parameters."""
    for depth, millions in ((20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)):
        model = build(f"resnet{depth}", 10, 3)
        count = sum(value.numel() for value in model.parameters())
        assert count / 1e6 == pytest.approx(millions, rel=0.03)
        assert sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in model.modules()) == depth
        assert not any("shortcut" in key for key in model.state_dict())
    block = build("resnet20", 10, 3).get_submodule("layer2.0").eval()
    nn.init.zeros_(block.get_parameter("bn2.weight"))  # the shortcut alone is left
    image = torch.rand(1, 16, 4, 4)
    out = block(image)
    assert torch.equal(out[:, 8:24], image[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_channels_are_read_from_the_first_convolution() -> None:
    for name in ("preactresnet18", "torchvision/resnet18", "densenet121"):
        for channels in (1, 3):
            weights = dict(build(name, 4, channels).state_dict())
            assert count_channels(name, weights) == channels
            assert [each.channels for each in candidates(name, weights)] == [channels]


def test_old_densenet_keys_are_renamed_as_torchvision_does() -> None:
    weights = dict(build("densenet121", 4, 3).state_dict())
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): value for key, value in weights.items()}
    assert old.keys() != weights.keys()
    assert loading.strip_prefixes(old).keys() == weights.keys()


def test_a_regnet_fits_though_its_builder_computes() -> None:
    assert candidates("regnet_x_400mf", dict(build("regnet_x_400mf", 4, 3).state_dict()))


def test_a_failed_fit_names_the_nearest_architecture_and_three_differences() -> None:
    from torchvision import models

    weights = dict(models.get_model("resnet34", weights=None, num_classes=4).state_dict())
    changed = {k: v for k, v in weights.items() if not k.startswith("layer1.0.bn1")}
    with pytest.raises(ModelError) as failed:
        candidates("preactresnet18", changed)
    assert "nearest is torchvision/resnet34 (" in str(failed.value)
    assert str(failed.value).count("layer1.0.bn1.") == 3
    with pytest.raises(ModelError, match=r"they fit torchvision/resnet34: give model=torchvision/resnet34"):
        candidates("preactresnet18", weights)
    patched = dict(build("resnet18_cifar", 4, 3).state_dict())
    with pytest.raises(
        ModelError, match="they fit resnet18_cifar and resnet18_cifar_maxpool: give model=resnet18_cifar or"
    ):
        candidates("torchvision/resnet18", patched)
