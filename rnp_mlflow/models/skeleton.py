"""The keys, shapes and types of an architecture's state dict, without memory for its weights."""

import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rnp_mlflow.errors import ModelError
from rnp_mlflow.models.registry import build, entry_of

COUNTER = "num_batches_tracked"


class WithoutMemory(TorchFunctionMode):
    """Makes what layers ask for on torch's meta device, while builders may still compute (regnet's do)."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones) and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


@lru_cache(maxsize=256)
def skeleton(name: str, classes: int = 2, channels: int = 3, width: int | None = None) -> Mapping[str, Tensor]:
    """Return the state dict of a model, its weights on the meta device.

    Raises:
        ModelError: unknown name, or numbers that no model can have.
    """
    try:
        with WithoutMemory(), warnings.catch_warnings(action="ignore"):  # googlenet's, of its initial values
            return build(name, classes, channels, width).state_dict()
    except (RuntimeError, ValueError, OverflowError, TypeError, ZeroDivisionError) as error:
        raise ModelError(f"{name} cannot be built so: {str(error).splitlines()[0][:160]}") from None


def landmarks(name: str) -> tuple[str, str]:
    """The keys of a model's first convolution and of its classifier's weight.

    They are taken from the architecture: a safetensors file keeps no order.

    Raises:
        ModelError: unknown name.
    """
    matrices = [key for key, value in skeleton(name).items() if key.endswith("weight") and value.ndim >= 2]
    return matrices[0], matrices[-1]


def classes_in(name: str, weights: Mapping[str, Tensor]) -> int | None:
    """Rows of the classifier's weight; None if the weights lack it, or it has no row."""
    last = weights.get(landmarks(name)[1])
    return len(last) if last is not None and last.ndim >= 2 and len(last) else None


def width_in(name: str, weights: Mapping[str, Tensor]) -> int | None:
    """Channels of the first convolution, which is what `width` means for models of ours that have one; else None."""
    entry = entry_of(name)
    first = weights.get(landmarks(name)[0]) if entry is not None and entry.width is not None else None
    return len(first) if first is not None and first.ndim == 4 and first.numel() else None


def channels_in(name: str, weights: Mapping[str, Tensor]) -> int | None:
    """Channels of the images that the first convolution takes; None if the weights lack it."""
    first = weights.get(landmarks(name)[0])
    return int(first.shape[1]) if first is not None and first.ndim == 4 and first.numel() else None


def differences(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """Say of every key that is missing, foreign, or of another shape or type, what is wrong with it."""
    wrong = [f"{k} is missing" for k in own if k not in weights]
    wrong += [f"{k[:60]!r} is not the model's" for k in weights if k not in own]
    both = [(k, weights[k], own[k]) for k in own if k in weights]
    wrong += [f"{k} is {tuple(v.shape)}, not {tuple(o.shape)}" for k, v, o in both if v.shape != o.shape]
    return wrong + [
        f"{k} is {v.dtype}, not {o.dtype}"
        for k, v, o in both
        if v.is_complex() or v.is_floating_point() != o.is_floating_point()
    ]


def with_counters(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with BatchNorm's batch counters, as 0, where they lack them: old files have none.

    A counter is of use only in training without a momentum.
    """
    lacking = [key for key in own if key.endswith(COUNTER) and key not in weights]
    return dict(weights) | {key: torch.zeros((), dtype=torch.int64) for key in lacking}
