"""Data that contradict themselves or are half read: one line with the file and the cause, or one line of the log."""

from pathlib import Path
from typing import Any

import numpy as np
import outside_files as files
import pytest
import torch

from rnp_mlflow.config import Attack, Import, parse
from rnp_mlflow.data import npz, sources, subset
from rnp_mlflow.errors import ConfigError, DataError, ModelError
from rnp_mlflow.interop import backdoorbench
from rnp_mlflow.loading.stand_ins import Inert, SafeNdarray
from rnp_mlflow.loading.state import _accuracy

X, Y = np.zeros((4, 4, 4, 3), np.uint8), np.array([0, 1, 0, 1])


def archive(place: Path, **arrays: Any) -> Path:
    np.savez(place / "a.npz", **arrays)
    return place / "a.npz"


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": X, "y": Y, "x_test": X, "y_test": Y}, ["only x and y are read, left out x_test, y_test"]),
        ({"x_train": X, "y_train": Y, "names": Y}, ["only x_train and y_train are read, left out names"]),
        ({"x": X, "y": Y}, []),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y}, []),
        (
            {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y, "x_val": X, "y_val": Y},
            ["only x_train and y_train and x_test and y_test are read, left out x_val, y_val"],
        ),
    ],
)
def test_arrays_that_are_left_out_are_one_line_of_the_log(
    arrays: dict[str, np.ndarray], said: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = archive(tmp_path, **arrays)
    npz.read(file)
    assert caplog.messages == [f"{file}: {line}" for line in said]


@pytest.mark.parametrize("part", ["val", "valid", "validation"])
def test_the_validation_arrays_are_the_test_part(part: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = archive(tmp_path, x_train=X, y_train=Y, **{f"x_{part}": X[:2] + 7, f"y_{part}": Y[:2]})
    data = sources.load("npz", str(file))
    assert data.test is not None
    assert data.test.images.unique().tolist() == [7]
    assert caplog.messages == [f"{file}: x_{part} is the test part, because no x_test exists"]


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (np.array([0, 1, 0, 2**63], np.uint64), "but one is 9223372036854775808"),
        (np.array([0, 1, 0, 2**40]), "but one is 1099511627776"),
        (np.array([0, 1, 0, -1]), "but one is -1"),
        (np.eye(2, dtype=np.int64)[Y], r"not \(4, 2\): give y.argmax\(1\) if it is one-hot"),
        (Y.astype(float), r"not float64: give y.astype\(int\)"),
        (Y[:3], "4 images in x need as many labels, but y has 3"),
    ],
)
def test_labels_that_are_none_are_one_line_with_file_and_cause(y: np.ndarray, said: str, tmp_path: Path) -> None:
    file = archive(tmp_path, x=X, y=y)
    for read in (npz.read, npz.read_one):
        with pytest.raises(DataError, match=said) as refused:
            read(file)
        assert str(refused.value).startswith(f"{file}: ")
        assert "\n" not in str(refused.value)


def test_image_size_has_an_upper_bound() -> None:
    assert parse(Import, {"image_size": "4096"}).image_size == 4096
    for settings in (Import, Attack):
        with pytest.raises(ConfigError, match=r"^image_size=100000000: .*4096"):
            parse(settings, {"image_size": "100000000"})


