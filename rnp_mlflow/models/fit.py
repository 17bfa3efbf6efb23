"""Which model given weights belong to: class count and width are read from the weights themselves."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from rnp_mlflow.errors import ModelError
from rnp_mlflow.models.registry import REGISTRY
from rnp_mlflow.models.store import ModelSpec, check_weights, with_weights
from rnp_mlflow.models.torchvision_nets import is_torchvision


def count_classes(weights: Mapping[str, Tensor]) -> int:
    """Rows of the last weight matrix in `state_dict` order: that of the classifier.

    Raises:
        ModelError: there is none, or it has no row.
    """
    sizes = [len(value) for name, value in weights.items() if name.endswith("weight") and value.ndim >= 2]
    if not sizes or not sizes[-1]:
        raise ModelError("the weights have no classifier: no weight matrix with a row a class")
    return sizes[-1]


def find_width(name: str, weights: Mapping[str, Tensor]) -> int | None:
    """Channels of the first convolution, which is what `width` means for models of ours; else None."""
    first = next((value for value in weights.values() if value.ndim == 4), None)
    return len(first) if name in REGISTRY and first is not None else None


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
    found = count_classes(weights)
    if found != len(classes):
        raise ModelError(f"the weights are for {found} classes, the images have {len(classes)}")
    spec = ModelSpec(name, find_width(name, weights), classes, input_shape, mean, std)
    if name in REGISTRY and is_torchvision(name) and check_weights(spec, weights):
        other = replace(spec, architecture=f"torchvision/{name}", width=None)
        spec = spec if check_weights(other, weights) else other
    return with_weights(spec, weights), spec
