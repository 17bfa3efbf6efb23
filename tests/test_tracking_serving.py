"""The purified model behind `mlflow models serve` and `predict`: the same logits as ours."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import outside_files as files
import pytest
import torch
from servers import serve

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
    logits: torch.Tensor = files.suspect()(feed(torch.from_numpy(PIXELS[:count].copy()), None))
    return logits.detach().numpy()


def ask(url: str, count: int) -> np.ndarray:
    body = json.dumps({"inputs": PIXELS[:count].tolist()}).encode()
    request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return np.array(json.load(answer)["predictions"])


def test_a_real_server_answers_any_batch_with_our_logits(address: str, tmp_path: Path) -> None:
    words = ["models", "serve", "-m", address, "--env-manager", "local"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with serve(*words, ready="/ping", home=tmp_path, PATH=path, MLFLOW_MODELS_WORKERS="1") as url:
        for count in (1, 7):
            np.testing.assert_allclose(ask(url, count), ours(count), atol=1e-5)


def test_the_predict_command_gives_our_logits(address: str, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps({"inputs": PIXELS[:3].tolist()}))
    words = ["models", "predict", "-m", address, "-i", f"{tmp_path}/in.json", "-o", f"{tmp_path}/out.json",
             "--env-manager", "local"]  # fmt: skip
    subprocess.run([sys.executable, "-m", "mlflow", *words], check=True, capture_output=True)
    answers = json.loads((tmp_path / "out.json").read_text())["predictions"]
    np.testing.assert_allclose(np.array(answers), ours(3), atol=1e-5)
