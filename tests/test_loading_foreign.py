"""A file that is something else is named by its first bytes, with what to do; torch's advice is never passed on."""

import re
import zipfile
from pathlib import Path

import numpy as np
import outside_files as files
import pytest
import torch
from checkpoint_files import MAKERS

from rnp_mlflow import loading
from rnp_mlflow.data import subset
from rnp_mlflow.errors import DataError, ModelError
from rnp_mlflow.interop import backdoorbench

SAID = {
    "git-lfs pointer": r"git-lfs pointer, not the file itself: run `git lfs pull`",
    "web page saved in its place": r"is a web page \(HTML\)",
    "HDF5 or Keras": r"Keras.*only PyTorch models are taken",
    "gzip, tar, zip": r"unpack it.* and give the file inside",
    "npz": r"numpy archive \(\.npz\), which holds images, not weights",
    "TorchScript": r"is a TorchScript archive.*contains code, which is never run here\. Load the original model",
    "plain pickle": r"is a plain Python pickle, which is never unpickled here",
    "whole pickled model (`torch.save(model)`)": r"would have to run \S+ to load \(a whole pickled model.*state_dict",
    "ONNX": r"is an ONNX graph",
    "empty or truncated file": r"is empty: the copy or download failed|is truncated or not a zip archive",
}


@pytest.mark.parametrize("form", SAID)
def test_a_foreign_file_is_named_and_what_to_do_is_said(form: str, tmp_path: Path) -> None:
    for arguments in MAKERS[form](tmp_path):
        file = Path(arguments[0].partition("=")[2])
        for read in (loading.read_weights, backdoorbench.read):
            with pytest.raises(ModelError, match=SAID[form]) as refused:
                read(file)
            line = str(refused.value)
            assert line.startswith(str(file))
            assert "\n" not in line
            assert "refused: its" not in line  # no bomb
            assert not re.search(r"weights_only|add_safe_globals|2\.6|arbitrary|file an issue", line)


def test_data_files_are_named_too(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    np.save(tmp_path / "c.npy", np.zeros(3))
    (tmp_path / "c.npy").rename(tmp_path / "c.npz")
    (tmp_path / "d.npz").write_bytes(b"<html></html>")
    for name, words in (("a", "torch file, which holds weights"), ("b", "git lfs pull"), ("c", "single numpy array"),
                        ("d", "web page")):  # fmt: skip
        with pytest.raises(DataError, match=words):
            loading.read_npz(tmp_path / f"{name}.npz")


def test_what_torch_cannot_read_is_one_line_without_its_advice(tmp_path: Path) -> None:
    """A class that is not safe to make, a module that is blocked, an operation that it does not know."""
    torch.save({"w": files.Call(torch.nn.Linear, (2, 2))}, tmp_path / "a.pt")
    torch.save({"w": torch.zeros(2).to_sparse()}, tmp_path / "b.pt")
    torch.save({"w": torch.zeros(2)}, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as old, zipfile.ZipFile(tmp_path / "c.pt", "w") as new:
        for name in old.namelist():  # an operation of protocol 4, which torch does not write
            new.writestr(name, b"\x80\x02\x95" + bytes(20) if name.endswith("data.pkl") else old.read(name))
    for name in ("a.pt", "b.pt", "c.pt"):
        with pytest.raises(ModelError) as refused:
            loading.read_weights(tmp_path / name)
        line = str(refused.value)
        assert "\n" not in line
        assert not re.search(r"weights_only|add_safe_globals|2\.6|arbitrary|file an issue|Check the doc", line), line


def test_objects_beside_the_weights_are_never_made(tmp_path: Path) -> None:
    """Text and object scalars stay without content; numbers are held to their bytes."""
    for number in (np.str_("abc"), np.datetime64("2020-01-01"), np.float32(1.5), np.bool_(True)):
        torch.save({"model": {"w": torch.zeros(1)}, "n": number}, tmp_path / "w.pt")
        found = loading.read_torch(tmp_path / "w.pt")["n"]
        assert found in (1.5, True) or type(found).__name__ == "Inert"
    torch.save({"model": {"w": torch.zeros(1)}, "a": np.arange(6, dtype=np.int16).reshape(2, 3)}, tmp_path / "w.pt")
    assert loading.read_torch(tmp_path / "w.pt")["a"].decode().tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("ratio", [0.1, 1.0])
def test_a_class_with_one_image_is_named_whatever_the_ratio(ratio: float) -> None:
    labels = torch.tensor([0] * 9 + [1] + [2] * 9)
    with pytest.raises(DataError, match=r"class 1 has 1 training images; each class needs at least two") as refused:
        subset.defence_indices(labels, ratio, torch.Generator().manual_seed(0))
    assert "give at least" not in str(refused.value)
