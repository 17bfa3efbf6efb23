"""A normalisation layer inside a checkpoint: read its mean and std, and remove it from the state dict."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from rnp_mlflow.errors import ModelError
from rnp_mlflow.loading.state import strip_prefixes

log = logging.getLogger(__name__)
# name of a mean's buffer → name of its std's buffer
STD_NAMES = {"mean": "std", "_mean": "_std", "mu": "sigma", "pixel_mean": "pixel_std"}


@dataclass(frozen=True)
class OwnNorm:
    """The layer's mean and std for pixels scaled to [0, 1]: one value per channel, or one for all channels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def per_channel(self, channels: int) -> "OwnNorm":
        """Return it with one value for each channel.

        Raises:
            ModelError: the number of values is neither one nor `channels`.
        """
        if len(self.mean) not in (1, channels):
            raise ModelError(
                f"the normalisation inside the model has {len(self.mean)} values, but its images have {channels} "
                "channels"
            )
        repeat = channels if len(self.mean) == 1 else 1
        return OwnNorm(self.mean * repeat, self.std * repeat)


def take_own_norm(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], OwnNorm | None]:
    """Return the state dict without its normalisation layer (`0.mean`, `normalize.std`, `mean` …), and that layer.

    BatchNorm's buffers have other names (`running_mean`, `running_var`) and stay. The remaining prefix of the other
    keys (`1.`, `model.`) is also removed. Values on the 0-255 scale are divided by 255.

    Raises:
        ModelError: there are several such layers, or the values cannot be a normalisation.
    """
    found = [(key, other) for key in weights if (other := _std_key(key)) is not None and other in weights]
    if not found:
        return dict(weights), None
    if len(found) > 1:
        raise ModelError(f"the weights hold several normalisation layers: {', '.join(key for key, _ in found[:3])}")
    pair = found[0]
    mean, std = (tuple(float(v) for v in weights[key].flatten()[:16]) for key in pair)
    if len(mean) != len(std) or weights[pair[0]].numel() > 16:
        raise ModelError(f"{pair[0]} and {pair[1]} do not match: {len(mean)} and {len(std)} values")
    if (max(mean) > 1) != (max(std) > 1) and not (max(mean) == 0 and min(std) > 16):  # 0 is 0 on either scale
        raise ModelError(
            f"{pair[0]} {_rounded(mean)} and {pair[1]} {_rounded(std)} contradict each other: both must be for pixels "
            "from 0 to 1, or both for 0 to 255; std must not be stored as its inverse; correct them in the file"
        )
    if max(std) > 1:
        mean, std = tuple(v / 255 for v in mean), tuple(v / 255 for v in std)
    mean, std = tuple(round(v, 6) for v in mean), tuple(round(v, 6) for v in std)
    if not all(0 <= v <= 1 for v in mean) or not all(0 < v <= 1 for v in std):
        raise ModelError(f"{pair[0]} and {pair[1]} cannot be a normalisation of pixels: {mean}, {std}")
    log.warning(f"  the model normalises its images itself ({pair[0]}, {pair[1]}): by {mean}, {std}")
    return strip_prefixes({key: value for key, value in weights.items() if key not in pair}), OwnNorm(mean, std)


def _std_key(key: str) -> str | None:
    """Return the key of the std that belongs to the key of a mean; None if `key` is not a mean's."""
    path, dot, last = key.rpartition(".")
    return f"{path}{dot}{STD_NAMES[last]}" if last in STD_NAMES else None


def _rounded(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(v, 4) for v in values)
