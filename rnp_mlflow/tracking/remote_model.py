"""Read weights from an MLflow model or artifact without loading the model: its files are only read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from torch import Tensor

from rnp_mlflow.errors import LineageError, ModelError
from rnp_mlflow.loading import SAVE_HINT, read_weights
from rnp_mlflow.models.store import SPEC, ModelSpec, read_spec
from rnp_mlflow.tracking import scratch, store
from rnp_mlflow.tracking.runs import PREFIX

READABLE = (".pt2", ".safetensors")
TORCH = (".pth", ".pt", ".tar")


@contextmanager
def downloaded(uri: str) -> Iterator[Path]:
    """Download the artifacts of `models:/…` or `runs:/…` to a folder that is removed afterwards.

    Raises:
        LineageError: the address is malformed, or nothing is stored there.
    """
    if not uri.startswith(("models:/", "runs:/")):
        raise LineageError(f"model_uri={uri}: give models:/NAME/VERSION, models:/NAME@ALIAS or runs:/RUN_ID/PATH")
    with scratch.folder() as place:
        try:
            folder = Path(store.whole(mlflow.artifacts.download_artifacts)(artifact_uri=uri, dst_path=place))
        except (mlflow.MlflowException, OSError) as error:
            raise LineageError(f"{uri} cannot be fetched: {str(error).splitlines()[0][:160]}") from None
        yield folder


def recorded_accuracy(uri: str) -> float | None:
    """Return the accuracy (0 to 1) that the store records for one of our models; None if it records none.

    The accuracy is the metric `acc` of the run, or the tag `rnp.acc` of the registered version.
    """
    client, (kind, _, rest) = store.client(), uri.partition(":/")
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


def read_folder(folder: Path) -> tuple[dict[str, Tensor], ModelSpec | None]:
    """Read the only file of weights in a folder, and our description of the model if there is one.

    A pt2 archive or safetensors file is preferred; a torch file is accepted if it is a state dict.

    Raises:
        ModelError: there is no such file or several, or it is refused (a pickled module, for example).
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file() and "sample_inputs" not in file.parts)
    for endings in (READABLE, TORCH):
        if found := [file for file in files if file.suffix in endings]:
            break
    else:
        raise ModelError(f"{folder.name} has no file of weights (pt2, safetensors or a state dict); {SAVE_HINT}")
    if len(found) > 1:
        raise ModelError(
            f"{folder.name} has {len(found)} files of weights, {found[0].name} and others; give one of them"
        )
    return read_weights(found[0]), _spec(folder)


def _spec(folder: Path) -> ModelSpec | None:
    """Read our `model.json` next to the model, if any. MLmodel itself is ignored: YAML can expand without bound."""
    file = folder / "extra_files" / SPEC
    return read_spec(file) if file.is_file() else None
