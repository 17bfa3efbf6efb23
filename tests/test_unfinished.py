"""A long step that was killed goes on from its saved state, and its result is equal bit for bit."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import scaled
from safetensors.torch import load, save
from small import SETTINGS
from tensors import seeded
from torch import Tensor, nn

from rnp_mlflow.attacks.train import TrainParams, train
from rnp_mlflow.core.batches import EpochRecord, TrainingHooks
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.keeping import NOWHERE, Keeper, State
from rnp_mlflow.core.params import RecoverParams, UnlearnParams
from rnp_mlflow.core.proxy import ProxyTrigger
from rnp_mlflow.core.recover import recover
from rnp_mlflow.core.units import remember_units
from rnp_mlflow.core.unlearn import unlearn
from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.steps.unfinished import DAYS, LocalKeeper, remove_old

ROOT = Path(__file__).parents[1]


class KilledError(Exception):
    """Stands for a kill."""


@dataclass
class Kept:
    """Saves after every step, and is killed after so many."""

    last: int
    state: tuple[bytes, str] | None = None
    epochs: list[EpochRecord] = field(default_factory=list)

    def load(self) -> State | None:
        return State(load(self.state[0]), json.loads(self.state[1])) if self.state else None

    def is_due(self) -> bool:
        return True

    def save(self, state: State) -> None:
        self.state = (
            save({k: v.clone(memory_format=torch.contiguous_format) for k, v in state.tensors.items()}),
            json.dumps(state.values),
        )
        self.last -= 1
        if self.last == 0:
            raise KilledError


Loop = Callable[[Keeper], tuple[list[Tensor], object]]


LOOPS = ("attack", "unlearn by step", "unlearn by epoch", "recover")
# Without BatchNorm, AdamW trains, unlearning measures each step, and recovery's proxy follows the mask.
WITHOUT = ("attack without norms", "unlearn without norms by step", "recover without norms")


@pytest.fixture(params=[*LOOPS, *WITHOUT])
def loop(request: pytest.FixtureRequest, small_net: nn.Module, images: Tensor, labels: Tensor) -> Loop:
    """A loop of several epochs: keeper → its tensors, and all else that it returns."""

    def run(keeper: Keeper) -> tuple[list[Tensor], object]:
        net, clean = copy.deepcopy(small_net), LabeledImages(images, labels)
        bare = "without norms" in request.param
        if bare:
            net = nn.Sequential(*(layer for layer in net.children() if not isinstance(layer, nn.BatchNorm2d)))
        net.insert(2, nn.Dropout(0.2))  # type: ignore[operator]
        remember_units(net, scaled(images[:2], None))
        torch.manual_seed(3)
        epochs: list[EpochRecord] = []
        hooks = TrainingHooks(on_epoch=epochs.append, keeper=keeper)
        if request.param.startswith("attack"):
            how = TrainParams(3, 0.1, 16, adamw=bare)
            found: Any = train(net, ImageSet(images, labels), scaled, seeded(5), how, on_epoch=epochs.append,
                               keeper=keeper)  # fmt: skip
            return list(net.state_dict().values()), (found, epochs)
        if request.param.startswith("recover"):
            delta = torch.full_like(images[0], 0.1, dtype=torch.float32)
            proxy = ProxyTrigger(0, delta, *(torch.full((len(delta), 1, 1), bound) for bound in (-1.0, 1.0)))
            suspect = copy.deepcopy(net) if bare else None
            recovered = recover(net, clean, scaled, seeded(5), RecoverParams(recovering_epochs=3,
                                recovering_batch_size=16), hooks=hooks, proxy=proxy, suspect=suspect)  # fmt: skip
            return list(recovered.mask.values()), (recovered.history, epochs)
        stop: Any = request.param.rpartition(" ")[2]
        params = UnlearnParams(unlearning_epochs=3, unlearning_batch_size=16, unlearning_stop=stop, clean_threshold=0.0)
        result = unlearn(net, clean, scaled, seeded(5), params, hooks=hooks)
        return list(result.model.state_dict().values()), (result.history, result.checks, result.accuracy, epochs)

    return run


@pytest.mark.parametrize("kills", [(1,), (5,), (3, 4)])
def test_a_loop_that_is_killed_goes_on_to_the_same_bits(loop: Loop, kills: tuple[int, ...]) -> None:
    tensors, rest = loop(NOWHERE)
    keeper = Kept(0)
    for count in kills:
        keeper.last = count
        with pytest.raises(KilledError):
            loop(keeper)
    again, rest_again = loop(keeper)
    assert all(torch.equal(one, other) for one, other in zip(tensors, again, strict=True))
    assert rest_again == rest


def test_a_state_that_is_not_whole_is_not_used(tmp_path: Path) -> None:
    keeper = LocalKeeper(tmp_path, None)
    assert keeper.load() is None
    keeper.save(State({"a": torch.arange(3)}, {"b": [1.5, None]}))
    found = keeper.load()
    assert found
    assert (found.tensors["a"].tolist(), found.values) == ([0, 1, 2], {"b": [1.5, None]})
    content = bytearray(keeper.file.read_bytes())
    content[-1] ^= 1
    keeper.file.write_bytes(content)
    assert keeper.load() is None
    assert not keeper.is_due()


def test_a_disk_that_takes_no_state_is_said_once_and_the_work_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way of the folder")
    keeper = LocalKeeper(tmp_path / "file", None)
    keeper.save(State())
    assert "so a kill loses its work" in caplog.text
    assert not keeper.is_due()
    assert [place.name for place in tmp_path.iterdir()] == ["file"]


def test_old_states_alone_are_removed(tmp_path: Path) -> None:
    for name, days in (("old", DAYS + 1), ("new", DAYS - 1)):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.lock").touch()
        then = time.time() - days * 86400
        os.utime(tmp_path / name, (then, then))
    remove_old(tmp_path)
    assert {place.name for place in tmp_path.iterdir()} == {"new", "new.lock"}


KILLED = """
import os, signal, sys
from rnp_mlflow.steps import unfinished
from rnp_mlflow.cli import main
step, count = sys.argv[1], int(sys.argv[2])
unfinished.SECONDS = unfinished.COST = 0
save, seen = unfinished.LocalKeeper.save, []
def saved(self, state):
    save(self, state)
    seen.append("attack" if "rate" in state.values else "unlearn" if "checks" in state.values else "recover")
    if seen.count(step) == count:
        os.kill(os.getpid(), signal.SIGKILL)
