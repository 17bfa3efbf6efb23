"""Read weights from an MLflow model or artifact without loading the model: its files are only read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import mlflow
from torch import Tensor

from rnp_mlflow.errors import LineageError, ModelError
from rnp_mlflow.loading import SAVE_HINT, files_below, read_weights
from rnp_mlflow.models.store import SPEC, ModelSpec, read_spec
from rnp_mlflow.tracking import scratch, store
from rnp_mlflow.tracking.runs import PREFIX

READABLE = (".pt2", ".safetensors")
TORCH = (".pth", ".pt", ".tar")
HOPS = 4  # a version, its logged model, the run of that


@contextmanager
def downloaded(uri: str) -> Iterator[Path]:
    """Download the artifacts of `models:/…` or `runs:/…` to a folder that is removed afterwards.

    Raises:
        LineageError: the address is malformed, nothing is stored there, or it leads elsewhere (`check_location`).
    """
    if not uri.startswith(("models:/", "runs:/")):
        raise LineageError(f"model_uri={uri}: give models:/NAME/VERSION, models:/NAME@ALIAS or runs:/RUN_ID/PATH")
    with scratch.folder() as place:
        try:
            check_location(uri)
            folder = Path(store.whole(mlflow.artifacts.download_artifacts)(artifact_uri=uri, dst_path=place))
        except (mlflow.MlflowException, OSError, ValueError, TypeError) as error:
            raise LineageError(f"{uri} cannot be fetched: {str(error).splitlines()[0][:160]}") from None
        yield folder


def check_location(uri: str) -> None:
    """Follow an address to where its files are, and hold that to the tracking store.

    Whoever can write to a registry chooses the source of its models. MLflow would send the store's password to any web
    server named there, and would read any local file for a store on a server.

    Raises:
        LineageError: the files are on a web server that is not the store's, or are local while the store is not.
        MlflowException: the store does not know the address.
    """
    place = uri
    for _ in range(HOPS):
        kind, _, rest = place.partition(":/")
        if kind not in ("models", "runs"):
            break
        place = _next(kind, rest.strip("/"))
    scheme = urlparse(place).scheme
    local = not mlflow.get_tracking_uri().startswith("http")
    if scheme in ("http", "https", "models", "runs") or (scheme in ("", "file") and not local):
        raise LineageError(f"{uri} is refused: its files are said to be at {place[:160]}, not in the tracking store")


def _next(kind: str, rest: str) -> str:
    """Return what a model or run of the store says of the place of its files."""
    client, (name, _, version) = store.client(), rest.partition("/")
    if kind == "runs":
        return str(client.get_run(name).info.artifact_uri)
    if "@" in rest:
        return str(client.get_model_version_by_alias(*rest.rsplit("@", 1)).source)
    if version == "latest":
        version = str(max(int(each.version) for each in client.search_model_versions(f"name = '{name}'")))
    return str(
        client.get_model_version(name, version).source if version else client.get_logged_model(name).artifact_location
    )


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
    files = sorted(file for file in files_below(folder, ModelError) if "sample_inputs" not in file.parts)
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
