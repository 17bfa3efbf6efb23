"""Which model given weights belong to: class count and width are read from the weights themselves."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from rnp_mlflow.errors import ModelError
from rnp_mlflow.models.registry import REGISTRY, build
from rnp_mlflow.models.store import ModelSpec, check_weights, with_weights
from rnp_mlflow.models.torchvision_nets import is_torchvision


def landmarks(name: str) -> tuple[str, str]:
    """The keys of a model's first convolution and of its classifier's weight.

    They are taken from the architecture: a safetensors file keeps no order.

    Raises:
        ModelError: unknown name.
    """
    with torch.device("meta"):
        own = build(name, 2, 3).state_dict()
    matrices = [key for key, value in own.items() if key.endswith("weight") and value.ndim >= 2]
    return matrices[0], matrices[-1]


def count_classes(name: str, weights: Mapping[str, Tensor]) -> int:
    """Rows of the classifier's weight.

    Raises:
        ModelError: unknown name, or the weights lack it, or it has no row.
    """
    names = [name, f"torchvision/{name}"] if name in REGISTRY and is_torchvision(name) else [name]
    for key in (landmarks(each)[1] for each in names):
        if key in weights and weights[key].ndim >= 2 and len(weights[key]):
            return len(weights[key])
    raise ModelError(f"the weights have no classifier of {name}: no {landmarks(name)[1]} with a row a class")


def find_width(name: str, weights: Mapping[str, Tensor]) -> int | None:
    """Channels of the first convolution, which is what `width` means for models of ours; else None."""
    first = weights.get(landmarks(name)[0]) if name in REGISTRY else None
    return len(first) if first is not None and first.ndim == 4 and first.numel() else None


def fit(
    name: str,
    weights: dict[str, Tensor],
    classes: tuple[str, ...],
    input_shape: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> tuple[nn.Module, ModelSpec]:
    """The model with these weights, in eval mode, and its spec.

    name: of our registry or torchvision's. Where ours has the name and the weights are not its own,
    torchvision's of that name is tried too (BackdoorBench's `resnet18` is torchvision's).

    Raises:
        ModelError: unknown name, or the weights do not fit; what is wrong is listed for the first.
    """
    found = count_classes(name, weights)
    if found != len(classes):
        raise ModelError(f"the weights are for {found} classes, the images have {len(classes)}")
    spec = ModelSpec(name, find_width(name, weights), classes, input_shape, mean, std)
    if name in REGISTRY and is_torchvision(name) and check_weights(spec, weights):
        other = replace(spec, architecture=f"torchvision/{name}", width=None)
        spec = spec if check_weights(other, weights) else other
    return with_weights(spec, weights), spec