unfinished.LocalKeeper.save = saved
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.slow
def test_sigkill_in_each_long_step_costs_no_bit(tmp_path: Path) -> None:
    def run(home: Path, step: str, count: int) -> subprocess.CompletedProcess[str]:
        home.mkdir(exist_ok=True)
        env = os.environ | {"XDG_CACHE_HOME": str(home / "cache"), "PYTHONPATH": str(ROOT)}
        env["MLFLOW_TRACKING_URI"] = f"sqlite:///{home}/mlflow.db"
        words = [sys.executable, "-c", KILLED, step, str(count), "prune", *(f"--{k}={v}" for k, v in SETTINGS.items())]
        return subprocess.run(words, cwd=home, env=env, capture_output=True, text=True, timeout=300)

    def digests(home: Path) -> set[tuple[str, str]]:
        manifests = [json.loads(file.read_text()) for file in home.glob("mlruns/*/*/artifacts/manifest.json")]
        return {(name, digest) for found in manifests for name, digest in found.items() if not name.endswith("html")}

    undisturbed = run(tmp_path / "undisturbed", "none", 1)
    assert undisturbed.returncode == 0, undisturbed.stderr
    home = tmp_path / "killed"
    told = ""
    for step, count in {"attack": 3, "unlearn": 1, "recover": 5}.items():
        killed = run(home, step, count)
        assert killed.returncode == -signal.SIGKILL, step
        assert list(home.glob("cache/rnp_mlflow/unfinished/*/state"))
        told += killed.stderr
    last = run(home, "none", 1)
    assert last.returncode == 0, last.stderr
    went_on = [line.split(",")[0] for line in (told + last.stderr).splitlines() if "goes on" in line]
    assert went_on == ["  goes on in epoch 1", "  goes on in epoch 1", "  goes on in epoch 2"]
    assert not list(home.glob("cache/rnp_mlflow/unfinished/*/state"))
    whole = {(n, d) for n, d in digests(tmp_path / "undisturbed") if n.endswith((".safetensors", ".csv", "values.txt"))}
    assert whole
    assert whole <= digests(home)
