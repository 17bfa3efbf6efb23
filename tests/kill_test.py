"""Kill real processes of `main` and of `mlflow run -e main` at random moments, and hold the store to its word.

    python tests/kill_test.py --kill 50 --term 20 --int 20 --hup 10

After the next call no run is RUNNING, no temporary folder is left, steps that were finished are not made again, and the
results are the same bit for bit. The suite makes a few kills with it (`test_kills.py`).
"""

import argparse
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
TINY = {
    "width": 4, "train_size": 300, "test_size": 60, "training_epochs": 1, "ratio": 0.2, "unlearning_epochs": 1,
    "recovering_epochs": 1, "pruning_step": 0.4, "pruning_stride": 1, "holdout_crops": 1, "refine": 0, "threads": 1,
    "device": "cpu", "proxy_steps": 3, "precision": "fp32", "seed": 1,
}  # fmt: skip
Results = dict[str, list[tuple[str, str]]]


def as_in_a_terminal() -> None:
    """Take every signal: a background job ignores SIGINT, and `nohup` SIGHUP, and a call would inherit that."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Place:
    """A working folder with its own store and its own temporary files."""

    def __init__(self, home: Path):
        self.home, self.temporary = home, home / "tmp"
        self.temporary.mkdir()
        left_out = ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID")
        self.env = {name: value for name, value in os.environ.items() if name not in left_out}
        self.env |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary), "MLFLOW_DISABLE_TELEMETRY": "true"}

    def start(self, project: bool = False) -> subprocess.Popen[str]:
        """Start a call of `main`. project: by `mlflow run`."""
        if project:
            given = [word for name, value in TINY.items() for word in ("-P", f"{name}={value}")]
            words = ["mlflow", "run", str(ROOT), "-e", "main", "--env-manager", "local", *given]
        else:
            words = ["rnp_mlflow", "main", *(f"--{name}={value}" for name, value in TINY.items())]
        return subprocess.Popen(
            [sys.executable, "-m", *words], cwd=self.home, env=self.env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=as_in_a_terminal,
        )  # fmt: skip

    def whole_call(self) -> tuple[Results, float]:
        """Make a call that nobody kills; return what it left in the store, and how many seconds it took.

        Raises:
            AssertionError: it made a step again that the call before, which was killed, had finished.
        """
        left = self.left_by_killed()
        began = time.monotonic()
        process = self.start()
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors[-2000:]
        for entry, run_id in left.items():
            assert f"{entry}: takes run {run_id}" in errors, errors[-2000:]
        return self.results(), time.monotonic() - began

    def left_by_killed(self) -> dict[str, str]:
        """Return the newest finished steps that unfinished calls made, by entry point, and that no other has taken."""
        found = {}
        for run_id, entry, status in self.rows(
            "SELECT child.run_uuid, kind.value, parent.status FROM runs AS child "
            "JOIN tags AS kind ON kind.run_uuid = child.run_uuid AND kind.key = 'rnp.entry' "
            "JOIN tags AS nested ON nested.run_uuid = child.run_uuid AND nested.key = 'mlflow.parentRunId' "
            "JOIN runs AS parent ON parent.run_uuid = nested.value "
            "WHERE child.status = 'FINISHED' AND child.run_uuid NOT IN (SELECT tags.run_uuid FROM tags "
            "JOIN runs ON runs.run_uuid = tags.value WHERE key = 'rnp.taken_by' AND status = 'FINISHED') "
            "ORDER BY child.start_time"
        ):
            found[entry] = (run_id, status)
        return {entry: run_id for entry, (run_id, status) in found.items() if status != "FINISHED"}

    def rows(self, query: str) -> list[tuple[str, ...]]:
        """Return the rows that a query of the store gives; none if there is no store yet."""
        if not (self.home / "mlflow.db").exists():
            return []
        with closing(sqlite3.connect(self.home / "mlflow.db", timeout=60)) as store:
            return store.execute(query).fetchall() if store.execute("PRAGMA table_info(runs)").fetchall() else []

    def running(self) -> list[str]:
        """Return the IDs of the runs that are RUNNING."""
        return [run_id for (run_id,) in self.rows("SELECT run_uuid FROM runs WHERE status = 'RUNNING'")]

    def results(self) -> Results:
        """Return of the newest finished run of each kind its metrics, and the digest of what later steps read."""
        found: Results = {}
        newest = (
            "SELECT run_uuid, value FROM runs JOIN tags USING (run_uuid) WHERE key = 'rnp.entry' "
            "AND status = 'FINISHED' ORDER BY start_time"
        )
        for run_id, entry in self.rows(newest):
            digest = f"SELECT key, value FROM tags WHERE key = 'rnp.output' AND run_uuid = '{run_id}'"
            metrics = f"SELECT key, printf('%d %.17g', step, value) FROM metrics WHERE run_uuid = '{run_id}'"
            found[entry] = sorted(self.rows(digest) + self.rows(metrics))  # type: ignore[arg-type]
        return found

    def ours(self) -> list[str]:
        """Return the temporary folders of this project."""
        return [place.name for place in self.temporary.glob("rnp-*")]


def kill_one(place: Place, number: signal.Signals, after: float, project: bool = False) -> str:
    """Start a call and send it a signal after some seconds; return what happened, in a word or two.

    project: the call is one of `mlflow run`, and it alone gets the signal, not the step that it started.

    Raises:
        AssertionError: it hung, printed a traceback, or left a run open though it could have closed it.
    """
    open_before, folders_before = set(place.running()), set(place.ours())  # of calls that SIGKILL ended
    process = place.start(project)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
    try:
        _, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"the call hung after {number.name} at {after:.2f} s") from None
    context = f"{number.name} at {after:.2f} s, exit {process.returncode}: {errors[-1500:]}"
    if process.returncode == 0:
        return "finished first"
    assert project or "Traceback" not in errors, context  # those of `mlflow run` are its own
    assert project or process.returncode in (-number, 128 + number), context
    if number != signal.SIGKILL and not project:
        assert set(place.running()) <= open_before, context
        assert set(place.ours()) <= folders_before, context
    return "left a run open" if set(place.running()) - open_before else "left no run open"


def check_whole(place: Place, expected: Results) -> None:
    """Make a call that nobody kills, and hold the store to its word."""
    results, _ = place.whole_call()
    assert results == expected, "the results differ"
    assert not place.running()
    assert not place.ours()
    assert place.rows("SELECT 1 FROM experiments")


def main() -> None:
    """Kill as often as asked, and print what happened."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for number in SIGNALS:
        words.add_argument(f"--{number.name[3:].lower()}", type=int, default=2, help=f"how many {number.name}")
    words.add_argument("--seed", type=int, default=0, help="of the moments, and of their order")
    given = words.parse_args()
    draws, found = random.Random(given.seed), Counter[str]()
    kills = [number for number in SIGNALS for _ in range(getattr(given, number.name[3:].lower()))]
    draws.shuffle(kills)
    with tempfile.TemporaryDirectory() as name:
        place = Place(Path(name))
        place.whole_call()  # the first also fills the disk's cache
        expected, seconds = place.whole_call()
        for count, number in enumerate(kills, 1):
            project = count % 4 == 0
            after = draws.uniform(0, seconds + 3 * project)
            how = f"{number.name} to {'mlflow run' if project else 'main'}"
            found[f"{how}: {kill_one(place, number, after, project)}"] += 1
            if count % 5 == 0 or count == len(kills):
                left, taken = len(place.running()), sorted(place.left_by_killed())
                check_whole(place, expected)
                print(f"{count} kills: {left} runs were RUNNING, 0 after the next call, which took {taken}", flush=True)
        others = [p.name for p in place.temporary.iterdir()]
        print(f"a whole call takes {seconds:.1f} s; {len(kills)} kills; left in the temporary folder: {others}")
        for line, count in sorted(found.items()):
            print(f"{count:4}  {line}")


if __name__ == "__main__":
    main()
