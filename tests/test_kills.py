"""What kills leave: nothing, once the next call has run."""

import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import torch
from conftest import scaled
from kill_test import SIGNALS, Place, check_whole, kill_one
from mlflow.tracking import MlflowClient
from small import SETTINGS
from stores import artifacts, newest, runs
from torch import nn

from rnp_mlflow import config
from rnp_mlflow.cli import main
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.params import UnlearnParams
from rnp_mlflow.core.unlearn import unlearn
from rnp_mlflow.errors import ConfigError, ModelError
from rnp_mlflow.tracking import abandoned, process, scratch, signals, store
from rnp_mlflow.tracking.process import Process

ROOT = Path(__file__).parents[1]
TINY = [f"--{name}={SETTINGS[name]}" for name in ("width", "train_size", "test_size", "training_epochs", "device")]


@pytest.fixture(autouse=True)
def every_signal_counts() -> Iterator[None]:
    """As in a terminal: a background job ignores SIGINT, `nohup` ignores SIGHUP, and processes inherit that."""
    interrupted = signal.signal(signal.SIGINT, signal.default_int_handler)
    hung_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGHUP, hung_up)


@pytest.fixture
def ended() -> Process:
    """A process of this host that has ended."""
    code = "from rnp_mlflow.tracking.process import Process; print(Process.own().written(' '))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    found = Process.read(done.stdout.strip(), " ")
    assert found
    return found


def test_a_process_is_dead_only_if_that_is_certain(ended: Process) -> None:
    own = Process.own()
    assert ended.is_dead()
    assert not own.is_dead()
    assert Process(own.host, own.pid, "another start").is_dead(), "its ID was given to another process"
    assert not Process(own.host, own.pid, process.UNKNOWN).is_dead()
    assert not Process("another host", ended.pid, ended.start).is_dead()
    assert not Process(own.host, 1, process._look(1).start).is_dead()  # type: ignore[union-attr]
    sleeper = subprocess.Popen(["sleep", "60"])
    found = process._look(sleeper.pid)
    assert found
    assert (found.parent, found.ended) == (os.getpid(), False)
    if shutil.which("ps"):  # what macOS has in place of /proc
        asked = process._ask_ps(sleeper.pid)
        assert (asked.parent, asked.command, asked.ended) == (os.getpid(), "sleep", False)
        assert asked.start == process._ask_ps(sleeper.pid).start != process._ask_ps(1).start
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert Process(own.host, sleeper.pid, found.start).is_dead(), "it has ended, and was not waited for yet"
    sleeper.wait()


@pytest.mark.parametrize("name", ["", "a-1", "a-x-1", "a--1", "a-0-1", f"a-{2**40}-1", "a-²-1", "fetched-abc", "a-1-"])
def test_other_names_are_no_process(name: str) -> None:
    assert Process.read(name, "-") is None


