"""A store that is away while a step works: it is waited for, no work is lost, and no run stays RUNNING."""

import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from servers import Server
from small import SETTINGS
from stores import newest, runs

from rnp_mlflow.cli import main
from rnp_mlflow.tracking import lineage, store
from rnp_mlflow.tracking.runs import StepRun

pytestmark = pytest.mark.slow
ATTACK = ["attack", *(f"--{name}={SETTINGS[name]}" for name in ("width", "train_size", "test_size", "device"))]
ATTACK += ["--training_epochs=1", "--store_timeout=4"]


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Seconds in place of minutes, temporary files of the test's own, and the store of before at the end."""
    former = mlflow.get_tracking_uri()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store, "WORD", 0.5)
    monkeypatch.setattr(store, "PAUSES", (0.1, 1.0))
    monkeypatch.setattr(store, "ENDING_PAUSES", (0.1,))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    yield
    mlflow.set_tracking_uri(former)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A real tracking server, which is the present store."""
    home = tmp_path / "server"
    home.mkdir()
    made = Server("server", "--workers", "1", "--backend-store-uri", "sqlite:///runs.db", ready="/health", home=home)
    try:
        made.start()
        mlflow.set_tracking_uri(made.url)
        yield made
    finally:
        made.stop()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("this user may not mount file systems")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def before_the_upload(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Have something happen when the work is done, and its files are to be stored."""
    upload = StepRun.upload

    def delayed(run: StepRun) -> None:
        if not run.uploaded:
            happens()
        upload(run)

    monkeypatch.setattr(StepRun, "upload", delayed)


