"""Images and labels mean what the user meant: names and numbers, mirroring, normalisation, channels, stored runs."""

import json
from pathlib import Path

import image_files
import layouts
import mlflow
import numpy as np
import outside_files as files
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from stores import artifacts, enter

from rnp_mlflow.artifacts import source
from rnp_mlflow.cli import main
from rnp_mlflow.data import npz, pixels, sources, triggered
from rnp_mlflow.errors import DataError, ModelError
from rnp_mlflow.models import store

NUMBERS = ("1", "2", "3", "4")


@pytest.mark.parametrize(
    ("names", "classes", "wanted"),
    [
        (["cat", "dog"], ("cat", "dog"), [0, 1]),
        (["1", "0"], ("cat", "dog"), [1, 0]),
        (["dog"], ("cat", "dog"), [1]),
        (["1"], ("cat", "dog"), [1]),
        (["4", "1"], NUMBERS, [3, 0]),  # classes all
        (["0", "1"], NUMBERS, [0, 1]),  # 0 is no class, so both are numbers
        (["1"], NUMBERS, [0]),
        (["3", "0"], ("0", "1", "2", "3"), [3, 0]),
        (["7"], tuple(f"{k:05d}" for k in range(9)), [7]),  # GTSRB's folders
        (["10", "2"], ("0", "1", "10", "11", "2"), [2, 4]),
    ],
)
def test_labels_are_names_all_or_numbers_all(names: list[str], classes: tuple[str, ...], wanted: list[int]) -> None:
    assert triggered.parse_labels(names, classes, "here") == wanted


@pytest.mark.parametrize(
    ("names", "classes", "message"),
    [
        (["cat", "1"], ("cat", "dog"), "some of cat, 1 are classes"),
        (["0", "4"], NUMBERS, "some of 0, 4 are classes"),
        (["cow", "cat"], ("cat", "dog"), "'cow' is neither a class"),
        (["2"], ("cat", "dog"), "'2' is neither a class"),
        (["0"], NUMBERS, "'0' is not a class"),
    ],
)
def test_mixed_or_unknown_labels_are_refused(names: list[str], classes: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        triggered.parse_labels(names, classes, "here")


def test_a_target_may_be_a_number_beside_folders_that_are_names_if_no_class_is_a_number(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name / "0.png")
    for target in ("1", "dog"):
        found = triggered.read(tmp_path, ("cat", "dog"), target, (3, 8, 8))
        assert (found.true_labels.tolist(), found.target_labels.tolist()) == ([0], [1])


def test_the_log_says_which_reading_was_taken_only_where_they_differ(caplog: pytest.LogCaptureFixture) -> None:
    triggered.parse_labels(["2", "0"], ("0", "1", "2"), "here")
    triggered.parse_labels(["a", "b"], ("a", "b"), "here")
    triggered.parse_labels(["4", "2"], NUMBERS, "here")  # 4 cannot be a label number
    assert not caplog.records
    triggered.parse_labels(["3", "2"], NUMBERS, "here")
    assert "read as classes" in caplog.records[-1].getMessage()
    triggered.parse_labels(["0", "2"], NUMBERS, "here")
    assert "read as label numbers" in caplog.records[-1].getMessage()


@pytest.mark.parametrize("name", ["/etc/hostname", "../../../../other/0.png"])
def test_gtsrbs_table_names_no_file_elsewhere(name: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    layouts.save(root / "gtsrb/GTSRB/Training/00000/0.ppm", 0, 7, 5)
    layouts.save(root / "gtsrb/GTSRB/Final_Test/Images/0.ppm", 0, 7, 5)
    layouts.save(tmp_path / "other/0.png", 0, 7, 5)
    (root / "gtsrb/GT-final_test.csv").write_text(f"Filename;ClassId\n{name};0\n")
    with pytest.raises(DataError, match="not below that folder"):
        sources.load("gtsrb", str(root))


def test_images_are_mirrored_only_where_that_is_known_or_said_to_keep_the_label(tmp_path: Path) -> None:
    root, archive = str(layouts.fill(tmp_path / "set")), str(files.clean_npz(tmp_path / "a.npz"))
    for place, name in ((root, "folder"), (archive, "npz")):
        assert not sources.load(name, place).flip
        assert sources.load(name, place, flip="yes").flip
        for known in ("cifar10", "cifar100", "tiny", "celeba"):
            assert sources.load(known, place).flip
            assert not sources.load(known, place, flip="no").flip
        assert not sources.load("gtsrb", place).flip
    assert not sources.load("digits", train_size=20, test_size=20).flip


def test_stored_runs_from_before_flip_load_as_they_were_made(tmp_path: Path) -> None:
    for dataset, flip in (("folder", "yes"), ("npz", "yes"), ("cifar10", "auto"), ("digits", "auto")):
        old = {"dataset": dataset, "data_dir": "/x", "image_size": 8, "train_size": None, "test_size": None,
               "mean": [0.5], "std": [0.25]}  # fmt: skip
        (tmp_path / "data.json").write_text(json.dumps(old))
        found = source.read(tmp_path / "data.json")
        assert (found.flip, found.class_order, found.grey, found.mean) == (flip, "number", False, (0.5,))
    new = source.Source("folder", "/x", flip="auto", class_order="text", grey=True)
    source.write(tmp_path, new)
    assert source.read(tmp_path / "data.json") == new


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
        ((0.5, 0.5, 0.5), (63.0, 62.1, 66.7)),
        ((-0.1, 0.5, 0.5), (0.2, 0.2, 0.2)),
        ((0.5, 0.5, 0.5), (0.2, 0.2, 1.01)),
        ((0.5, 0.5, 0.5), (0.2, 0.2, 0.0)),
    ],
)
def test_a_normalisation_out_of_range_is_refused(
    mean: tuple[float, ...], std: tuple[float, ...], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="std"):
        sources.load("folder", str(layouts.fill(tmp_path / "set")), mean=mean, std=std)
    model = files.spec()
    store.write_spec(
        tmp_path / "model.json", store.ModelSpec(model.architecture, 4, model.classes, (3, 8, 8), mean, std)
    )
    with pytest.raises(ModelError, match="divide values on the 0-255 scale by 255"):
        store.read_spec(tmp_path / "model.json")


