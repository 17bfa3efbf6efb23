"""A prune of a tiny model, from nothing, in some 20 seconds of one core; and what it leaves."""

import os
import sqlite3
import subprocess
from collections.abc import Sequence
from pathlib import Path

SETTINGS = {
    "threads": 1, "training_epochs": 1, "train_size": 300, "test_size": 100, "width": 4, "unlearning_epochs": 2,
    "recovering_epochs": 1, "proxy_steps": 3, "refine": 0, "eval_every": 1, "register_as": "small",
}  # fmt: skip


def prune(command: Sequence[str], home: Path, flags: Sequence[str] = (), **env: str) -> str:
    """Run `COMMAND prune` with these settings in the folder `home`; what it printed."""
    asked = [*command, "prune", *(f"--{name}={value}" for name, value in SETTINGS.items()), *flags]
    left_out = ("PYTHONPATH", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "VIRTUAL_ENV")
    inherited = {name: value for name, value in os.environ.items() if name not in left_out}
    done = subprocess.run(asked, cwd=home, env=inherited | env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def names(home: Path, table: str, entry: str) -> set[str]:
    """The metric or tag names (`table`: metrics, tags) of the finished run of an entry point in `home`'s store."""
    store = sqlite3.connect(home / "mlflow.db")
    with store:
        runs = "SELECT run_uuid FROM tags WHERE key = 'rnp.entry' AND value = ?"
        return {name for (name,) in store.execute(f"SELECT key FROM {table} WHERE run_uuid IN ({runs})", (entry,))}
