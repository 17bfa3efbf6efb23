"""A normalisation layer inside a checkpoint: its mean and std, taken out of the state dict."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from rnp_mlflow.errors import ModelError
from rnp_mlflow.loading.state import plain_keys

log = logging.getLogger(__name__)
NAMES = {"mean": "std", "_mean": "_std", "mu": "sigma", "pixel_mean": "pixel_std"}


@dataclass(frozen=True)
class OwnNorm:
    """What the layer subtracts and divides by, for pixels scaled to [0, 1]: a value a channel, or one for all."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def of(self, channels: int) -> "OwnNorm":
        """Return it with a value for each channel.

        Raises:
            ModelError: it has another number of them.
        """
        if len(self.mean) not in (1, channels):
            raise ModelError(f"the normalisation inside the model has {len(self.mean)} values, its images {channels}")
        repeat = channels if len(self.mean) == 1 else 1
        return OwnNorm(self.mean * repeat, self.std * repeat)


def take_own_norm(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], OwnNorm | None]:
    """Return the state dict without a normalisation layer (`0.mean`, `normalize.std`, `mean` …), and that layer.

    Buffers of a BatchNorm are `running_mean` and `running_var`, so they are not meant. The prefix that is left on
    the other keys (`1.`, `model.`) goes, too. Values on the 0-255 scale are divided by 255.

    Raises:
        ModelError: there are several such layers, or the values cannot be a normalisation.
    """
    found = [(key, other) for key in weights if (other := _partner(key)) is not None and other in weights]
    if not found:
        return dict(weights), None
    if len(found) > 1:
        raise ModelError(f"the weights hold several normalisation layers: {', '.join(key for key, _ in found[:3])}")
    pair = found[0]
    mean, std = (tuple(float(v) for v in weights[key].flatten()[:16]) for key in pair)
    if len(mean) != len(std) or weights[pair[0]].numel() > 16:
        raise ModelError(f"{pair[0]} and {pair[1]} do not go together: {len(mean)} and {len(std)} values")
    if max(std) > 1:
        mean, std = tuple(v / 255 for v in mean), tuple(v / 255 for v in std)
    mean, std = tuple(round(v, 6) for v in mean), tuple(round(v, 6) for v in std)
    if not all(0 <= v <= 1 for v in mean) or not all(0 < v <= 1 for v in std):
        raise ModelError(f"{pair[0]} and {pair[1]} are no normalisation of pixels: {mean}, {std}")
    log.warning(f"  the model normalises its images itself ({pair[0]}, {pair[1]}): by {mean}, {std}")
    return plain_keys({key: value for key, value in weights.items() if key not in pair}), OwnNorm(mean, std)


def _partner(key: str) -> str | None:
    """The key of the std that belongs to the key of a mean."""
    path, dot, last = key.rpartition(".")
    return f"{path}{dot}{NAMES[last]}" if last in NAMES else None
