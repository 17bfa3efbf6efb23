"""mlflow's servers on loopback, in the environment of the tests."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


class Server:
    """`mlflow WORDS` in the folder `home`, at an address of its own, which it keeps when it is started again."""

    def __init__(self, *words: str, ready: str, home: Path, **env: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.command = [sys.executable, "-m", "mlflow", *words, "--host", "127.0.0.1", "--port", str(port)]
        self.url, self.ready, self.home, self.env = f"http://127.0.0.1:{port}", ready, home, os.environ | env
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self.home / "log").open("w") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.home, env=self.env, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(f"{self.url}{self.ready}", self.process, self.home / "log")

    def signal(self, number: int) -> None:
        """Send a signal to it and to its own processes."""
        assert self.process is not None
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(self.process.pid, number)

    def stop(self) -> None:
        """End it, if it runs."""
        if self.process is not None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            self.process.wait(30)
            self.process = None


@contextmanager
def serve(*words: str, ready: str, home: Path, **env: str) -> Iterator[str]:
    """Run `mlflow WORDS` in the folder `home` until the context ends; the URL, once it answers at `ready`."""
    server = Server(*words, ready=ready, home=home, **env)
    try:
        server.start()
        yield server.url
    finally:
        server.stop()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()[-2000:]
            time.sleep(0.5)
    raise AssertionError(f"the server did not answer within 120 s: {log.read_text()[-2000:]}")


@contextmanager
def postgres() -> Iterator[str]:
    """Run a PostgreSQL server with an empty database until the context ends; its URI. Skip the test without one."""
    tools = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = shutil.which("initdb") or (str(tools[-1]) if tools else None)
    if initdb is None or not importlib.util.find_spec("psycopg2"):
        pytest.skip("there is no PostgreSQL here, or no psycopg2")
    home = Path(tempfile.mkdtemp())
    as_user: list[str] = []
    if os.getuid() == 0:  # it refuses to be run by root
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        shutil.chown(home, "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    control = [*as_user, str(Path(initdb).with_name("pg_ctl")), "-D", str(home / "data"), "-w"]
    options = f"-p {port} -k {home} -c listen_addresses=127.0.0.1 -c fsync=off"
    try:
        subprocess.run([*as_user, initdb, "-D", str(home / "data"), "-U", "rnp", "-A", "trust"], check=True,
                       stdout=subprocess.DEVNULL, cwd=home)  # fmt: skip
        subprocess.run([*control, "-l", str(home / "log"), "-o", options, "start"], check=True,
                       stdout=subprocess.DEVNULL, cwd=home)  # fmt: skip
        yield f"postgresql+psycopg2://rnp@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], stdout=subprocess.DEVNULL, cwd=home)
        shutil.rmtree(home)
