"""How a step ends that cannot do its work: refused in one line (exit code 2), stopped, or broken; no half result."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from small import SETTINGS
from stores import artifacts, newest, runs

from rnp_mlflow.cli import main
from rnp_mlflow.models import store as model_store

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("store")]

ROOT = Path(__file__).parents[1]


def bad_inputs(tmp: Path) -> dict[str, tuple[list[str], str]]:
    """name → (arguments, a word the one line must hold)."""
    chain = [f"--{name}={value}" for name, value in SETTINGS.items()]
    indexed = [word for word in chain if not word.startswith("--ratio=")]
    recover, attack = newest("recover"), newest("attack")
    mask = (artifacts(recover) / "mask_values.csv").read_text().splitlines()

    def write(name: str, lines: list[str]) -> Path:
        (tmp / name).write_text("\n".join(lines) + "\n")
        return tmp / name

    def masked(name: str, lines: list[str]) -> list[str]:
        return ["prune", f"--model_run_id={attack.info.run_id}", f"--mask_file={write(name, lines)}", "--ratio=0.2"]

    (tmp / "folder/train/a").mkdir(parents=True)
    (tmp / "folder/test/a").mkdir(parents=True)
    first = mask[1].rsplit(",", 1)[0]
    return {
        "dataset": (["attack", "--dataset=cifar11"], "cifar11"),
        "model": (["prune", "--model=resnet19"], "resnet19"),
        "no norm": (["prune", "--model=timm/test_nfnet", "--dataset=npz", f"--data_dir={tmp}/rgb.npz"], "no neurons"),
        "attack": (["prune", "--attack=badnet"], "badnet"),
        "target": (["attack", "--target=10"], "target=10"),
        "no data_dir": (["attack", "--dataset=folder"], "data_dir"),
        "missing folder": (["attack", "--dataset=folder", f"--data_dir={tmp}/none"], "does not exist"),
        "empty class": (["attack", "--dataset=folder", f"--data_dir={tmp}/folder"], "'a' is empty"),
        "ratio 0": ([*["prune", *chain], "--ratio=0"], "ratio=0"),
        "ratio over 1": ([*["prune", *chain], "--ratio=1.01"], "ratio=1.01"),
        "ratio too small": ([*["prune", *chain], "--ratio=0.02"], "fewer than two"),
        "index range": (["prune", *indexed, f"--index={write('i1', ['1', '600'])}"], "0 to 599"),
        "index words": (["prune", *indexed, f"--index={write('i2', ['1', 'two'])}"], "integer"),
        "index missing": (["prune", *indexed, f"--index={tmp}/i3"], "i3"),
        "mask missing": (["prune", f"--mask_file={tmp}/m0"], "m0"),
        "mask foreign": (masked("m1", [*mask[:-1], "other.bn,0,1.0"]), "other.bn"),
        "mask short": (masked("m2", mask[:-1]), "lacks 1"),
        "mask repeated": (masked("m3", [*mask, mask[1]]), "twice"),
        "mask NaN": (masked("m4", [mask[0], f"{first},nan", *mask[2:]]), "nan"),
        "mask range": (masked("m5", [mask[0], f"{first},1.2", *mask[2:]]), "1.2"),
        "mask words": (masked("m6", ["hello", "world"]), "not a mask row"),
        "both": (["prune", f"--mask_file={tmp}/m1", f"--recover_run_id={recover.info.run_id}"], "not both"),
        "unknown run": (["prune", f"--recover_run_id={'0' * 32}"], "no run"),
        "malformed run": (["prune", "--recover_run_id=../../etc"], "no run"),
        "other kind": (["prune", f"--recover_run_id={attack.info.run_id}"], "kind 'attack'"),
        "other settings": (["prune", f"--recover_run_id={recover.info.run_id}", "--attack=blended"], "badnets"),
        "cuda": ([*["prune", *chain], "--device=cuda:7"], "cuda:7"),
        "device": ([*["prune", *chain], "--device=gpu"], "gpu"),
        "rerun": (["rerun", f"--run_id={'0' * 32}"], "no run"),
    }


def test_bad_input_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    colour = np.zeros((40, 32, 32, 3), np.uint8)
    y = np.arange(40) % 4
    np.savez(tmp_path / "rgb.npz", x_train=colour, y_train=y, x_test=colour, y_test=y)
    for name, (arguments, word) in bad_inputs(tmp_path).items():
        capsys.readouterr()
        assert main(arguments) == 2, name
        errors = [line for line in capsys.readouterr().err.strip().splitlines() if not line.startswith("20")]
        last = errors[-1]
        assert last.startswith("error: "), name
        assert word in last, (name, last)
        assert not any("Traceback" in line for line in errors), name


def test_a_mask_of_another_model_is_refused_before_one_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mask.csv").write_text("layer,index,value\nother.bn,0,1.0\n")
    before = len(runs())
    assert main(["prune", "--width=4", "--train_size=600", "--seed=77", f"--mask_file={tmp_path}/mask.csv"]) == 2
    assert "the mask is not this model's" in capsys.readouterr().err
    assert len(runs()) == before


def test_an_unfinished_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    client = MlflowClient()
    run = client.create_run("0", tags={"rnp.entry": "recover"})
    try:
        assert main(["prune", f"--recover_run_id={run.info.run_id}"]) == 2
        assert "RUNNING, not FINISHED" in capsys.readouterr().err
    finally:
        client.set_terminated(run.info.run_id, "FAILED")
    foreign = client.create_run("0")
    client.set_terminated(foreign.info.run_id)
    assert main(["prune", f"--recover_run_id={foreign.info.run_id}"]) == 2
    assert "not a run of this project" in capsys.readouterr().err


def test_hostile_npz_is_refused_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "made"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (made,))

    np.savez(tmp_path / "evil.npz", x_train=np.array([Evil()], dtype=object), y_train=np.array([0]))
    assert main(["attack", "--dataset=npz", f"--data_dir={tmp_path}/evil.npz"]) == 2
    assert "pickle" in capsys.readouterr().err
    assert not made.exists()


def test_sigterm_leaves_runs_killed_and_no_half_result(store: Path) -> None:
    arguments = [sys.executable, "-m", "rnp_mlflow", "attack", "--training_epochs=500", "--seed=77"]
    env = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(arguments, cwd=store, env=env, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        while "attack: run" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        assert process.stderr.read().strip().splitlines()[-1] == "error: stopped by SIGTERM"
    finally:
        process.kill()
    killed = newest("attack")
    assert killed.info.status == "KILLED"
    assert not (artifacts(killed) / "model").exists()


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("no\nnumber"), 1, "ValueError: no (a defect of this program; see the run's error.txt)"),
        (OSError(28, "No space left on device", "model.safetensors"), 2, "No space left on device: model.safetensors"),
    ],
)
def test_a_defect_is_one_line_and_its_traceback_an_artifact(
    error: Exception, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(model_store, "save", broken)
    assert main(["attack", *(f"--{k}={SETTINGS[k]}" for k in ("width", "train_size", "training_epochs"))]) == code
    assert capsys.readouterr().err.strip().splitlines()[-1] == f"error: {line}"
    failed = newest("attack")
    assert failed.info.status == "FAILED"
    assert "Traceback" in (artifacts(failed) / "error.txt").read_text()
    assert not (artifacts(failed) / "model").exists()
