"""Files from outside: what they hold is read, nothing in them runs, none is believed about its size."""

import shutil
from pathlib import Path

import numpy as np
import outside_files as files
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tensors import same

from rnp_mlflow import loading
from rnp_mlflow.errors import DataError, ModelError
from rnp_mlflow.interop import backdoorbench
from rnp_mlflow.models.pixel_input import PixelInputModel


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
        program = torch.export.export(PixelInputModel(model.eval(), files.spec()).eval(), (pixels,))
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
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(secret)
    record = tmp_path / "record"
    record.mkdir()

    def result(path: str) -> Path:
        item = {"path": path, "other_info": [0, 1]}
        return files.attack_result(record, bd_test={"bd_data_container": {"data_dict": {0: item}}})

    with pytest.raises(ModelError, match="not a valid path of a triggered image"):
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
    with pytest.raises(ModelError, match="is outside"):
        backdoorbench.read(result("./x/bd_test_dataset/1/99.png"))
    monkeypatch.chdir(tmp_path)
    assert backdoorbench.read(result("./secret/1/0.png")).triggered is not None


def test_hostile_files_are_refused_and_do_nothing(tmp_path: Path) -> None:
    made = tmp_path / "made"
    found = files.hostile(tmp_path, made)
    for name in ("attack_result", "checkpoint", "legacy"):
        with pytest.raises(ModelError, match=r"refused: it would have to run posix\.mkdir.*save only its weights"):
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
    with pytest.raises(ModelError, match="is not a BackdoorBench attack result"):
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
    with pytest.raises(DataError, match="its content has another size"):
        loading.read_npz(tmp_path / "lying.npz")
    torch.save({"w": torch.zeros(4096)}, tmp_path / "w.pt")
    files.deflated(tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"refused: its [\d,]+ bytes declare"):
        loading.read_weights(tmp_path / "w.pt")
    with (tmp_path / "w.pt").open("ab") as stream:
        stream.write(b"PK\5\6")  # Python then finds no archive here; torch does
    with pytest.raises(ModelError, match=r"refused|not a zip archive"):
        loading.read_weights(tmp_path / "w.pt")
    shared = torch.zeros(100_000)
    torch.save({str(k): shared for k in range(100)}, tmp_path / "many.pt")
    with pytest.raises(ModelError, match="declare 40,000,000 bytes of weights"):
        loading.read_weights(tmp_path / "many.pt")
    torch.save({"w": torch.zeros(1).expand(10**12)}, tmp_path / "wide.pt")
    with pytest.raises(ModelError, match="'w' is not a plain tensor"):
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
