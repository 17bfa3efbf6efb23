"""Each hostile file ends in one error of ours, in less than 20 seconds and 2 GiB, and nothing that it names runs."""

import os
import re
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import hostile_files as hostile
import hostile_torch as torch_files
import outside_files
import pytest
import torch

from rnp_mlflow import loading
from rnp_mlflow.config import Import
from rnp_mlflow.data import folder, npz, sources, torchvision_sets, triggered
from rnp_mlflow.errors import RnpError
from rnp_mlflow.interop import backdoorbench
from rnp_mlflow.steps import model_source
from rnp_mlflow.tracking import remote_model

SECONDS, MEMORY = 20, 2 << 30


def told(read: Callable[[], object]) -> str:
    """Return the message of the error that a reader raises, in a process of its own with bounds on time and memory."""
    end, start = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        answer = "it was read"
        try:
            in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)
            read()
        except RnpError as error:
            answer = f"error: {error}"
        except BaseException:
            answer = traceback.format_exc()
        os.write(start, answer.encode()[:60_000])
        os._exit(0)
    os.close(start)
    with open(end, "rb") as answers:
        found = answers.read().decode()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"ended by signal {os.WTERMSIG(status)}"
    return found


def check(read: Callable[[], object], words: str) -> None:
    line = told(read)
    assert line.startswith("error: "), line
    assert re.search(words, line), line
    assert "\n" not in line
    assert line.isprintable()
    assert len(line) < 2100


@pytest.mark.parametrize("case", torch_files.PICKLES)
def test_a_pickle_is_refused(case: str, tmp_path: Path) -> None:
    pickle, words = torch_files.PICKLES[case]
    torch_files.archive(tmp_path / "w.pt", pickle())
    check(lambda: loading.read_weights(tmp_path / "w.pt"), words)


@pytest.mark.parametrize("case", torch_files.FILES)
def test_a_torch_file_is_refused(case: str, tmp_path: Path) -> None:
    build, words = torch_files.FILES[case]
    build(tmp_path / "w.pt")
    check(lambda: loading.read_weights(tmp_path / "w.pt"), words)


@pytest.mark.parametrize("case", hostile.PT2)
def test_a_pt2_archive_is_refused(case: str, tmp_path: Path) -> None:
    build, words = hostile.PT2[case]
    build(tmp_path / "w.pt2")
    check(lambda: loading.read_weights(tmp_path / "w.pt2"), words)


@pytest.mark.parametrize("case", hostile.SAFETENSORS)
def test_a_safetensors_file_is_refused(case: str, tmp_path: Path) -> None:
    build, words = hostile.SAFETENSORS[case]
    build(tmp_path / "w.safetensors")
    check(lambda: loading.read_weights(tmp_path / "w.safetensors"), words)


@pytest.mark.parametrize("case", hostile.NPZ)
def test_an_npz_file_is_refused(case: str, tmp_path: Path) -> None:
    build, words = hostile.NPZ[case]
    build(tmp_path / "x.npz")
    check(lambda: npz.read(tmp_path / "x.npz"), words)


def test_what_the_makers_build_on_is_taken(tmp_path: Path) -> None:
    """Else the files above would be refused for another reason than their own."""
    torch_files.archive(tmp_path / "w.pt", torch_files.GOOD)
    assert loading.read_weights(tmp_path / "w.pt")["w"].tolist() == [1, 2]
    torch_files.older(
        tmp_path / "old.pt", torch_files.OLDER, torch_files.KEYS, b"\2" + bytes(7) + torch_files.STORED["0"]
    )
    assert loading.read_weights(tmp_path / "old.pt")["w"].tolist() == [1, 2]
    hostile.pt2(tmp_path / "w.pt2", hostile.config(), torch_files.STORED["0"])
    assert loading.read_weights(tmp_path / "w.pt2")["0"].tolist() == [1, 2]
    hostile.npz(tmp_path / "x.npz", hostile.PIXEL)
    assert npz.read(tmp_path / "x.npz")[0].shape == (3, 1, 1)


@pytest.mark.parametrize("full", torch_files.GADGETS)
def test_no_name_of_a_published_gadget_is_called_or_imported(full: str, tmp_path: Path) -> None:
    torch_files.archive(tmp_path / "w.pt", torch_files.call(full, torch_files.text("id")))
    torch_files.older(tmp_path / "old.pt", torch_files.call(full, torch_files.text("id")), torch_files.KEYS, b"")
    torch_files.archive(tmp_path / "new.pt", torch_files.name(full) + b")\x81")
    before = set(sys.modules)
    for file in ("w.pt", "old.pt", "new.pt"):
        with pytest.raises(RnpError, match=re.escape(f"would have to run {full.replace('__builtin__', 'builtins')} ")):
            loading.read_weights(tmp_path / file)
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        (b"img_size", torch_files.doubled(40, b"]", b"\x86"), "not a BackdoorBench attack result"),
        (b"bd_train", torch_files.text("x"), "not a BackdoorBench attack result"),
        (b"clean_data", b"K\1", "not a BackdoorBench attack result"),
    ],
)
def test_a_field_of_a_result_is_refused(field: bytes, value: bytes, words: str, tmp_path: Path) -> None:
    file = hostile.with_pickle(tmp_path, torch_files.text(field.decode()), value)
    check(lambda: backdoorbench.read(file), words)


