"""The keys, shapes and dtypes of an architecture's state dict, without allocating its weights."""

import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rnp_mlflow.errors import ModelError
from rnp_mlflow.models.registry import build, find_entry

COUNTER = "num_batches_tracked"


class MetaDeviceMode(TorchFunctionMode):
    """Allocate the tensors of layers on the meta device, while builders can still compute (regnet's do)."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones) and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


@lru_cache(maxsize=256)
def skeleton(name: str, classes: int = 2, channels: int = 3, width: int | None = None) -> Mapping[str, Tensor]:
    """Return the state dict of a model with its weights on the meta device.

    Raises:
        ModelError: unknown name, or the model cannot be built with these numbers.
    """
    try:
        with MetaDeviceMode(), warnings.catch_warnings(action="ignore"):  # googlenet warns about its initialisation
            return build(name, classes, channels, width).state_dict()
    except (RuntimeError, ValueError, OverflowError, TypeError, ZeroDivisionError) as error:
        numbers = f"{classes} classes, {channels} channels, width {width}"
        raise ModelError(f"{name} cannot be built with {numbers}: {str(error).splitlines()[0][:160]}") from None


def first_and_last_weight(name: str) -> tuple[str, str]:
    """Return the keys of the first convolution's and the classifier's weight.

    They come from the architecture, because a safetensors file does not keep the order of keys.

    Raises:
        ModelError: unknown name.
    """
    matrices = [key for key, value in skeleton(name).items() if key.endswith("weight") and value.ndim >= 2]
    return matrices[0], matrices[-1]


def classes_in(name: str, weights: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes (rows of the classifier's weight); None if the weights do not show it."""
    last = weights.get(first_and_last_weight(name)[1])
    return len(last) if last is not None and last.ndim >= 2 and len(last) else None


def width_in(name: str, weights: Mapping[str, Tensor]) -> int | None:
    """Return the output channels of the first convolution, the `width` of our models; None if the width is fixed."""
    entry = find_entry(name)
    first = weights.get(first_and_last_weight(name)[0]) if entry is not None and entry.width is not None else None
    return len(first) if first is not None and first.ndim == 4 and first.numel() else None


def channels_in(name: str, weights: Mapping[str, Tensor]) -> int | None:
    """Return the input channels of the first convolution; None if the weights do not show them."""
    first = weights.get(first_and_last_weight(name)[0])
    return int(first.shape[1]) if first is not None and first.ndim == 4 and first.numel() else None


def differences(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """Describe every key that is missing, unexpected, or of another shape or dtype."""
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
    """Return the weights with missing BatchNorm counters added as 0; old files have none.

    The counters matter only for training without momentum.
    """
    lacking = [key for key in own if key.endswith(COUNTER) and key not in weights]
    return dict(weights) | {key: torch.zeros((), dtype=torch.int64) for key in lacking}
