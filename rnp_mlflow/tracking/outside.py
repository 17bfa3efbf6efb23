"""Weights out of an MLflow model or artifact, without loading the model: its files are only read."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow.tracking import MlflowClient
from torch import Tensor

from rnp_mlflow.errors import LineageError, ModelError
from rnp_mlflow.loading import WAY_OUT, read_weights
from rnp_mlflow.models.store import SPEC, ModelSpec, read_spec
from rnp_mlflow.tracking.runs import PREFIX

READABLE = (".pt2", ".safetensors")
TORCH = (".pth", ".pt", ".tar")


@contextmanager
def fetched(uri: str) -> Iterator[Path]:
    """The artifacts of `models:/…` or `runs:/…`, downloaded to a folder that is removed after.

    Raises:
        LineageError: there is nothing of that address.
    """
    if not uri.startswith(("models:/", "runs:/")):
        raise LineageError(f"model_uri={uri}: give models:/NAME/VERSION, models:/NAME@ALIAS or runs:/RUN_ID/PATH")
    with tempfile.TemporaryDirectory(prefix="rnp-") as folder:
        try:
            place = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))
        except (mlflow.MlflowException, OSError) as error:
            raise LineageError(f"{uri} cannot be fetched: {str(error).splitlines()[0][:160]}") from None
        yield place


def recorded_accuracy(uri: str) -> float | None:
    """The accuracy (0 to 1) that the store records of a model of ours; None if it records none.

    It stands in the metric `acc` of the run, or in the tag `rnp.acc` of the registered version.
    """
    client, (kind, _, rest) = MlflowClient(), uri.partition(":/")
    try:
        if kind == "runs":
            found = client.get_run(rest.strip("/").partition("/")[0]).data.metrics.get("acc")
        elif "@" in rest:
            found = client.get_model_version_by_alias(*rest.split("@", 1)).tags.get(f"{PREFIX}acc")
        else:
            found = client.get_model_version(*rest.split("/", 1)).tags.get(f"{PREFIX}acc")
        return None if found is None else float(found)
    except (mlflow.MlflowException, TypeError, ValueError):
        return None


def read_folder(place: Path) -> tuple[dict[str, Tensor], ModelSpec | None]:
    """Weights from the one file of them in a folder, and our description of the model where it has one.

    A pt2 archive or safetensors file is preferred; a torch file is taken if it is a state dict.

    Raises:
        ModelError: there is none or more than one, or it is refused (a pickled module, say).
    """
    files = sorted(file for file in place.rglob("*") if file.is_file() and "sample_inputs" not in file.parts)
    for endings in (READABLE, TORCH):
        if found := [file for file in files if file.suffix in endings]:
            break
    else:
        raise ModelError(f"{place.name} has no file of weights (pt2, safetensors or a state dict); {WAY_OUT}")
    if len(found) > 1:
        raise ModelError(f"{place.name} has {len(found)} files of weights, {found[0].name} and others; name one")
    return read_weights(found[0]), _spec(place)


def _spec(place: Path) -> ModelSpec | None:
    """Our `model.json` beside the model. MLmodel itself is not looked at: YAML can grow without bound."""
    file = place / "extra_files" / SPEC
    return read_spec(file) if file.is_file() else None
