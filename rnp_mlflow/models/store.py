"""A model on disk: `model.safetensors` (weights) beside `model.json` (how to build and feed it)."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rnp_mlflow.errors import ModelError
from rnp_mlflow.models.registry import build

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
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def build(self) -> nn.Module:
        """A freshly initialised model of this kind, tried on one batch of its input.

        Raises:
            ModelError: unknown architecture, or one that cannot take such images.
        """
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
    (folder / SPEC).write_text(json.dumps(asdict(spec), indent=2) + "\n")


def load(folder: Path) -> tuple[nn.Module, ModelSpec]:
    """The model, on the CPU in eval mode, and its spec. Nothing in the files is executed.

    Raises:
        ModelError: a file is missing or broken, or the weights do not fit the architecture.
    """
    try:
        raw = json.loads((folder / SPEC).read_text())
        lists: dict[str, Any] = {name: tuple(raw.pop(name)) for name in ("classes", "input_shape", "mean", "std")}
        spec = ModelSpec(**raw, **lists)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{folder / SPEC} does not describe a model: {error}") from None
    return with_weights(spec, read_weights(folder / WEIGHTS)), spec


def read_weights(file: Path) -> dict[str, Tensor]:
    """A safetensors file's tensors, on the CPU.

    Raises:
        ModelError: it is missing or broken.
    """
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} is no safetensors file: {error}") from None


def with_weights(spec: ModelSpec, weights: dict[str, Tensor]) -> nn.Module:
    """A model of this spec with these weights, in eval mode.

    Raises:
        ModelError: keys or shapes differ (all that do are named, the first few), or a value is not finite.
    """
    model = spec.build()
    own = model.state_dict()
    wrong = [f"{k} is missing" for k in own if k not in weights]
    wrong += [f"{k} is not the model's" for k in weights if k not in own]
    wrong += [
        f"{k} is {tuple(weights[k].shape)}, not {tuple(own[k].shape)}"
        for k in own
        if k in weights and weights[k].shape != own[k].shape
    ]
    wrong += [f"{k} holds NaN or infinity" for k, v in weights.items() if not torch.isfinite(v).all()]
    if wrong:
        more = f" (and {len(wrong) - 4} more)" if len(wrong) > 4 else ""
        raise ModelError(f"the weights are not {spec.architecture}'s: {'; '.join(wrong[:4])}{more}")
    model.load_state_dict(weights)
    return model.eval()
