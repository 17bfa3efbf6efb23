"""The state dict in a checkpoint: where it lies, and the prefixes that wrappers put before its keys."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnp_mlflow.errors import ModelError
from rnp_mlflow.loading import foreign
from rnp_mlflow.loading.pt2 import read_pt2
from rnp_mlflow.loading.torch_files import WAY_OUT, read_safetensors, read_torch

log = logging.getLogger(__name__)

# Names that people give the state dict beside other things; plain weights first, averaged ones (EMA) last.
PLAIN = ("state_dict", "model_state_dict", "model", "net", "netC", "network", "classifier", "weights", "params")
AVERAGED = ("model_ema", "state_dict_ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "ema", "params_ema")
PARALLEL, COMMON = "module.", ("module.", "model.", "net.", "network.", "_orig_mod.", "backbone.", "encoder.")
# Old torchvision names the layers of DenseNet `norm.1`, `conv.2`; torchvision's own loader renames them so.
OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)")


ACCURACIES = ("clean_acc", "test_acc", "acc", "accuracy", "best_acc", "best_acc1", "acc1", "val_acc")


@dataclass(frozen=True)
class Checkpoint:
    """weights: the state dict. model_name: the architecture as a BackdoorBench result names it, else None.

    acc: the accuracy that the file says its model has (0 to 1), None if it says none.
    """

    weights: dict[str, Tensor]
    model_name: str | None = None
    acc: float | None = None


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read the state dict alone (`read_checkpoint`)."""
    return read_checkpoint(file).weights


def read_checkpoint(file: Path) -> Checkpoint:
    """Read weights from a safetensors file, a pt2 archive, or a torch file (plain, or one level inside).

    The file's first bytes decide which it is, not its name. Prefixes that all keys share are taken off.

    Raises:
        ModelError: unreadable, refused, or there is no state dict in it.
    """
    kind = foreign.kind_of(file) if file.is_file() else None
    if kind == "safetensors" or (kind is None and file.suffix == ".safetensors"):
        return Checkpoint(plain_keys(read_safetensors(file)))
    if kind == "pt2" or (kind == "torch" and file.suffix == ".pt2"):
        return Checkpoint(plain_keys(_held(read_pt2(file), file)))
    content = read_torch(file)
    return Checkpoint(state_dict(content, file), _model_name(content), _accuracy(content))


def _accuracy(content: Any) -> float | None:
    """The accuracy that training scripts store beside the weights, as a share or in per cent."""
    if not isinstance(content, Mapping):
        return None
    for name in ACCURACIES:
        value = content.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 100:
            return float(value if value <= 1 else value / 100)
    return None


def _model_name(content: Any) -> str | None:
    """The `model_name` of BackdoorBench's results, which also say `num_classes`."""
    if isinstance(content, Mapping) and "num_classes" in content and isinstance(content.get("model_name"), str):
        return content["model_name"]
    return None


def state_dict(content: Any, file: Path) -> dict[str, Tensor]:
    """Find the state dict in what a torch file held: itself, or under one of the usual names.

    Plain weights are preferred to averaged ones; the log says which were read.

    Raises:
        ModelError: there is none, or an entry is not a plain tensor that holds as much as it says.
    """
    if isinstance(content, Mapping):
        names = [name for name in (*PLAIN, *AVERAGED) if _is_weights(content.get(name))]
        if not names:  # an empty or broken one is refused below by its own words
            names = [name for name in (*PLAIN, *AVERAGED) if isinstance(content.get(name), Mapping)]
        if names:
            _say_which(content, names, file)
            content = content[names[0]]
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"{file} holds no state dict; {WAY_OUT}")
    wrong = [key for key, value in content.items() if not isinstance(key, str) or not _is_plain(value)]
    if wrong:
        raise ModelError(
            f"{file}: entry {str(wrong[0])[:60]!r} is no plain tensor, so this is no state dict; {WAY_OUT}"
        )
    return plain_keys(_held(content, file))


def _is_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(each, Tensor) for each in value.values())


def _say_which(content: Mapping[Any, Any], names: list[str], file: Path) -> None:
    """Say which weights are read if that was a choice, or if they are averaged."""
    others = [name for name in content if _is_weights(content[name]) and name != names[0]]
    if others or names[0] in AVERAGED:
        kind = "averaged (EMA) weights" if names[0] in AVERAGED else "weights"
        left = f", not {', '.join(repr(str(name)[:40]) for name in others[:4])}" if others else ""
        log.warning(f"  {file.name}: the {kind} under {names[0]!r} are read{left}")


def _held(weights: Mapping[str, Tensor], file: Path) -> Mapping[str, Tensor]:
    declared, held = sum(value.numel() * value.element_size() for value in weights.values()), file.stat().st_size
    if declared > held:
        raise ModelError(f"{file} is refused: its {held:,} bytes declare {declared:,} of weights")
    return weights


def _is_plain(value: Any) -> bool:
    """A dense CPU tensor whose storage holds all its elements (an expanded one does not)."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    return not value.is_quantized and value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def plain_keys(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off the prefixes that all keys share, and what `swa_utils.AveragedModel` puts beside them."""
    found = dict(weights)
    rest = [key for key in found if key != "n_averaged"]
    if "n_averaged" in found and rest and all(key.startswith(PARALLEL) for key in rest):
        log.warning(f"  these are averaged weights (torch.optim.swa_utils), of {int(found['n_averaged'].sum())} models")
        del found["n_averaged"]
    while prefix := shared_prefix(found):
        if prefix not in COMMON:
            log.warning(f"  the prefix {prefix!r}, which all keys share, is taken off")
        found = {key.removeprefix(prefix): value for key, value in found.items()}
    return {OLD_DENSENET.sub(r"\1\2", key): value for key, value in found.items()}


def shared_prefix(weights: Mapping[str, Tensor]) -> str | None:
    """Return the first part of every key with its dot, if all share it.

    No architecture here has all of its layers in one part, so that is a wrapper's.
    """
    parts = {key.partition(".")[0] + key.partition(".")[1] for key in weights}
    only = parts.pop() if len(parts) == 1 and len(weights) > 1 else ""
    return only if only.endswith(".") else None
