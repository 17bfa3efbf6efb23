"""The state dict in a checkpoint: find it, and remove the prefixes that wrappers add to its keys."""

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
from rnp_mlflow.loading.torch_files import SAVE_HINT, read_safetensors, read_torch

log = logging.getLogger(__name__)

# Usual keys of the state dict in a checkpoint; plain weights first, averaged weights (EMA) last.
PLAIN = ("state_dict", "model_state_dict", "model", "net", "netC", "network", "classifier", "weights", "params")
AVERAGED = ("model_ema", "state_dict_ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "ema", "params_ema")
PARALLEL, COMMON = "module.", ("module.", "model.", "net.", "network.", "_orig_mod.", "backbone.", "encoder.")
# Old versions of torchvision name DenseNet's layers `norm.1`, `conv.2`; this is how torchvision's loader renames them.
OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)")
MOST_KEYS, LONGEST_KEY = 20_000, 300  # tensors of a state dict, characters of a key
ACCURACIES = ("clean_acc", "test_acc", "acc", "accuracy", "best_acc", "best_acc1", "acc1", "val_acc")


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights contains.

    weights: the state dict. model_name: the architecture as named by a BackdoorBench result, else None. acc: the
    model's accuracy according to the file (0 to 1), None if it is not stored.
    """

    weights: dict[str, Tensor]
    model_name: str | None = None
    acc: float | None = None


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read only the state dict; see `read_checkpoint`."""
    return read_checkpoint(file).weights


def read_checkpoint(file: Path) -> Checkpoint:
    """Read weights from a safetensors file, a pt2 archive, or a torch file (the state dict, or one level inside).

    The file's first bytes decide its kind, not its name. Prefixes that all keys share are removed.

    Raises:
        ModelError: the file is unreadable or refused, or it has no state dict.
    """
    kind = foreign.kind_of(file) if file.is_file() else None
    if kind == "safetensors" or (kind is None and file.suffix == ".safetensors"):
        return Checkpoint(strip_prefixes(_check_declared_size(read_safetensors(file), file)))
    if kind == "pt2" or (kind == "torch" and file.suffix == ".pt2"):
        return Checkpoint(strip_prefixes(_check_declared_size(read_pt2(file), file)))
    content = read_torch(file)
    return Checkpoint(state_dict(content, file), _model_name(content), _accuracy(content))


def _accuracy(content: Any) -> float | None:
    """Return the accuracy (0 to 1) that training scripts store with the weights, as a fraction or in per cent."""
    if not isinstance(content, Mapping):
        return None
    for name in ACCURACIES:
        value = content.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 100:
            if value == 1:  # all, or one per cent
                continue
            return float(value if value < 1 else value / 100)
    return None


def _model_name(content: Any) -> str | None:
    """Return the `model_name` of a BackdoorBench result, which also has `num_classes`; else None."""
    if isinstance(content, Mapping) and "num_classes" in content and isinstance(content.get("model_name"), str):
        found: str | None = content["model_name"]
        return found
    return None


def state_dict(content: Any, file: Path) -> dict[str, Tensor]:
    """Find the state dict in the content of a torch file: the content itself, or under one of the usual names.

    Plain weights are preferred to averaged ones; the log names the one that is read.

    Raises:
        ModelError: there is no state dict, or an entry is not a plain tensor with all of its elements.
    """
    if isinstance(content, Mapping):
        names = [name for name in (*PLAIN, *AVERAGED) if _is_weights(content.get(name))]
        if not names:  # an empty or broken state dict is refused below with its own message
            names = [name for name in (*PLAIN, *AVERAGED) if isinstance(content.get(name), Mapping)]
        if names:
            _log_choice(content, names, file)
            content = content[names[0]]
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"{file} holds no state dict; {SAVE_HINT}")
    if not _is_weights(content) and (inside := _weights_inside(content)):
        raise ModelError(f"{file} {_what_to_save(inside)}")
    wrong = [key for key, value in content.items() if not isinstance(key, str) or not _is_plain(value)]
    if wrong:
        raise ModelError(
            f"{file}: entry {str(wrong[0])[:60]!r} is not a plain tensor, so this is not a state dict; {SAVE_HINT}"
        )
    return strip_prefixes(_check_declared_size(content, file))


