"""Torch and safetensors files, read without executing anything in them."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rnp_mlflow.errors import ModelError
from rnp_mlflow.loading import foreign
from rnp_mlflow.loading.archives import check_zip
from rnp_mlflow.loading.stand_ins import safe_globals

SAVE_HINT = "save only its weights, with torch.save(model.state_dict(), FILE) or safetensors, and give that file"


def read_torch(file: Path) -> Any:
    """Read a file of `torch.save`: containers, plain values, tensors on the CPU, and numpy's numbers.

    Raises:
        ModelError: the file is missing, broken, of another kind, or needs anything else to be called or imported.
    """
    if not file.is_file():
        raise ModelError(f"{file} does not exist or is not a file")
    foreign.refuse(file, ModelError, taken=("torch", "legacy"))
    with file.open("rb") as stream:
        is_zip = stream.read(4) == b"PK\3\4"  # torch's own rule
    if is_zip:
        check_zip(file, stored=True, error=ModelError)
    elif foreign.kind_of(file) != "legacy":  # torch would take any other file for a pickle
        raise ModelError(
            f"{file} is not a file of weights: its first bytes are not those of a torch, safetensors or pt2 file; "
            f"fetch it again or, where it was made, {SAVE_HINT}"
        )
    try:
        # Pass a stream: if it gets a path, torch also considers its extension.
        with torch.serialization.safe_globals(safe_globals()), file.open("rb") as stream:
            return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or hostile file can raise anything
        raise ModelError(f"{file} {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """Say why torch did not read a file, without any of torch's words: they speak of unpicklers and advise to read it
    unsafely.
    """
    words = " ".join(str(error).split())
    if found := re.search(r"GLOBAL ([\w.]+)", words):
        return (
            f"is refused: it would have to run {found[1]} to load "
            f"(a whole pickled model, or an object in addition to the weights); {SAVE_HINT}"
        )
    return (
        f"cannot be read as weights: it is damaged, or holds more than tensors and plain values; fetch it again or, "
        f"where it was made, {SAVE_HINT}"
    )


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, on the CPU.

    Raises:
        ModelError: the file is missing or broken.
    """
    if file.is_file():
        foreign.refuse(file, ModelError, taken=("safetensors",))
    try:
        found: dict[str, Tensor] = load_file(file)
        return found
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{file} is not a safetensors file: {error}") from None