def test_triggered_images_that_a_result_names_are_bounded(tmp_path: Path) -> None:
    hostile.picture(tmp_path / "0.png")
    one = {"path": "0.png", "other_info": [0, 1]}
    file = hostile.small_result(tmp_path, dict.fromkeys(range(5000), one))
    check(lambda: backdoorbench.read(file), "listed twice")
    file = hostile.small_result(tmp_path, {0: one | {"path": "a/" * 10**6 + "0.png"}})
    check(lambda: backdoorbench.read(file), "2,000,005 characters")
    file = hostile.small_result(tmp_path, {0: one | {"other_info": list(range(10**6))}} | {1: one | {"path": "1.png"}})
    check(lambda: backdoorbench.read(file), "1 of 2 triggered images are missing|1 of 1")
    hostile.png_of(tmp_path / "0.png", 9400, 9400)
    check(lambda: backdoorbench.read(hostile.small_result(tmp_path, {0: one}, img_size=None)), "88,360,000|pixels")


@pytest.mark.parametrize(("width", "height"), [(9400, 9400), (60_000, 60_000), (2**31 - 1, 2**31 - 1), (7000, 7000)])
def test_a_picture_is_bounded(width: int, height: int, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    hostile.png_of(tmp_path / "a/0.png", width, height)
    hostile.picture(tmp_path / "b/0.png")
    check(lambda: folder.read(tmp_path), r"a/0\.png")
    check(lambda: folder.read(tmp_path, 8), r"a/0\.png")


def test_room_is_asked_for_before_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile.picture(tmp_path / "0.png", 4096)
    files = [tmp_path / "0.png"] * 10**6
    monkeypatch.setattr("shutil.disk_usage", lambda place: Free(2**40))
    check(
        lambda: folder.read_images(files, None),
        r"1,000,000 images of 3 × 4096 × 4096: this needs 46,875\.0 GiB of disk",
    )
    monkeypatch.setattr("rnp_mlflow.loading.room.free_memory", lambda: 2**20)
    check(lambda: folder.read_images(files[:4], None), "this needs 192 MiB of memory, and 1 MiB are free")


@dataclass
class Free:
    """What `shutil.disk_usage` says."""

    free: int


READERS: dict[str, Callable[[Path], object]] = {
    "weights": loading.read_weights,
    "safetensors": loading.read_safetensors,
    "pt2": loading.read_pt2,
    "attack_result": backdoorbench.read,
    "npz": lambda place: sources.load("npz", str(place)),
    "triggered": lambda place: triggered.read(place, ("0", "1"), "0", (3, 8, 8)),
    "image": lambda place: folder.read_images([place], None),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["fifo", "device", "link to a device", "folder", "absent"])
def test_what_is_not_a_regular_file_is_not_opened(reader: str, kind: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "device":
        place = Path("/dev/zero")
    elif kind.startswith("link"):
        place.symlink_to("/dev/zero")
    elif kind == "folder":
        place.mkdir()
    check(lambda: READERS[reader](place), "FIFO, device or socket|a folder|does not exist|class folder")


def test_a_folder_of_a_model_ends_below_itself(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    secret = torch_files.archive(tmp_path / "secret.pt", torch_files.GOOD)
    (tmp_path / "model/w.pt").symlink_to(secret)
    check(lambda: remote_model.read_folder(tmp_path / "model"), "a link that leads out of")
    deep = tmp_path / "deep"
    for _ in range(11):  # a longer path than one call takes
        os.makedirs(deep / "a/" / ("b/" * 99))
        os.rename(deep, tmp_path / "inner")
        os.makedirs(deep)
        os.rename(tmp_path / "inner", deep / "c")
    check(lambda: remote_model.read_folder(deep), "more than 32 deep")
    (tmp_path / "images").mkdir()
    os.rename(deep, tmp_path / "images/a")
    check(lambda: folder.read(tmp_path / "images"), "more than 32 deep|is empty")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ((torch.zeros(20, 28, 28, dtype=torch.uint8), torch.arange(20) % 10), None),
        ((torch.zeros(1, 28, 28, dtype=torch.uint8), torch.tensor([10**12])), "does not hold MNIST's"),
        ((torch.zeros(1, 28, 28, dtype=torch.uint8), torch.tensor([-1])), "does not hold MNIST's"),
        ([torch.zeros(1)], "does not hold MNIST's"),
        ((outside_files.Call(os.mkdir, ("made",)), 0), r"would have to run posix\.mkdir"),
    ],
)
def test_the_older_files_of_mnist_are_read_as_all_others(content: object, words: str | None, tmp_path: Path) -> None:
    place = tmp_path / "MNIST/processed"
    place.mkdir(parents=True)
    for name in ("training.pt", "test.pt"):
        torch.save(content, place / name)
    if words is None:
        train, _, classes = torchvision_sets.read("mnist", tmp_path, None)
        assert train.shape == (1, 28, 28)
        assert len(classes) == 10
    else:
        check(lambda: torchvision_sets.read("mnist", tmp_path, None), words)


def test_a_result_does_not_choose_how_the_images_are_read(tmp_path: Path) -> None:
    """`clean_data=gtsrb` would start the reader of GTSRB's table, `digits` take images that nobody asked for."""
    (tmp_path / "gtsrb").mkdir()
    told_by_file = model_source.ImportedModel({}, dataset="gtsrb")
    settings = Import.model_validate({"attack_result": "x", "data": str(tmp_path)})
    with pytest.raises(RnpError, match="if it has torchvision's files, give their dataset=NAME"):
        model_source.data_source(settings, told_by_file)
    named = Import.model_validate({"attack_result": "x", "data": str(tmp_path), "dataset": "gtsrb"})
    assert model_source.data_source(named, told_by_file).dataset == "gtsrb"
    with pytest.raises(RnpError, match="give the clean images"):
        model_source.data_source(Import.model_validate({"attack_result": "x"}), replace(told_by_file, dataset="digits"))
