"""A model on disk: `model.safetensors` (weights) and `model.json` (how to build it, and its input)."""

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import PositiveInt, TypeAdapter
from safetensors.torch import save_file
from torch import Tensor, nn

from rnp_mlflow.core.units import remember_units
from rnp_mlflow.errors import ModelError
from rnp_mlflow.loading import check_regular, read_safetensors
from rnp_mlflow.models.registry import build
from rnp_mlflow.models.skeleton import differences, skeleton

WEIGHTS, SPEC = "model.safetensors", "model.json"
LARGEST, LONGEST, LARGEST_SIDE = 8 << 20, 255, 4096  # bytes of a spec, characters of a name in it, pixels of a side


@dataclass(frozen=True)
class ModelSpec:
    """How to build a model, and the input it takes.

    input_shape: (C, H, W). mean, std: per channel, for pixels scaled to [0, 1]. width: channels of the first stage,
    None if the architecture has a fixed width.
    """

    architecture: str
    width: int | None
    classes: tuple[str, ...]
    input_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def check(self) -> None:
        """Refuse a spec without classes.

        Raises:
            ModelError: there are no classes.
        """
        if not self.classes:
            raise ModelError("the model has no classes: give at least one in model.json")

    def build(self) -> nn.Module:
        """Build a freshly initialised model, check it with one batch of its input, and find its neurons.

        Raises:
            ModelError: no classes, unknown architecture, or the architecture cannot take such images.
        """
        self.check()
        model = build(self.architecture, len(self.classes), self.input_shape[0], self.width)
        try:
            images = torch.zeros(2, *self.input_shape)
            with torch.no_grad():
                logits = model.eval()(images)
            remember_units(model, images)
        except RuntimeError as error:
            shape = " × ".join(map(str, self.input_shape))
            reason = str(error).splitlines()[0]
            raise ModelError(f"{self.architecture} cannot take {shape} images: {reason}") from None
        if tuple(logits.shape) != (2, len(self.classes)):
            raise ModelError(f"{self.architecture} returns {tuple(logits.shape)}, not one logit per class")
        return model


def save(folder: Path, model: nn.Module, spec: ModelSpec) -> None:
    """Write both files into `folder`, and create it if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    write_spec(folder / SPEC, spec)


def write_spec(file: Path, spec: ModelSpec) -> None:
    """Write `model.json`."""
    file.write_text(json.dumps(asdict(spec), indent=2) + "\n")


def load(folder: Path) -> tuple[nn.Module, ModelSpec]:
    """Load the model (on the CPU, in eval mode) and its spec. Nothing in the files is executed.

    Raises:
        ModelError: a file is missing or broken, or the weights do not match the architecture.
    """
    spec = read_spec(folder / SPEC)
    return with_weights(spec, read_safetensors(folder / WEIGHTS)), spec


def read_spec(file: Path) -> ModelSpec:
    """Read the spec from a `model.json`, and check its types.

    Raises:
        ModelError: the file is missing or does not describe a model.
    """
    check_regular(file, ModelError, LARGEST)
    try:
        spec = TypeAdapter(ModelSpec).validate_json(file.read_bytes())
    except (OSError, ValueError) as error:  # pydantic's ValidationError is a ValueError
        raise ModelError(f"{file} does not describe a model: {' '.join(str(error).split())[:200]}") from None
    if max(map(len, (spec.architecture, *spec.classes))) > LONGEST or spec.input_shape[0] > 4:
        raise ModelError(f"{file} does not describe a model: a name in it is longer than {LONGEST} characters, or "
                         f"its images have more than 4 channels")  # fmt: skip
    if max(spec.input_shape) > LARGEST_SIDE or (spec.width or 1) > LARGEST_SIDE:
        raise ModelError(f"{file} does not describe a model: its images or its width are above {LARGEST_SIDE}")
    if not all(0 <= value <= 1 for value in spec.mean) or not all(0 < value <= 1 for value in spec.std):
        raise ModelError(
            f"{file}: mean {spec.mean} must be from 0 to 1 and std {spec.std} above 0 and at most 1, for pixels "
            "scaled to 0 to 1; divide values on the 0-255 scale by 255"
        )
    return spec


def with_weights(spec: ModelSpec, weights: Mapping[str, Tensor]) -> nn.Module:
    """Build the model of this spec with these weights, in eval mode.

    Raises:
        ModelError: keys or shapes differ (the message names the first three and counts the rest), or a value is not
            finite.
    """
    wrong = check_weights(spec, weights)
    wrong = wrong or [f"{k} {fault}" for k, v in weights.items() if (fault := _value_fault(k, v))]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise ModelError(f"the weights are not {spec.architecture}'s: {'; '.join(wrong[:3])}{more}")
    model = spec.build()
    named = OrderedDict(weights)
    named._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]  # mnasnet needs its version
    model.load_state_dict(named)
    return model.eval()


def check_weights(spec: ModelSpec, weights: Mapping[str, Tensor]) -> list[str]:
    """Describe every key that is missing, unexpected, or of another shape, without allocating the model."""
    spec.check()
    return differences(skeleton(spec.architecture, len(spec.classes), spec.input_shape[0], spec.width), weights)


def _value_fault(name: str, value: Tensor) -> str | None:
    """Describe what is wrong with a tensor's values after conversion to float32; None if nothing is."""
    if not torch.isfinite(value.float()).all():
        return "holds NaN or infinity"
    if name.endswith("running_var") and bool((value < 0).any()):
        return "holds a negative variance"
    return None
