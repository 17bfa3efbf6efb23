"""Shared fixtures. Every test has its own tracking store; none reaches the network."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Files run side by side, so threads that wait must leave the processor to those that work: CI takes 11 minutes with it,
# 13.5 without (AMD EPYC, 2 cores). Read as torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from torch import nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
# An experiment that the user chose; tests/small.py's runs go to the package's own.
GIVEN = os.environ.setdefault("MLFLOW_EXPERIMENT_ID", "0")

# The longest files, begun first, so that none is left alone at the end with a core idle.
FIRST = (
    "test_many_processes.py", "test_lost_stores.py", "test_kills.py", "test_norm_free.py", "test_real_data.py",
    "test_main_job.py", "test_unfinished.py", "test_reuse.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


@pytest.fixture(autouse=True, scope="module")
def own_threads() -> Iterator[None]:
    """A file's steps set the process's threads; the next file has them as they were."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def chosen_experiment() -> tuple[str | None, str | None]:
    """Return what MLflow takes for the experiment of a new run: its global value, and the environment's."""
    fluent = sys.modules.get("mlflow.tracking.fluent")  # not imported yet: it has none
    return getattr(fluent, "_active_experiment_id", None), os.environ.get("MLFLOW_EXPERIMENT_ID")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Fail a test that leaves an experiment behind, which every later test of this process would take."""
    yield
    assert chosen_experiment() == (None, GIVEN), f"{item.nodeid} left the experiment {chosen_experiment()} behind"


class TwoPaths(nn.Module):
    """Two neurons: the first carries the image's class, the second says 'class 0' whatever comes.

    Input (N, 1, H, W): the class is 0 where the mean is negative, 1 where it is positive.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(2)
        self.linear = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([1.0, 0.0]).view(2, 1, 1, 1))
            self.norm.bias.copy_(torch.tensor([0.0, 0.0]))
            self.linear.weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(self.norm(self.conv(x)).mean((2, 3)))
        return logits


@pytest.fixture
def small_net() -> nn.Module:
    """Conv, norm, ReLU, conv, norm, pool, linear: 4 + 6 neurons, 3 classes, 2-channel images."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


@pytest.fixture
def images() -> torch.Tensor:
    """uint8 (40, 2, 6, 6)."""
    return torch.randint(256, (40, 2, 6, 6), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.fixture
def labels() -> torch.Tensor:
    """int64 (40,), 3 classes."""
    return torch.arange(40) % 3


def scaled(batch: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """The plainest transform: to [-1, 1], no augmentation."""
    return batch.float() / 127.5 - 1


@pytest.fixture(scope="session")
def finished_chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store in which one small chain has finished: made once for all workers, to be copied only."""
    import small  # imports MLflow, which most tests do without

    base = tmp_path_factory.getbasetemp()
    return small.finished_chain((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished_chain")


@pytest.fixture
def store(finished_chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The test's own store with one finished small chain, in the working folder; no run is left running in it."""
    import small  # these two import MLflow, which most tests do without
    import stores

    home = tmp_path / "store"
    small.copy_store(finished_chain, home)
    stores.enter(home, monkeypatch)
    yield home
    stores.assert_none_running()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The unpacked real data; the test is skipped where they are absent."""
    root = Path(os.environ.get("RNP_SHARED", Path(__file__).parents[2] / "shared"))
    if not (root / "data" / "unpack").is_file():
        pytest.skip(f"real data are not there: {root}/data/unpack (set RNP_SHARED)")
    done = subprocess.run([root / "data" / "unpack"], check=True, capture_output=True, text=True)
    return Path(done.stdout.strip().splitlines()[-1])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> "list[Figure]":
    """The figures that are saved while the test runs."""
    from matplotlib.figure import Figure

    found: list[Figure] = []
    savefig = Figure.savefig

    def save(own: Figure, *to: Path, **how: Any) -> None:
        if own not in found:
            found.append(own)
        savefig(own, *to, **how)

    monkeypatch.setattr(Figure, "savefig", save)
    return found
