"""Bad files through the entry points: one line, exit 2, soon, no run left RUNNING, nothing left in TMPDIR."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import hostile_files as hostile
import hostile_torch
import outside_files as files
import pytest
import torch
from stores import assert_none_running, enter

from rnp_mlflow.cli import main

KNOWN = ["--model=preactresnet18", "--dataset=cifar10"]


def place(home: Path, name: str) -> str:
    """Make one of the bad things, and return its path."""
    file = home / name
    makers: dict[str, Callable[[], object]] = {
        "bomb.pt": lambda: hostile_torch.archive(file, hostile_torch.PICKLES["bytearray of 3 GiB"][0]()),
        "heap.pt": lambda: hostile_torch.FILES["older: no storages"][0](file),
        "packed.npz": lambda: hostile.filled(file, 2**30),
        "label.npz": lambda: hostile.NPZ["a label of 10^12"][0](file),
        "fifo": lambda: os.mkfifo(file),
        "folder": file.mkdir,
        "words.txt": lambda: file.write_text("two words\n"),
        "bytes": lambda: file.write_bytes(os.urandom(64)),
        "images": lambda: images(file),
        "kept": lambda: kept(file, "x"),
        "kept nothing": lambda: kept(file, None),
        "linked": lambda: kept(file, "x", "/etc/passwd"),
    }
    if name in makers and not file.exists():
        makers[name]()
    return name if name.startswith("/") else str(file)


def images(root: Path) -> None:
    for label in "ab":
        (root / label).mkdir(parents=True)
        hostile.png_of(root / label / "0.png", 9400, 9400)


def kept(folder: Path, run_id: str | None, link: str | None = None) -> None:
    folder.mkdir()
    if link:
        (folder / "link").symlink_to(link)
    record = {"run_id": run_id, "entry": "attack", "tags": {"rnp.manifest": "0" * 64}} if run_id else {}
    (folder / "kept.json").write_text(json.dumps(record))
    (folder / "files").mkdir()
    (folder / "files" / "manifest.json").write_text("{}")


SMALL = ("fifo", "/dev/zero", "folder", "words.txt", "bytes", "absent", "a" * 300)
CHECKPOINTS = ("bomb.pt", "heap.pt", "packed.npz", *SMALL)
DATA = ("fifo", "/dev/zero", "folder", "words.txt", "bytes", "absent", "packed.npz", "label.npz", "bomb.pt", "images")
CASES = [
    *((["import", "--data={clean}", *KNOWN], "checkpoint", name) for name in CHECKPOINTS),
    *((["import", "--data={clean}"], "attack_result", name) for name in CHECKPOINTS),
    *((["import", "--checkpoint={good}", *KNOWN], "data", name) for name in DATA),
    *((["import", "--checkpoint={good}", "--data={clean}", "--target=0", *KNOWN], "triggered", name) for name in DATA),
    *((["attack", "--dataset=npz"], "data_dir", name) for name in DATA),
    *((["attack", "--dataset=folder"], "data_dir", name) for name in DATA),
    *((["unlearn", "--width=4"], "index", name) for name in SMALL),
    *((["prune", "--width=4"], "mask_file", name) for name in SMALL),
    *((["main", "--width=4"], "mask_file", name) for name in SMALL),
    *((["rerun"], "run_id", name) for name in ("../../etc", "/dev/zero", "a" * 300)),
    *((["upload"], "folder", name) for name in (*SMALL, "kept", "kept nothing", "linked")),
    *((["recover"], "unlearn_run_id", name) for name in ("../../etc", "/dev/zero", "a" * 300)),
]


def test_there_are_many_cases() -> None:
    assert len(CASES) >= 75


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("bad")
    files.clean_npz(found / "clean.npz")
    torch.save(files.suspect().state_dict(), found / "good.pt")
    return found


@pytest.mark.parametrize("entry", sorted({f"{words[0]} {name}" for words, name, _ in CASES}))
def test_a_bad_file_is_one_line_and_exit_2(
    entry: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enter(home, monkeypatch)
    monkeypatch.setattr("tempfile.tempdir", str(home))
    for words, parameter, name in CASES:
        if entry != f"{words[0]} {parameter}":
            continue
        given = [word.format(clean=home / "clean.npz", good=home / "good.pt") for word in words]
        value = name if parameter.endswith("run_id") else place(home, name)
        capsys.readouterr()
        started = time.monotonic()
        assert main([*given, f"--{parameter}={value}"]) == 2, name
        assert time.monotonic() - started < 20
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, name
        assert errors[0].isprintable()
        assert len(errors[0]) < 2100
        assert "defect" not in errors[0], name
    assert_none_running()
    assert not list(home.glob("rnp-*"))


def test_what_may_not_be_read_is_no_defect(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*given: object, **more: object) -> int:
        raise PermissionError(13, "Permission denied", "/data/images")

    monkeypatch.setattr("rnp_mlflow.cli.run", refuse)
    assert main(["attack"]) == 2
    assert capsys.readouterr().err == "error: Permission denied: /data/images\n"
