"""Files that are something else, or hold more than one net: one line that says what they are and what to do."""

import re
from pathlib import Path
from typing import Any

import outside_files as files
import pytest
import torch
from torch import Tensor

from rnp_mlflow import loading
from rnp_mlflow.errors import ModelError
from rnp_mlflow.interop import backdoorbench
from rnp_mlflow.models.fit import candidates
from rnp_mlflow.models.skeleton import skeleton
from rnp_mlflow.steps import model_source

LEAKS = r"weights_only|PyTorch 2\.6|legacy|pop from|[Uu]nsupported operand|[Uu]npickler|add_safe_globals|trusted source"
FOREIGN = {
    "zeros": (bytes(2000), "holds only zero bytes .*fetch it again"),
    "text": (b"Repository not found", r"is plain text.*\('Repository not found'\).*fetch the file itself"),
    "json": (b'{"error": "Invalid username or password."}', r"is JSON.*Invalid username.*fetch the file itself"),
    "xml": (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "is an XML document.*AccessDenied"),
    "xml alone": (b"<Error><Code>NoSuchKey</Code></Error>", "is an XML document"),
    "xhtml": (b'<?xml version="1.0"?><html xmlns="x"><body/></html>', r"is a web page \(HTML\)"),
    "msgpack": (b"\x82\xa6params\x81\xa5conv1\xc4\x04" + bytes(9), "is a MessagePack file"),
    "mat": (
        b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\1IM" + bytes(90),
        r"is a MATLAB file \(\.mat\)",
    ),
    "python": (b'"""A net."""\nimport torch\n\n\nclass Net(torch.nn.Module):\n    pass\n', "is Python source"),
    "pickle of protocol 0": (b"(dp0\nVw\np1\nF1.0\ns.", "is a plain Python pickle"),
    "noise": (b"\xfa\x01\xc3\x9f" * 100, "is not a file of weights"),
    "two bytes": (b"\x81\x00", "is not a file of weights"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("name", ["w.pt", "w.tar"])
def test_a_foreign_file_is_one_line_in_our_words(kind: str, name: str, tmp_path: Path) -> None:
    content, said = FOREIGN[kind]
    (tmp_path / name).write_bytes(content)
    for read in (loading.read_weights, backdoorbench.read):
        with pytest.raises(ModelError, match=said) as refused:
            read(tmp_path / name)
        line = str(refused.value)
        assert line.startswith(str(tmp_path / name))
        assert "\n" not in line
        assert not re.search(LEAKS, line), line
        assert kind == "xhtml" or "web page" not in line


def test_a_damaged_torch_file_leaks_no_word_of_torch(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(50)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "w.pt").read_bytes()
    for count in (15, 20, 60, 200, len(whole) - 4):
        (tmp_path / "cut.pt").write_bytes(whole[:count])
        with pytest.raises(ModelError, match="it is damaged, or holds more than tensors and plain values") as refused:
            loading.read_weights(tmp_path / "cut.pt")
        assert not re.search(LEAKS, str(refused.value))
    (tmp_path / "junk.pt").write_bytes(whole[:15] + b"Repository not found")
    with pytest.raises(ModelError, match="it is damaged"):
        loading.read_weights(tmp_path / "junk.pt")


def weights(name: str = "preactresnet18", width: int | None = 4) -> dict[str, Tensor]:
    return dict(skeleton(name, 4, 3, width))


def test_one_key_beside_the_net_is_named() -> None:
    net = {f"net.{key}": value for key, value in weights().items()}
    for odd in ({"criterion.weight": torch.zeros(4)}, {"val_acc.tp": torch.zeros(4), "val_acc.fp": torch.zeros(4)}):
        for name in ("preactresnet18", None):
            with pytest.raises(ModelError) as refused:
                candidates(name, net | odd)
            line = str(refused.value)
            assert f"{len(net)} keys start with 'net.', these do not: {', '.join(map(repr, odd))}; save the net" in line
            assert "torch.save(model.net.state_dict(), FILE)" in line
            assert "\n" not in line
    deeper = {f"model.{key}": value for key, value in net.items()} | {"criterion.weight": torch.zeros(4)}
    with pytest.raises(ModelError, match=r"keys start with 'model\.net\.', these do not: 'criterion\.weight'"):
        candidates(None, deeper)


def test_a_prefix_of_the_architecture_itself_is_not_taken_for_a_wrapper() -> None:
    for name in ("mobilenet_v2", "densenet121", "torchvision/vgg19_bn"):
        full = dict(skeleton(name, 4, 3))
        assert candidates(name, full)
        del full[next(key for key in full if "features" in key and full[key].ndim == 1)]
        with pytest.raises(ModelError) as refused:
            candidates(name, full)
        assert "these do not" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"teacher": 0, "student": 0}, r"holds 2 state dicts, under \['teacher'\], \['student'\]: save the one"),
        (
            {"checkpoint": {"state_dict": 0, "epoch": 3}},
            r"holds a state dict under \['checkpoint'\]\['state_dict'\]: save",
        ),
        ({"my_net": 0, "epoch": 3}, r"torch\.save\(content\['my_net'\], FILE\)"),
    ],
)
def test_state_dicts_under_other_names_are_named(content: Any, said: str, tmp_path: Path) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(each) for key, each in value.items()}
        return {"w": torch.zeros(2)} if value == 0 else value

    torch.save(filled(content), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=said) as refused:
        loading.read_weights(tmp_path / "w.pt")
    assert "\n" not in str(refused.value)


def test_an_attack_result_of_another_architecture_names_the_nearest_and_three_differences(tmp_path: Path) -> None:
    torch.save({"model_name": "resnet18", "num_classes": 4, "model": files.suspect().state_dict()}, tmp_path / "a.pt")
    with pytest.raises(ModelError, match=r"no fc\.weight with a row a class; they fit preactresnet18") as refused:
        model_source.from_attack_result(tmp_path / "a.pt")
    assert "\n" not in str(refused.value)
    changed = {k: v for k, v in files.suspect().state_dict().items() if not k.startswith("layer1.0.bn1")}
    torch.save({"model_name": "resnet18", "num_classes": 4, "model": changed}, tmp_path / "a.pt")
    with pytest.raises(ModelError, match=r"nearest is preactresnet18 \(") as refused:
        model_source.from_attack_result(tmp_path / "a.pt")
    assert str(refused.value).count("layer1.0.bn1.") == 3


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.49, 0.48, 0.45), (4.05, 4.12, 3.83)), ((125.3, 123.0, 113.9), (0.247, 0.243, 0.261)), ((0.0,), (4.05,))],
)
def test_a_normalisation_of_two_scales_contradicts_itself(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    layer = {"0.mean": torch.tensor(mean), "0.std": torch.tensor(std), "1.w": torch.zeros(1)}
    with pytest.raises(ModelError, match=r"0\.mean .* and 0\.std .* contradict each other.*inverse") as refused:
        loading.take_own_norm(layer)
    assert "\n" not in str(refused.value)


def test_a_normalisation_of_one_scale_is_taken() -> None:
    for mean, std in ((0.5, 0.25), (127.5, 63.75), (0.0, 1.0), (0.0, 255.0)):
        _, norm = loading.take_own_norm({"mean": torch.tensor([mean]), "std": torch.tensor([std]), "w": torch.zeros(1)})
        assert norm == (loading.OwnNorm((0.5,), (0.25,)) if mean else loading.OwnNorm((0.0,), (1.0,)))
