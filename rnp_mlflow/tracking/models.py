"""The purified model in MLflow: logged (pt2), linked to its metrics, and registered."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import Tensor, nn

from rnp_mlflow.errors import LineageError
from rnp_mlflow.models.pixel_input import PixelInputModel
from rnp_mlflow.models.store import SPEC, ModelSpec, write_spec
from rnp_mlflow.tracking import scratch, signals, store
from rnp_mlflow.tracking.runs import NOTE, PREFIX, own_source

ALIAS = "purified"
NOISY_LOGGERS = ("mlflow.utils.environment", "mlflow.pytorch", "mlflow.models.model")  # they warn of pip's version
PINNED = ("mlflow", "numpy", "torch")


def log(model: nn.Module, spec: ModelSpec, example: Tensor, *, name: str, tags: Mapping[str, object], card: str) -> str:
    """Log `model` in the active run as pt2, with signature and pinned requirements; return its model ID.

    model: is moved to the CPU. example: at least two uint8 images (N, C, H, W), because the export would fix a batch
    size of one in the graph. tags: set on the model, with our prefix; None is left out. card: what the model is, in
    Markdown.
    """
    wrapped = PixelInputModel(model.cpu(), spec).eval()
    pixels = TensorSpec(np.dtype("uint8"), (-1, *spec.input_shape))
    logits = TensorSpec(np.dtype("float32"), (-1, len(spec.classes)))
    quiet = silenced(*NOISY_LOGGERS)
    with scratch.folder() as folder, scratch.everything_in(folder), quiet, signals.postponed():
        description = Path(folder, SPEC)
        write_spec(description, spec)
        info = store.whole(mlflow.pytorch.log_model)(
            wrapped, name=name, input_example=example.cpu().numpy(), extra_files=[str(description)],
            signature=ModelSignature(Schema([pixels]), Schema([logits])),
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in PINNED],
        )  # fmt: skip
    _name_source(info.model_id)
    shown = _with_prefix(tags) | {NOTE: f"{card}\n\n{how_to_use(info.model_id)}"}
    store.client().set_logged_model_tags(info.model_id, shown)
    found: str = info.model_id
    return found


def how_to_use(model_id: str) -> str:
    """Say how the model is used."""
    return (
        f"Serve it: `mlflow models serve -m models:/{model_id} --env-manager local`. It takes uint8 pixels "
        "(N, C, H, W), which it normalises itself, and gives logits."
    )


def _with_prefix(tags: Mapping[str, object]) -> dict[str, str]:
    return {PREFIX + name: str(value) for name, value in tags.items() if value is not None}


def _name_source(model_id: str) -> None:
    """Make the logged model name our own commit or none, like its run."""
    client = store.client()
    new, gone = own_source(client.get_logged_model(model_id).tags)
    if new:
        client.set_logged_model_tags(model_id, new)
    for name in gone:
        client.delete_logged_model_tag(model_id, name)


def register(model_id: str, name: str, tags: Mapping[str, object], card: str) -> str:
    """Register a new version of the model `name` with the alias `purified`, and return its number.

    tags: set on the version, as in `log`. card: its description, in Markdown.

    Raises:
        LineageError: the registry refuses it.
    """
    try:
        with silenced("mlflow.tracking._model_registry.fluent"), signals.postponed():
            found = mlflow.register_model(f"models:/{model_id}", name, tags=_with_prefix(tags))
        client = store.client()
        client.update_model_version(name, found.version, f"{card}\n\n{how_to_use(model_id)}")
        client.set_registered_model_alias(name, ALIAS, found.version)
    except mlflow.MlflowException as error:
        raise LineageError(f"register_as={name}: {str(error).splitlines()[0][:200]}") from None
    return str(found.version)


@contextmanager
def silenced(*names: str) -> Iterator[None]:
    """Suppress the warnings of these loggers (such as an unknown version of pip)."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