def _is_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(each, Tensor) for each in value.values())


def _weights_inside(content: Mapping[Any, Any], depth: int = 3, seen: set[int] | None = None) -> list[tuple[str, ...]]:
    """Return the keys that lead to each state dict below `content`, to this depth; once if several do."""
    found: list[tuple[str, ...]] = []
    seen = set() if seen is None else seen
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Mapping) or id(value) in seen:
            continue
        seen.add(id(value))
        if _is_weights(value):
            found.append((key,))
        elif depth > 1:
            found += [(key, *rest) for rest in _weights_inside(value, depth - 1, seen)]
    return found


def _what_to_save(inside: list[tuple[str, ...]]) -> str:
    """Say which state dicts a file holds under other names, and how to save one of them."""
    paths = ["".join(f"[{key[:40]!r}]" for key in path) for path in inside]
    listed = ", ".join(paths[:4]) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
    if len(paths) == 1:
        return f"holds a state dict under {listed}: save it alone, torch.save(content{paths[0]}, FILE), and give that"
    return (
        f"holds {len(paths)} state dicts, under {listed}: save the one to look at alone, "
        f"torch.save(content{paths[-1]}, FILE) for example, and give that"
    )


def _log_choice(content: Mapping[Any, Any], names: list[str], file: Path) -> None:
    """Log which weights are read if there are several, or if they are averaged."""
    others = [name for name in content if _is_weights(content[name]) and name != names[0]]
    if others or names[0] in AVERAGED:
        kind = "averaged (EMA) weights" if names[0] in AVERAGED else "weights"
        left = f", not {', '.join(repr(str(name)[:40]) for name in others[:4])}" if others else ""
        log.warning(f"  {file.name}: the {kind} under {names[0]!r} are read{left}")


def _check_declared_size(weights: Mapping[str, Tensor], file: Path) -> Mapping[str, Tensor]:
    longest = max(map(len, weights), default=0)
    if len(weights) > MOST_KEYS or longest > LONGEST_KEY:
        raise ModelError(f"{file} is refused: {len(weights):,} tensors with names of up to {longest:,} characters")
    declared, actual = sum(value.numel() * value.element_size() for value in weights.values()), file.stat().st_size
    if declared > actual:
        raise ModelError(f"{file} is refused: its {actual:,} bytes declare {declared:,} bytes of weights")
    return weights


def _is_plain(value: Any) -> bool:
    """Whether this is a dense CPU tensor whose storage contains all its elements (an expanded tensor's does not)."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    return not value.is_quantized and value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def strip_prefixes(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that all keys share, and the counter that `swa_utils.AveragedModel` adds."""
    found = dict(weights)
    rest = [key for key in found if key != "n_averaged"]
    if "n_averaged" in found and rest and all(key.startswith(PARALLEL) for key in rest):
        log.warning(
            f"  these weights are the average of {int(found['n_averaged'].sum())} models (torch.optim.swa_utils)"
        )
        del found["n_averaged"]
    while prefix := shared_prefix(found):
        if prefix not in COMMON:
            log.warning(f"  the prefix {prefix!r}, which all keys share, is removed")
        found = {key.removeprefix(prefix): value for key, value in found.items()}
    return {OLD_DENSENET.sub(r"\1\2", key): value for key, value in found.items()}


def shared_prefix(weights: Mapping[str, Tensor]) -> str | None:
    """Return the first part of the keys with its dot if all keys share it, else None.

    No supported architecture has all of its layers in one part, so a shared part comes from a wrapper.
    """
    parts = {key.partition(".")[0] + key.partition(".")[1] for key in weights}
    only = parts.pop() if len(parts) == 1 and len(weights) > 1 else ""
    return only if only.endswith(".") else None
