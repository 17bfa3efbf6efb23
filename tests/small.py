"""A chain of steps on a tiny model, in some 20 seconds of one core, and the store it is in."""

import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from stores import enter

from rnp_mlflow.cli import main

SETTINGS = {
    "width": 4, "train_size": 600, "test_size": 100, "training_epochs": 1, "ratio": 0.2, "unlearning_epochs": 2,
    "recovering_epochs": 2, "pruning_step": 0.3, "pruning_stride": 1, "holdout_crops": 1, "refine": 0,
    "threads": 2, "device": "cpu", "proxy_steps": 3,
}  # fmt: skip


def prune(command: Sequence[str], home: Path, flags: Sequence[str] = (), **env: str) -> str:
    """Run `COMMAND prune` in the folder `home`, with all that a prune can log; return what it printed."""
    settings = SETTINGS | {"register_as": "small"}
    words = [*command, "prune", *(f"--{name}={value}" for name, value in settings.items()), *flags]
    left_out = ("PYTHONPATH", "VIRTUAL_ENV", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID")
    inherited = {name: value for name, value in os.environ.items() if name not in left_out}
    done = subprocess.run(words, cwd=home, env=inherited | env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def table(home: Path, query: str) -> list[Any]:
    """Return the rows that a query of `home`'s store gives."""
    with closing(sqlite3.connect(home / "mlflow.db")) as store:
        return store.execute(query).fetchall()


def names(home: Path, table: str, entry: str) -> set[str]:
    """Return the names in a table (metrics or tags) of the finished run of an entry point in `home`'s store."""
    with closing(sqlite3.connect(home / "mlflow.db")) as store:
        of_entry = "SELECT run_uuid FROM tags WHERE key = 'rnp.entry' AND value = ?"
        return {name for (name,) in store.execute(f"SELECT key FROM {table} WHERE run_uuid IN ({of_entry})", (entry,))}


def finished_chain(home: Path) -> Path:
    """Make a store in the new folder `home` with one finished chain in it, or wait for the process that makes it."""
    with FileLock(f"{home}.lock"):
        if not home.exists():
            threads = torch.get_num_threads()
            unfinished = Path(tempfile.mkdtemp(prefix=home.name, dir=home.parent))
            with pytest.MonkeyPatch.context() as patch:
                enter(unfinished, patch)
                assert call("prune") == 0
            torch.set_num_threads(threads)
            unfinished.rename(home)
    return home


def copy_store(home: Path, to: Path) -> None:
    """Copy a store with its artifacts; the copy's runs have the same IDs, and their artifacts are its own."""
    shutil.copytree(home, to)
    with closing(sqlite3.connect(to / "mlflow.db")) as store, store:
        ((root,),) = store.execute("SELECT artifact_location FROM experiments WHERE experiment_id = 0")
        former = str(root).removesuffix("/mlruns/0")
        columns = {"experiments": "artifact_location", "runs": "artifact_uri", "logged_models": "artifact_location"}
        for table, column in columns.items():
            store.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (former, str(to)))
        assert not [line for line in store.iterdump() if former in line], "a path of the store that was copied"


def call(entry: str, **values: object) -> int:
    """Run an entry point in this process, if it makes a chain with `SETTINGS`; return the exit code."""
    known = SETTINGS if entry in ("prune", "main") else {}
    return main([entry, *(f"--{name}={value}" for name, value in (known | values).items())])