def kept(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the command that the only line of the error names."""
    error = capsys.readouterr().err.strip().splitlines()[-1]
    found = re.fullmatch(
        r"error: the work of run \w+ is done.*; they are kept: .* run: python -m rnp_mlflow (.*)", error
    )
    assert found, error
    return found[1].split()


def assert_whole(run_id: str) -> None:
    """Hold a run to what every finished one is."""
    run = lineage.require(run_id, "attack")
    assert {"rnp.output", "rnp.manifest", "rnp.seconds"} <= run.data.tags.keys()
    assert "rnp.error" not in run.data.tags
    assert {item.path for item in MlflowClient().list_artifacts(run_id)} >= {"manifest.json", "model", "settings.json"}


def test_a_server_that_stops_for_good_costs_no_work(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before_the_upload(monkeypatch, server.stop)
    began = time.monotonic()
    assert main(ATTACK) == 2
    assert time.monotonic() - began < 60
    errors = capsys.readouterr().err
    assert "waiting for the tracking store http://127.0.0.1" in errors
    assert "Traceback" not in errors
    (folder,) = Path(tempfile.gettempdir()).glob("rnp_kept-*")
    command = ["upload", "--folder", str(folder)]
    assert errors.strip().endswith(f"run: python -m rnp_mlflow {' '.join(command)}")
    assert main(command) == 2, "the server is still away"
    assert "cannot be used" in capsys.readouterr().err
    server.start()
    monkeypatch.undo()
    run_id = folder.name.removeprefix("rnp_kept-")
    assert MlflowClient().get_run(run_id).info.status == "RUNNING", "nothing could be said to the server"
    assert main(command) == 2, "this process made it, and it still lives"
    assert "RUNNING" in capsys.readouterr().err
    MlflowClient().set_tag(run_id, "rnp.process", "host/0123456789ab/1/x")
    MlflowClient().set_terminated(run_id, "KILLED")
    assert main(command) == 0
    assert f"attack run {run_id} has its files" in capsys.readouterr().out
    assert_whole(run_id)
    assert not folder.exists()
    assert main(command) == 2
    assert "is not a folder that a step kept" in capsys.readouterr().err


def test_a_signal_while_the_store_is_away_keeps_the_work(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def leave() -> None:
        server.stop()
        threading.Timer(2, os.kill, (os.getpid(), signal.SIGTERM)).start()

    before_the_upload(monkeypatch, leave)
    began = time.monotonic()
    assert main([*ATTACK, "--store_timeout=300"]) == 143
    assert time.monotonic() - began < 60
    (folder,) = Path(tempfile.gettempdir()).glob("rnp_kept-*")
    assert f"they are kept: when the store is back, run: python -m rnp_mlflow upload --folder {folder}" in " ".join(
        capsys.readouterr().err.split()
    )
    server.start()
    run_id = folder.name.removeprefix("rnp_kept-")
    MlflowClient().set_terminated(run_id, "KILLED")
    monkeypatch.undo()
    assert main(["upload", "--folder", str(folder)]) == 0
    assert_whole(run_id)


@pytest.mark.parametrize("way", ["stopped", "never answers"])
def test_a_server_that_comes_back_is_waited_for(
    way: str, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def leave() -> None:
        if way == "stopped":
            server.stop()
            threading.Timer(1, server.start).start()
        else:
            server.signal(signal.SIGSTOP)
            threading.Timer(3, server.signal, (signal.SIGCONT,)).start()

    before_the_upload(monkeypatch, leave)
    assert main([*ATTACK, "--store_timeout=120"]) == 0
    assert "waiting for the tracking store http://127.0.0.1" in capsys.readouterr().err
    run = MlflowClient().search_runs(["0"], "tags.`rnp.entry` = 'attack'")[0]
    assert_whole(run.info.run_id)


def test_a_server_that_accepts_and_never_answers_is_given_up(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mlflow.set_tracking_uri(f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        assert main(ATTACK) == 2
        assert time.monotonic() - began < 20
    errors = capsys.readouterr().err
    assert "waiting for the tracking store" in errors
    assert "timed out" in errors.splitlines()[-1]


def test_artifacts_that_do_not_fit_are_kept_and_stored_later(
    tiny_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", MlflowClient().create_experiment("tiny", str(tiny_disk)))
    filler = tiny_disk / "filler"

    def fill() -> None:
        filler.write_bytes(bytes(shutil.disk_usage(tiny_disk).free))

    with monkeypatch.context() as patch:
        before_the_upload(patch, fill)
        assert main(ATTACK) == 2
        command = kept(capsys)
        (failed,) = MlflowClient().search_runs([mlflow.get_experiment_by_name("tiny").experiment_id])
        assert failed.info.status == "FAILED"
        assert "No space left" in failed.data.tags["rnp.error"]
    assert main(ATTACK) == 2, "the disk is full before the work"
    assert "artifacts cannot be written to" in capsys.readouterr().err
    filler.unlink()
    (folder,) = Path(tempfile.gettempdir()).glob("rnp_kept-*")
    (folder / "files" / "model" / "model.json").write_text("{}")
    assert main(command) == 2
    assert "model/model.json is not what the run wrote" in capsys.readouterr().err


def test_a_disk_without_room_is_refused_before_the_work(
    tiny_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tiny_disk))
        assert main(ATTACK) == 2
        assert re.search(
            r"error: the files of a step: this needs 32 MiB.* set TMPDIR$", capsys.readouterr().err.strip()
        )
    subprocess.run(["mount", "-o", "remount,ro", tiny_disk], check=True)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", MlflowClient().create_experiment("ro", str(tiny_disk)))
    assert main(ATTACK) == 2
    assert "Read-only file system" in capsys.readouterr().err.strip().splitlines()[-1]
    states = {run.info.status for run in MlflowClient().search_runs(["0", "1"])}
    assert states == {"FAILED"}


def test_a_store_that_another_process_locks_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    MlflowClient().search_experiments()
    locking = sqlite3.connect(tmp_path / "mlflow.db", check_same_thread=False, isolation_level=None)

    def lock() -> None:
        locking.execute("BEGIN EXCLUSIVE")
        threading.Timer(12, locking.execute, ("ROLLBACK",)).start()

    before_the_upload(monkeypatch, lock)
    assert main([*ATTACK, "--store_timeout=60"]) == 0
    locking.close()
    assert_whole(newest("attack").info.run_id)


def test_a_store_whose_disk_is_full_is_waited_for_and_then_given_up(
    tiny_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{tiny_disk}/mlflow.db")
    monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", "x")
    MlflowClient().search_experiments()
    home = MlflowClient().create_experiment("elsewhere", str(Path(tempfile.gettempdir(), "artifacts")))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", home)
    filler = tiny_disk / "filler"

    def fill() -> None:
        with suppress(OSError), filler.open("wb", buffering=0) as stream:
            while stream.write(bytes(1024)):
                pass

    with monkeypatch.context() as patch:
        before_the_upload(patch, fill)
        assert main(ATTACK) == 2
    command = kept(capsys)
    filler.unlink()
    run = MlflowClient().search_runs([home])[0]
    MlflowClient().set_terminated(run.info.run_id, "KILLED")
    assert main(command) == 0
    assert_whole(run.info.run_id)
    assert not runs(entry="attack")