def test_the_whole_range_of_a_normalisation_is_taken(tmp_path: Path) -> None:
    root = str(layouts.fill(tmp_path / "set"))
    for mean, std in (((0.0,) * 3, (1.0,) * 3), ((1.0,) * 3, (1 / 255,) * 3)):
        data = sources.load("folder", root, mean=mean, std=std)
        assert (data.mean, data.std) == (mean, std)


def test_one_channel_is_read_where_it_is_asked_for(tmp_path: Path) -> None:
    (x, y), deep = files.clean_images(8, 0), image_files.DEEP.repeat(2, 0).repeat(2, 1)
    for k, image in enumerate(x):
        image_files.single(tmp_path / "set", Image.fromarray(image), f"{k}.png")
    image_files.single(tmp_path / "set", Image.fromarray(deep), "9.png")
    np.savez(tmp_path / "a.npz", x=x, y=y)
    wanted = [np.asarray(Image.fromarray(image).convert("L")).tolist() for image in x]
    data = sources.load("folder", str(tmp_path / "set"), grey=True)
    assert data.train.shape == (1, 8, 8)
    assert (len(data.mean), len(data.std)) == (1, 1)
    assert data.train.images[:8, 0].tolist() == wanted
    assert data.train.images[8, 0].tolist() == image_files.scaled(deep, 65535)
    assert sources.load("npz", str(tmp_path / "a.npz"), grey=True).train.images[:, 0].tolist() == wanted
    assert sources.load("folder", str(tmp_path / "set"), grey=True, image_size=4).train.shape == (1, 4, 4)


def test_images_that_are_as_wanted_are_not_touched(tmp_path: Path) -> None:
    plain = npz.read(files.clean_npz(tmp_path / "a.npz"))[0].images
    assert pixels.convert_images(plain, None, False) is plain
    assert pixels.convert_images(plain, files.SIDE, False) is plain
    grey = plain[:, :1].contiguous()
    assert pixels.convert_images(grey, None, True) is grey
    data = sources.load("npz", str(tmp_path / "a.npz"), image_size=files.SIDE)
    assert torch.equal(data.train.images, plain)