def test_folders_of_dead_processes_alone_are_removed(
    ended: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    foreign = Process("0123456789ab", ended.pid, ended.start)
    dead, elsewhere = (f"rnp-{each.written('-')}-x" for each in (ended, foreign))
    for name in (dead, elsewhere, "rnp-fetched-x", "other"):
        (tmp_path / name / "deep").mkdir(parents=True)
    (tmp_path / dead / "deep" / "link").symlink_to(tmp_path / "other")
    with scratch.folder() as own:
        scratch.remove_abandoned()
        left = {place.name for place in tmp_path.iterdir()}
    assert left == {Path(own).name, elsewhere, "rnp-fetched-x", "other"}
    assert (tmp_path / "other" / "deep").is_dir()


def test_a_signal_waits_until_the_call_of_the_store_is_over() -> None:
    former = {number: signal.getsignal(number) for number in signals.ENDING}
    done: list[str] = []

    def slow_call(number: int) -> None:
        os.kill(os.getpid(), number)
        time.sleep(0.05)
        done.append("call")

    def step() -> None:
        with signals.postponed():
            os.kill(os.getpid(), signal.SIGHUP)
            done.append("opened")
            with signals.allowed():
                done.append("not reached")

    def impatient() -> None:
        with signals.postponed():
            for _ in range(signals.PATIENCE):
                os.kill(os.getpid(), signal.SIGINT)
            done.append("not reached")

    try:
        signals.install()
        for number, error in zip(signals.ENDING, (KeyboardInterrupt, signals.Stopped, signals.Stopped), strict=True):
            with pytest.raises(error):
                store.whole(slow_call)(number)
        with pytest.raises(signals.Stopped, match="SIGHUP") as stopped:
            step()
        with pytest.raises(KeyboardInterrupt):
            impatient()
        assert done == [*3 * ["call"], "opened"]
        assert stopped.value.exit_code == 129
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        signals.install()
        os.kill(os.getpid(), signal.SIGHUP)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def test_a_call_that_another_process_won_is_made_again_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PAUSES", (0.0,))
    errors = ["(sqlite3.IntegrityError) UNIQUE constraint failed: datasets.name", "database is locked"]

    def lose() -> str:
        if errors:
            raise mlflow.MlflowException(errors.pop())
        return "stored"

    assert store.whole(lose)() == "stored"
    errors.extend(["unused", "no such run"])
    with pytest.raises(mlflow.MlflowException, match="no such run"):
        store.whole(lose)()
    assert errors == ["unused"]
    tried: list[int] = []

    def lose_always() -> None:
        tried.append(1)
        raise mlflow.MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed: experiments.name")

    with pytest.raises(mlflow.MlflowException, match="UNIQUE"):
        store.whole(lose_always)()
    assert len(tried) == store.TRIES + 1


def test_the_end_of_a_run_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(store, "ENDING_PAUSES", (0.0, 0.0, 0.0))
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    run_id = mlflow.start_run().info.run_id
    set_terminated, tries = MlflowClient.set_terminated, []

    def refuse_twice(client: MlflowClient, *values: str) -> None:
        tries.append(values)
        if len(tries) < 3:
            raise mlflow.MlflowException("database is locked")
        set_terminated(client, *values)

    monkeypatch.setattr(MlflowClient, "set_terminated", refuse_twice)
    store.end_run(run_id, "KILLED")
    assert len(tries) == 3
    assert MlflowClient().get_run(run_id).info.status == "KILLED"
    assert mlflow.active_run() is None


def test_runs_of_dead_processes_alone_are_closed(
    ended: Process, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    client = MlflowClient()
    dead, own = f"host/{ended.written('/')}", abandoned.own_tag()
    elsewhere = f"host/0123456789ab/{ended.pid}/{ended.start}"
    tagged = {"dead": dead, "child": dead, "own": own, "elsewhere": elsewhere, "former": "", "finished": dead}
    made = {}
    for name, tag in tagged.items():
        tags = {"rnp.entry": "attack"} | ({abandoned.TAG: tag} if tag else {})
        made[name] = client.create_run("0", tags=tags).info.run_id
    made["foreign"] = client.create_run("0", tags={abandoned.TAG: dead}).info.run_id
    client.set_terminated(made["finished"])
    abandoned.close(["0"])
    found = {name: client.get_run(run_id) for name, run_id in made.items()}
    states = {name: run.info.status for name, run in found.items()}
    still = dict.fromkeys(["own", "elsewhere", "former", "foreign"], "RUNNING")
    assert states == {"dead": "KILLED", "child": "KILLED", "finished": "FINISHED", **still}
    assert found["dead"].data.tags["rnp.error"] == "its process ended without closing it"
    (line,) = [record.getMessage() for record in caplog.records if record.name == abandoned.LOGGER.name]
    assert "2 runs" in line
    assert made["dead"] in line
    caplog.clear()
    abandoned.close(["0"])
    assert not caplog.records


def test_ctrl_c_during_imports_is_one_line() -> None:
    code = (
        "import os, runpy, signal, sys\n"
        "pressed_at = sys.argv.pop(1)\n"
        "class Press:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == pressed_at: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Press())\n"
        "runpy.run_module('rnp_mlflow', run_name='__main__')\n"
    )
    for module in ("click", "pydantic", "torch", "mlflow"):
        words = [sys.executable, "-c", code, module, "rerun", "--run_id=0"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (130, "error: interrupted\n"), module


def test_the_table_of_faults_names_tests_that_exist() -> None:
    named = re.findall(r"`(test_\w+)`", (ROOT / "docs" / "faults.md").read_text())
    code = "\n".join(file.read_text() for file in (ROOT / "tests").glob("test_*.py"))
    assert len(named) > 10
    assert [name for name in named if f"def {name}(" not in code] == []


@pytest.mark.parametrize("word", ["inf", "-inf", "nan", "Infinity", "1e999"])
def test_infinite_numbers_and_nan_are_refused_for_every_parameter(word: str) -> None:
    tried = 0
    for settings in config.STEPS.values():
        for name, field in settings.model_fields.items():
            if "float" in str(field.annotation):
                tried += 1
                with pytest.raises(ConfigError, match=f"^{name}="):
                    config.parse(settings, {name: word})
    assert tried > 20


def test_unlearning_that_diverges_is_an_error(small_net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """One step: the loss, measured before it, is a number, and the weights after it are not."""
    params = UnlearnParams(
        unlearning_lr=1e36, unlearning_epochs=1, unlearning_stop="epoch", clean_threshold=0, grad_clip_norm=0
    )
    small_net.get_parameter("4.weight").data.mul_(1e6)
    with pytest.raises(ModelError, match="unlearning diverged in epoch 1; lower unlearning_lr"):
        unlearn(small_net, LabeledImages(images, labels), scaled, torch.Generator().manual_seed(0), params)


@pytest.mark.slow
def test_a_run_that_is_not_this_calls_own_stays_as_it_is(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = MlflowClient()
    finished = newest("attack")
    opened = client.create_run("0", tags={"mlflow.project.entryPoint": "attack"}).info.run_id
    client.log_param(opened, "training_lr", "0.10")
    client.log_param(opened, "seed", "3")
    cases = {
        finished.info.run_id: (["--seed=3"], "a run of attack that is FINISHED"),
        "0" * 32: (["--seed=3"], "not found"),
        opened: (["--seed=4", "--training_lr=0.1"], "seed=4, but"),
    }
    for run_id, (words, wanted) in cases.items():
        monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
        assert main(["attack", *TINY, *words]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert wanted in line
        assert run_id in line
    assert newest("attack").to_dictionary() == finished.to_dictionary()
    assert client.get_run(opened).info.status == "RUNNING"
    monkeypatch.setattr(process, "end_with_parents", lambda: None)
    assert main(["attack", *TINY, "--seed=3", "--training_lr=0.1"]) == 0
    taken = client.get_run(opened)
    assert (taken.info.status, taken.data.tags["rnp.entry"]) == ("FINISHED", "attack")
    assert taken.data.params["training_lr"] == "0.10"


@pytest.mark.slow
def test_training_that_diverges_is_an_error_and_no_result(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attack", *TINY, "--training_lr=1e6"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == "error: training diverged: the loss of epoch 1 is nan; give a training_lr below 1e+06"
    failed = newest("attack")
    assert failed.info.status == "FAILED"
    assert "acc" not in failed.data.metrics
    assert not artifacts(failed).exists() or not list(artifacts(failed).glob("model*"))


@pytest.mark.slow
@pytest.mark.parametrize("killed", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("shell", [False, True], ids=["direct", "below a shell"])
def test_the_step_ends_when_the_mlflow_run_that_started_it_is_killed(
    tmp_path: Path, killed: signal.Signals, shell: bool
) -> None:
    """A shell stays between MLflow and Python if a virtual environment is activated first."""
    if shell:  # what `bash -c` gets: more than one command
        project = json.dumps({"name": "p", "entry_points": {"attack": {"command": step_command() + "; true"}}})
        (tmp_path / "MLproject").write_text(project)
    words = [sys.executable, "-m", "mlflow", "run", str(tmp_path if shell else ROOT), "-e", "attack"]
    words += ["--env-manager", "local", *([] if shell else ["-P", "training_epochs=500", "-P", "width=4"])]
    bin_folder = Path(sys.executable).parent
    env = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID")}
    env |= {"PYTHONPATH": str(ROOT), "PATH": f"{bin_folder}{os.pathsep}{env['PATH']}"}
    outer = subprocess.Popen(words, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert outer.stderr is not None
    told: list[str] = []
    while "attack: run" not in (line := outer.stderr.readline()):
        told.append(line)
        assert line, "".join(told)
    outer.send_signal(killed)
    guard = threading.Timer(60, outer.stderr.close)
    guard.start()
    rest = outer.stderr.read()  # until the step, too, has closed it
    guard.cancel()
    outer.wait()
    assert rest.strip().splitlines()[-1].startswith("error: stopped, because the process that started"), rest
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = runs(entry="attack")
    assert run.info.status == "KILLED"


def step_command() -> str:
    return f"{sys.executable} -m rnp_mlflow attack --training_epochs=500 --width=4"


@pytest.mark.slow
def test_a_terminal_that_is_closed_ends_the_run_killed(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID")}
    words = [sys.executable, "-m", "rnp_mlflow", "attack", "--training_epochs=500", "--width=4"]
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, words, env | {"PYTHONPATH": str(ROOT), "TERM": "xterm"})
    seen = b""
    while b"/500" not in seen:  # the bar is drawn
        seen += os.read(terminal, 4096)
    os.close(terminal)
    guard = threading.Timer(60, os.kill, (child, signal.SIGKILL))
    guard.start()
    _, ended_by = os.waitpid(child, 0)
    guard.cancel()
    assert os.waitstatus_to_exitcode(ended_by) == 129
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = runs(entry="attack")
    assert (run.info.status, run.data.tags.get("rnp.error")) == ("KILLED", None)


@pytest.mark.slow
def test_kills_at_random_moments_leave_nothing_and_change_nothing(tmp_path: Path) -> None:
    """A short version of `kill_test.py`: SIGKILL and another signal, while the steps work."""
    draws = random.Random()
    place = Place(tmp_path)
    expected, seconds = place.whole_call()
    for number in (signal.SIGKILL, draws.choice(SIGNALS[1:])):
        kill_one(place, number, draws.uniform(0.4, 0.9) * seconds)
    check_whole(place, expected)