@pytest.mark.parametrize("indicator", [[5, 9], [0.0, float("nan")], [-1, 0, 1], [[0, 1], [1, 0]], [0, 1], []])
def test_a_poison_indicator_of_another_kind_means_unknown(
    indicator: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    part = {"poison_indicator": indicator, "bd_data_container": {"data_dict": {5: {}, 9: {}}}}
    found = backdoorbench.read(files.attack_result(tmp_path, bd_train=part))
    assert found.poisoned.tolist() == []
    assert [m for m in caplog.messages if "poison_indicator is not one 0 or 1" in m]


def test_a_poison_indicator_is_read_whatever_its_type(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    marks = [k in (5, 9) for k in range(12)]
    for way in (marks, np.array(marks), np.array(marks, np.float32), torch.tensor(marks)):
        part: dict[str, object] = {"poison_indicator": way, "bd_data_container": {"data_dict": {5: {}, 9: {}}}}
        assert backdoorbench.read(files.attack_result(tmp_path, bd_train=part)).poisoned.tolist() == [5, 9]
    assert not caplog.messages


@pytest.mark.parametrize("other", [[0.5, 1], [float("nan"), 1], ["0", "1"], [0], np.array([0.0, 1.5])])
def test_labels_of_a_result_must_be_whole_numbers(other: Any, tmp_path: Path) -> None:
    items = {0: {"path": "./record/x/bd_test_dataset/1/0.png", "other_info": other}}
    file = files.attack_result(tmp_path, bd_test={"bd_data_container": {"data_dict": items}})
    with pytest.raises(ModelError, match=r"not a BackdoorBench attack result: (a label in other_info|not enough)"):
        backdoorbench.read(file)


def test_an_img_size_of_two_sides_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"img_size \(8, 16, 3\) is not square"):
        backdoorbench.read(files.attack_result(tmp_path, img_size=(8, 16, 3)))


@pytest.mark.parametrize("name", ["CIFAR10", "Cifar-10", "cifar_10"])
def test_a_dataset_in_other_letters_is_asked_for(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for settings, parameter in ((Attack, "dataset"), (Import, "dataset"), (Import, "data")):
        with pytest.raises(ConfigError, match=rf"^{parameter}={name}: did you mean cifar10\?"):
            parse(settings, {parameter: name})
    (tmp_path / name).mkdir()
    assert parse(Import, {"data": name}).data == str(tmp_path / name)
    assert parse(Import, {"dataset": "auto"}).dataset is None


def test_a_known_normalisation_of_other_channels_says_where_it_comes_from(tmp_path: Path) -> None:
    file = archive(tmp_path, x=X, y=Y)
    with pytest.raises(DataError, match=r"of dataset=mnist is mean \(0.5,\) and std \(0.5,\), for images of 1 channel,"
                       r" but these have 3: give mean and std with 3 values each"):  # fmt: skip
        sources.load("mnist", str(file))
    assert sources.load("mnist", str(file), mean=[0.5] * 3, std=[0.5] * 3).mean == (0.5,) * 3
    grey = archive(tmp_path, x=X[..., 0], y=Y)
    with pytest.raises(DataError, match="for images of 3 channels, but these have 1: give mean and std with 1 value "):
        sources.load("cifar10", str(grey))


def test_a_holdout_that_leaves_one_image_is_refused() -> None:
    labels = torch.arange(40) % 4
    for share in (0.999, 0.98, 1.0):
        with pytest.raises(
            DataError, match=r"^holdout=.* of 40 clean images leaves .* holdout of at most 0\.95, or more images$"
        ):
            subset.holdout_indices(labels, share, torch.Generator())
    assert len(subset.holdout_indices(labels, 0.95, torch.Generator())) == 38
    assert len(subset.holdout_indices(labels, 0.001, torch.Generator())) == 1


def test_the_accuracy_in_a_file_is_a_share_or_per_cent_and_nothing_else() -> None:
    for value, wanted in ((0.93, 0.93), (93, 0.93), (93.5, 0.935), (100, 1.0), (0.999, 0.999), (1.5, 0.015),
                          (1, None), (1.0, None), (True, None), (0, None), (-3.0, None), (101, None),
                          (float("nan"), None), ("0.9", None), (Inert(), None), (SafeNdarray(), None),
                          (torch.tensor(0.9), None), (None, None)):  # fmt: skip
        assert _accuracy({"acc": value}) == (None if wanted is None else pytest.approx(wanted)), value
    assert _accuracy({"clean_acc": 1, "acc": 0.9}) == 0.9
    assert _accuracy({"epoch": 3}) is None
    assert _accuracy([0.9]) is None