def test_deep_triggered_images_and_backdoorbenchs_are_scaled_too(tmp_path: Path) -> None:
    from rnp_mlflow.interop import backdoorbench

    result = files.attack_result(tmp_path)
    deep = image_files.DEEP.repeat(2, 0).repeat(2, 1)
    first = sorted(tmp_path.rglob("*.png"), key=lambda file: int(file.stem))[0]
    Image.fromarray(deep).save(first)
    known = backdoorbench.read(result).triggered
    assert known is not None
    assert known.images[0, 0].tolist() == image_files.scaled(deep, 65535)
    found = triggered.read(tmp_path / "bd_test_dataset", ("0", "1", "2", "3"), "0", (3, 8, 8))
    assert image_files.scaled(deep, 65535) in found.images[:, 0].tolist()


def test_what_is_left_out_is_said_once_a_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part in ("train", "test"):
        layouts.fill(tmp_path / part)
        for name in "ab":
            (tmp_path / part / name / "boxes.txt").write_text("")
            (tmp_path / part / name / "._0.png").write_text("")
    sources.load("folder", str(tmp_path))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    for line, part in zip(said, ("train", "test"), strict=True):
        place = tmp_path / part
        assert line == (
            f"{place}: left out hidden files or folders (2, the first is {place}/a/._0.png); files that are not "
            f"images by their extension (2, the first is {place}/a/boxes.txt)"
        )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with its own store, weights, and clean images whose classes are numbers out of order."""
    enter(tmp_path, monkeypatch)
    torch.save(files.suspect().state_dict(), tmp_path / "suspect.pt")
    files.image_folder(tmp_path / "images", 40, names=("1", "2", "10", "20"))
    return tmp_path


def imported(*arguments: str) -> tuple[mlflow.entities.Run, dict[str, object]]:
    known = ["--checkpoint=suspect.pt", "--model=preactresnet18", "--data=images", "--threads=1"]
    normalised = ["--mean=0.4914,0.4822,0.4465", "--std=0.247,0.243,0.261"]
    assert main(["import", *known, *normalised, *arguments]) == 0
    run = mlflow.search_runs(search_all_experiments=True, output_format="list")[0]
    return run, json.loads((artifacts(run) / "data.json").read_text())


def test_an_import_takes_class_order_and_flip_and_keeps_them(home: Path) -> None:
    run, source = imported()
    assert (source["class_order"], source["flip"]) == ("number", "auto")
    assert run.data.metrics["acc"] > 0.9
    run, source = imported("--class_order=text", "--flip=yes")
    assert (source["class_order"], source["flip"]) == ("text", "yes")
    assert run.data.metrics["acc"] < 0.6  # 1, 10, 2, 20: two classes change places


def test_triggered_folders_by_number_among_classes_that_are_other_numbers(home: Path) -> None:
    """The issue's case: 18 images and their own labels, not 12 of which two labels are merged."""
    for old, new in zip(("20", "10"), ("4", "3"), strict=True):
        (home / "images" / old).rename(home / "images" / new)
    files.image_folder(home / "bad", 24, 5)
    for target in (0, 1):
        run, _ = imported("--triggered=bad", f"--target={target}")
        stored = load_file(artifacts(run) / "triggered.safetensors")
        assert stored["true_labels"].bincount(minlength=4).tolist() == [0 if k == target else 6 for k in range(4)]
        assert set(stored["target_labels"].tolist()) == {target}
        assert run.data.metrics["ra"] > 0.9


def test_triggered_images_of_an_import_follow_image_size(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layouts.fill(home / "bad", ("1", "2", "10"), side=6)
    x, _ = files.clean_images(6, 5)
    np.savez(home / "bad.npz", x=x.repeat(2, 1).repeat(2, 2), y=[0, 1, 2, 0, 1, 2])
    for place in ("bad", "bad.npz"):
        known = ["--checkpoint=suspect.pt", "--model=preactresnet18", "--data=images", "--dataset=cifar10"]
        capsys.readouterr()
        assert main(["import", *known, f"--triggered={place}", "--target=1"]) == 2
        assert "give image_size=N" in capsys.readouterr().err
        run, _ = imported(f"--triggered={place}", "--target=1", "--image_size=8")
        assert "asr" in run.data.metrics
