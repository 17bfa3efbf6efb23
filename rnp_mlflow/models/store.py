"""A model on disk: `model.safetensors` (weights) beside `model.json` (how to build and feed it)."""

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import PositiveInt, TypeAdapter
from safetensors.torch import save_file
from torch import Tensor, nn

from rnp_mlflow.errors import ModelError
from rnp_mlflow.loading import read_safetensors
from rnp_mlflow.models.registry import build
from rnp_mlflow.models.skeleton import differences, skeleton

WEIGHTS, SPEC = "model.safetensors", "model.json"


@dataclass(frozen=True)
class ModelSpec:
    """How to build a model and what it takes.

    input_shape: (C, H, W). mean, std: a channel's, for pixels scaled to [0, 1].
    width: channels of the first stage, None where the architecture has no choice.
    """

    architecture: str
    width: int | None
    classes: tuple[str, ...]
    input_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def check(self) -> None:
        """Refuse a spec without classes."""
        if not self.classes:
            raise ModelError("a model needs at least one class")

    def build(self) -> nn.Module:
        """A freshly initialised model of this kind, tried on one batch of its input.

        Raises:
            ModelError: no class, unknown architecture, or one that cannot take such images.
        """
        self.check()
        model = build(self.architecture, len(self.classes), self.input_shape[0], self.width)
        try:
            with torch.no_grad():
                logits = model.eval()(torch.zeros(2, *self.input_shape))
        except RuntimeError as error:
            shape = " × ".join(map(str, self.input_shape))
            reason = str(error).splitlines()[0]
            raise ModelError(f"{self.architecture} cannot take {shape} images: {reason}") from None
        if tuple(logits.shape) != (2, len(self.classes)):
            raise ModelError(f"{self.architecture} gives {tuple(logits.shape)}, not one logit a class")
        return model


def save(folder: Path, model: nn.Module, spec: ModelSpec) -> None:
    """Write both files into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    write_spec(folder / SPEC, spec)


def write_spec(file: Path, spec: ModelSpec) -> None:
    """`model.json`."""
    file.write_text(json.dumps(asdict(spec), indent=2) + "\n")


def load(folder: Path) -> tuple[nn.Module, ModelSpec]:
    """The model, on the CPU in eval mode, and its spec. Nothing in the files is executed.

    Raises:
        ModelError: a file is missing or broken, or the weights do not fit the architecture.
    """
    spec = read_spec(folder / SPEC)
    return with_weights(spec, read_safetensors(folder / WEIGHTS)), spec


def read_spec(file: Path) -> ModelSpec:
    """The spec in a `model.json`, with types checked.

    Raises:
        ModelError: it is missing or says something else.
    """
    try:
        spec = TypeAdapter(ModelSpec).validate_json(file.read_bytes())
    except (OSError, ValueError) as error:  # pydantic's ValidationError is a ValueError
        raise ModelError(f"{file} does not describe a model: {' '.join(str(error).split())[:200]}") from None
    if not all(0 <= value <= 1 for value in spec.mean) or not all(0 < value <= 1 for value in spec.std):
        raise ModelError(
            f"{file}: mean {spec.mean} must be from 0 to 1 and std {spec.std} above 0 and at most 1, for pixels "
            "scaled to 0 to 1; divide values on the 0-255 scale by 255"
        )
    return spec


def with_weights(spec: ModelSpec, weights: Mapping[str, Tensor]) -> nn.Module:
    """A model of this spec with these weights, in eval mode.

    Raises:
        ModelError: keys or shapes differ (all that do are counted, the first few named), or a value is
            not finite.
    """
    wrong = check_weights(spec, weights)
    wrong = wrong or [f"{k} {fault}" for k, v in weights.items() if (fault := _fault(k, v))]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise ModelError(f"the weights are not {spec.architecture}'s: {'; '.join(wrong[:3])}{more}")
    model = spec.build()
    named = OrderedDict(weights)
    named._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]  # mnasnet asks for its version
    model.load_state_dict(named)
    return model.eval()


def check_weights(spec: ModelSpec, weights: Mapping[str, Tensor]) -> list[str]:
    """Every key that is missing, foreign, or of another shape, in words; no memory is taken for a model."""
    spec.check()
    return differences(skeleton(spec.architecture, len(spec.classes), spec.input_shape[0], spec.width), weights)


def _fault(name: str, value: Tensor) -> str | None:
    """What is wrong with a tensor's values, as the float32 that they become."""
    if not torch.isfinite(value.float()).all():
        return "holds NaN or infinity"
    if name.endswith("running_var") and bool((value < 0).any()):
        return "holds a negative variance"
    return None
