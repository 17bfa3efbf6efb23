"""The process around a step: its memory, its imports, and what it measures once."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest
import torch
from small import call
from stores import newest

from rnp_mlflow import config, pipeline
from rnp_mlflow.steps import runtime, subject, unlearn
from rnp_mlflow.steps.clean import recorded
from rnp_mlflow.steps.plan import make_plan
from rnp_mlflow.tracking.runs import StepRun

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
P = ParamSpec("P")
R = TypeVar("R")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's memory, Linux's figures of it")
def test_memory_is_kept_while_a_step_works_and_given_back_after_it_or_at_once_where_it_is_spared() -> None:
    """30 blocks of 16 MiB, the last still in use: it would hold the others, were they only trimmed from the end."""
    program = (
        "import torch; from rnp_mlflow.config import Prune; from rnp_mlflow.steps import runtime\n"
        "def used(): return int(open('/proc/self/statm').read().split()[1]) * 4 // 1024\n"
        "def left():\n"
        "    blocks = [torch.ones(4 << 20) for _ in range(30)]; last = blocks.pop(); del blocks\n"
        "    return used() - before\n"
        "runtime.prepare(Prune()); before = used()\n"
        "with runtime.low_memory_malloc(): spared = left()\n"
        "with runtime.progress('epochs', 1) as advance: held = left(); advance(); advanced = used() - before\n"
        "kept = left(); runtime.release_memory(); print(spared, held, advanced, kept, used() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    spared, held, advanced, kept, left = map(int, done.stdout.split())
    assert spared < 100
    assert held > 400
    assert advanced < 100
    assert kept > 400
    assert left < 100


def test_a_step_on_the_cpu_does_without_triton() -> None:
    program = (
        "import torch; from rnp_mlflow.config import Prune; from rnp_mlflow.steps import runtime\n"
        "runtime.prepare(Prune(device='cpu'))\n"
        "ones = torch.ones(2, 2); print(torch.export.export(torch.nn.Linear(2, 2), (ones,)).module()(ones).shape)\n"
        "import sys; print([name for name in sys.modules if name.startswith('triton.')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert (done.stdout.splitlines(), done.stderr) == (["torch.Size([2, 2])", "[]"], "")


@pytest.mark.usefixtures("store")
def test_memory_is_spared_while_a_model_unlearns(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    @contextmanager
    def sparing() -> Iterator[None]:
        events.append("spared")
        yield
        events.append("kept")

    def recording(function: Callable[P, R]) -> Callable[P, R]:
        def record_and_call(*args: P.args, **kwargs: P.kwargs) -> R:
            events.append("unlearn")
            return function(*args, **kwargs)

        return record_and_call

    monkeypatch.setattr(runtime, "low_memory_malloc", sparing)
    monkeypatch.setattr(unlearn, "unlearn_model", recording(pipeline.unlearn_model))
    attack = newest("attack").info.run_id
    assert call("unlearn", model_run_id=attack, ratio=0.2, unlearning_epochs=1, proxy_steps=0, threads=2) == 0
    assert events == ["spared", "unlearn", "kept"]


class TagsOnly(StepRun):
    """A run that remembers the tags it is given, and is in no store."""

    def __init__(self) -> None:
        self.given: list[Mapping[str, object]] = []

    def tags(self, values: Mapping[str, object]) -> None:
        self.given.append(values)


@pytest.mark.usefixtures("store")
def test_what_auto_precision_means_is_measured_once_for_the_same_model_and_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[str] = []

    def measure(precision: str, *rest: object) -> str:
        measured.append(precision)
        return "bf16"

    monkeypatch.setattr(subject, "resolve_precision", measure)
    monkeypatch.setattr(subject, "RESOLVED_PRECISION", {})
    attack, unlearn = newest("attack").info.run_id, newest("unlearn").info.run_id
    suspect = subject.load(attack, make_plan("prune", {}), torch.device("cpu"))
    clean, run = recorded(unlearn, suspect.data, torch.device("cpu")), TagsOnly()
    for settings in (config.Unlearn(threads=2), config.Recover(threads=2), config.Prune(threads=1)):
        assert suspect.resolve_precision(run, settings, clean).precision == "bf16"
    assert measured == ["auto", "auto"], "once for each number of threads"
    assert run.given == 3 * [{"precision": "bf16"}]
