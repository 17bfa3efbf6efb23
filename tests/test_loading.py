"""Files from outside: what they hold is read, nothing in them runs, none is believed about its size."""

import shutil
from pathlib import Path

import numpy as np
import outside_files as files
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rnp_mlflow import loading
from rnp_mlflow.errors import DataError, ModelError
from rnp_mlflow.interop import backdoorbench
from rnp_mlflow.models.fit import count_classes, fit
from rnp_mlflow.models.served import Served


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("form", ["plain", "authors", "parallel", "legacy", "safetensors", "pt2"])
def test_every_form_of_weights_gives_the_same_state_dict(form: str, tmp_path: Path) -> None:
    model = files.network()
    weights, file = model.state_dict(), tmp_path / "w.pt"
    if form == "plain":
        torch.save(weights, file)
    elif form == "authors":
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        content = {
            "epoch": 3,
            "state_dict": weights,
            "clean_acc": 0.9,
            "bad_acc": 1.0,
            "optimizer": optimizer.state_dict(),
        }
        torch.save(content, file := tmp_path / "backdoor_model.tar")
    elif form == "parallel":
        torch.save({"model": {f"module.{k}": v for k, v in weights.items()}}, file)
    elif form == "legacy":
        torch.save(weights, file, _use_new_zipfile_serialization=False)
    elif form == "safetensors":
        save_file(weights, file := tmp_path / "w.safetensors")
    else:
        pixels = torch.zeros(2, 3, files.SIDE, files.SIDE, dtype=torch.uint8)
        program = torch.export.export(Served(model.eval(), files.spec()).eval(), (pixels,))
        torch.export.save(program, file := tmp_path / "w.pt2")
    found = loading.read_weights(file)
    assert same({k: found[k] for k in weights}, dict(weights))
    assert set(found) == set(weights)


def test_a_backdoorbench_result_is_read_whatever_numpy_wrote_it_and_wherever_its_images_were(tmp_path: Path) -> None:
    file = files.attack_result(tmp_path)
    for rewrite in (lambda f: None, files.as_numpy_1_wrote_it):
        rewrite(file)
        found = backdoorbench.read(file)
        assert (found.model_name, found.classes, found.image_size, found.dataset) == ("preactresnet18", 4, 8, "cifar10")
        assert same(found.weights, dict(files.suspect().state_dict()))
        assert found.poisoned.tolist() == [5, 9]
        bad = found.triggered
        assert bad is not None
        assert bad.images.shape == (18, 3, 8, 8)
        assert (bad.images[:, :, :2] == 255).all()
        assert bad.true_labels.tolist() == [k % 4 for k in range(24) if k % 4]
        assert (bad.target_labels == 0).all()


def test_an_image_path_of_a_result_leads_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not out of its folder, not to an absolute place; below the working folder it may."""
    secret = tmp_path / "secret" / "1" / "0.png"
    secret.parent.mkdir(parents=True)
    files.Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(secret)
    record = tmp_path / "record"
    record.mkdir()

    def result(path: str) -> Path:
        item = {"path": path, "other_info": [0, 1]}
        return files.attack_result(record, bd_test={"bd_data_container": {"data_dict": {0: item}}})

    with pytest.raises(ModelError, match="no place of a triggered image"):
        backdoorbench.read(result("../secret/1/0.png"))
    with pytest.raises(DataError, match="1 of 1 triggered images are missing"):
        backdoorbench.read(result(str(secret)))
    short = Path("/tmp", f"{tmp_path.name}.png")
    shutil.copy(secret, short)
    try:
        with pytest.raises(DataError, match="1 of 1 triggered images are missing"):
            backdoorbench.read(result(str(short)))
    finally:
        short.unlink()
    (record / "bd_test_dataset/1/99.png").symlink_to(secret)
    with pytest.raises(ModelError, match="leads out of"):
        backdoorbench.read(result("./x/bd_test_dataset/1/99.png"))
    monkeypatch.chdir(tmp_path)
    assert backdoorbench.read(result("./secret/1/0.png")).triggered is not None


def test_hostile_files_are_refused_and_do_nothing(tmp_path: Path) -> None:
    made = tmp_path / "made"
    found = files.hostile(tmp_path, made)
    for name in ("attack_result", "checkpoint", "legacy"):
        with pytest.raises(ModelError, match=r"refused: it would have to run posix\.mkdir.*save its weights alone"):
            loading.read_weights(found[name])
    with pytest.raises(ModelError, match="pickled"):
        loading.read_weights(found["pt2"])
    with pytest.raises(DataError, match="pickle"):
        loading.read_npz(found["npz"])
    torch.save(files.network(), tmp_path / "module.pt")
    with pytest.raises(ModelError, match=r"PreActBlock|SmallImageResNet"):
        loading.read_weights(tmp_path / "module.pt")
    assert not made.exists()


def test_numpy_objects_in_a_file_are_never_made(tmp_path: Path) -> None:
    """An object array over given bytes would be a pointer of the attacker's; so would other types be."""
    for arguments in (((1,), "O", b"ABCDEFGH"), ((1,), "i8", b"ABCDEFGH")):
        forged = files.Call(np.ndarray, arguments)
        file = files.attack_result(tmp_path, img_size=forged)
        with pytest.raises(ModelError):
            backdoorbench.read(file)
        torch.save(
            {"state_dict": {"w": torch.zeros(1)}, "epoch": files.Call(np.ndarray, (forged, "i8"))}, tmp_path / "w.pt"
        )
        with pytest.raises(ModelError):
            loading.read_weights(tmp_path / "w.pt")
    file = files.attack_result(tmp_path, bd_train={"poison_indicator": np.array([None, 1], dtype=object)})
    with pytest.raises(ModelError, match="no BackdoorBench attack result"):
        backdoorbench.read(file)


