"""The purified model behind `mlflow models serve` and `predict`: the same logits as ours."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np
import outside_files as files
import pytest
import torch

from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.tracking import models

pytestmark = pytest.mark.slow

PIXELS = files.clean_images(7, 6)[0].transpose(0, 3, 1, 2)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a model logged as the prune step logs it, in a store of its own."""
    home, before = tmp_path_factory.mktemp("serving"), mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{home}/mlflow.db")
    experiment = mlflow.create_experiment("serving", artifact_location=(home / "artifacts").as_uri())
    with mlflow.start_run(experiment_id=experiment):  # set_experiment would last beyond this file
        model_id = models.log(
            files.suspect(), files.spec(), torch.from_numpy(PIXELS[:2].copy()), name="purified", tags={}, card=""
        )
    os.environ["MLFLOW_TRACKING_URI"] = mlflow.get_tracking_uri()
    yield f"models:/{model_id}"
    del os.environ["MLFLOW_TRACKING_URI"]
    mlflow.set_tracking_uri(before)


def ours(count: int) -> np.ndarray:
    feed = Preprocess(files.MEAN, files.STD)
    return files.suspect()(feed(torch.from_numpy(PIXELS[:count].copy()), None)).detach().numpy()


@contextmanager
def server(address: str) -> Iterator[str]:
    """`mlflow models serve` on loopback, in the environment of the tests; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["models", "serve", "-m", address, "-p", str(port), "-h", "127.0.0.1", "--env-manager", "local"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "MLFLOW_MODELS_WORKERS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "mlflow", *words], env=env, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def ask(url: str, count: int) -> np.ndarray:
    body = json.dumps({"inputs": PIXELS[:count].tolist()}).encode()
    request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return np.array(json.load(answer)["predictions"])


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{url}/ping", timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the server did not answer within 120 s")


def test_a_real_server_answers_any_batch_with_our_logits(address: str) -> None:
    with server(address) as url:
        wait_for(url)
        for count in (1, 7):
            np.testing.assert_allclose(ask(url, count), ours(count), atol=1e-5)


def test_the_predict_command_gives_our_logits(address: str, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps({"inputs": PIXELS[:3].tolist()}))
    words = ["models", "predict", "-m", address, "-i", tmp_path / "in.json", "-o", tmp_path / "out.json",
             "--env-manager", "local"]  # fmt: skip
    subprocess.run([sys.executable, "-m", "mlflow", *words], check=True, capture_output=True)
    answers = json.loads((tmp_path / "out.json").read_text())["predictions"]
    np.testing.assert_allclose(np.array(answers), ours(3), atol=1e-5)