def test_ghostscript_is_not_started_for_an_image_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, program = tmp_path / "made", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {made}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    file = files.attack_result(tmp_path)
    for image in (tmp_path / "bd_test_dataset").rglob("*.png"):
        image.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match="not an image that can be read"):
        backdoorbench.read(file)
    assert not made.exists()


def test_what_a_file_declares_is_not_believed(tmp_path: Path) -> None:
    for declared in (2 * loading.GIB, 10**15):
        files.bomb_npz(tmp_path / "bomb.npz", declared)
        with pytest.raises(DataError, match=r"refused: its \d+ bytes declare"):
            loading.read_npz(tmp_path / "bomb.npz")
    files.lying_npz(tmp_path / "lying.npz")
    with pytest.raises(DataError, match="does not hold it"):
        loading.read_npz(tmp_path / "lying.npz")
    torch.save({"w": torch.zeros(4096)}, tmp_path / "w.pt")
    files.deflated(tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"refused: its [\d,]+ bytes declare"):
        loading.read_weights(tmp_path / "w.pt")
    with (tmp_path / "w.pt").open("ab") as stream:
        stream.write(b"PK\5\6")  # Python then finds no archive here; torch does
    with pytest.raises(ModelError, match=r"refused|whole archive"):
        loading.read_weights(tmp_path / "w.pt")
    shared = torch.zeros(100_000)
    torch.save({str(k): shared for k in range(100)}, tmp_path / "many.pt")
    with pytest.raises(ModelError, match="declare 40,000,000 of weights"):
        loading.read_weights(tmp_path / "many.pt")
    torch.save({"w": torch.zeros(1).expand(10**12)}, tmp_path / "wide.pt")
    with pytest.raises(ModelError, match="'w' is no plain tensor"):
        loading.read_weights(tmp_path / "wide.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.pt2", "w.npz"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_files_are_one_error_of_ours(name: str, share: float, tmp_path: Path) -> None:
    file, weights = tmp_path / name, dict(files.network().state_dict())
    if name == "w.npz":
        files.clean_npz(file)
    elif name == "w.safetensors":
        save_file(weights, file)
    else:
        torch.save(weights, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises((ModelError, DataError), match="w\\."):
        loading.read_npz(file) if name == "w.npz" else loading.read_weights(file)


@pytest.mark.parametrize("content", [{}, [], 3, {"a": 1}, {"state_dict": {}}, {"state_dict": {1: torch.zeros(1)}}])
def test_what_is_no_state_dict_says_so(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="state dict"):
        loading.read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("name", "width"),
    [("preactresnet18", 4), ("resnet50", 4), ("vgg19_bn", 8), ("mobilenet_v2", 8), ("densenet121", None)],
)
def test_classes_and_width_are_found_from_weights_in_any_order(name: str, width: int | None, tmp_path: Path) -> None:
    """A safetensors file keeps no order."""
    shape, classes = (3, 32, 32), tuple("abcd")
    save_file(files.ModelSpec(name, width, classes, shape, (), ()).build().state_dict(), tmp_path / "w.safetensors")
    weights = loading.read_weights(tmp_path / "w.safetensors")
    assert count_classes(name, weights) == 4
    _, spec = fit(name, weights, classes, shape, (), ())
    assert (spec.architecture, spec.width) == (name, width)


def test_torchvisions_namesake_is_found_from_its_keys() -> None:
    shape, classes = (3, 32, 32), tuple("abcd")
    weights = dict(files.ModelSpec("torchvision/resnet18", None, classes, shape, (), ()).build().state_dict())
    model, spec = fit("resnet18", weights, classes, shape, (), ())
    assert (spec.architecture, spec.width) == ("torchvision/resnet18", None)
    assert same(dict(model.state_dict()), weights)


def test_weights_that_do_not_fit_are_listed() -> None:
    weights = dict(files.network().state_dict())
    shape, names = (3, 8, 8), files.spec().classes

    def refused(changed: dict[str, Tensor], match: str, name: str = "preactresnet18") -> None:
        with pytest.raises(ModelError, match=match):
            fit(name, changed, names, shape, (), ())

    refused({k: v for k, v in weights.items() if k != "linear.bias"}, r"linear\.bias is missing")
    refused(weights | {"extra": torch.zeros(1)}, "'extra' is not the model's")
    refused(weights | {"linear.bias": torch.zeros(9)}, r"linear\.bias is \(9,\), not \(4,\)")
    refused(weights | {"linear.bias": torch.full((4,), torch.nan)}, "NaN")
    refused(weights | {"linear.bias": torch.full((4,), 1e300, dtype=torch.float64)}, "infinity")
    refused(weights | {"linear.bias": torch.zeros(4, dtype=torch.complex64)}, "complex64, not torch.float32")
    refused(weights | {"layer1.0.bn1.running_var": torch.full((4,), -1.0)}, "negative variance")
    refused(weights | {"conv1.weight": torch.zeros(2**40, 0, 3, 3)}, r"conv1\.weight")
    refused(weights, r"not resnet50's: .* more\)", "resnet50")
    refused(weights, "unknown model 'lenet'", "lenet")
    refused(weights | {"linear.weight": torch.zeros(0, 32)}, "no classifier")
    refused(weights | {"linear.weight": torch.zeros(7, 32)}, "7 classes, the images have 4")
