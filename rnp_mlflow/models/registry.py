"""Models by name: ours for small images, else any torchvision classifier.

To add an architecture: one file with a builder `(classes, channels, width) -> nn.Module`, and one
line in `REGISTRY`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from rnp_mlflow.errors import ModelError
from rnp_mlflow.models import resnet, torchvision_nets


@dataclass(frozen=True)
class Entry:
    """How to build a model, and the width meant by `auto` (channels of its first stage)."""

    build: Callable[[int, int, int], nn.Module]  # (classes, channels, width)
    width: int


def _resnet(block: type[resnet.Block], *depths: int) -> Callable[[int, int, int], nn.Module]:
    return lambda classes, channels, width: resnet.SmallImageResNet(block, depths, classes, channels, width)


REGISTRY: dict[str, Entry] = {
    "resnet18_narrow": Entry(_resnet(resnet.BasicBlock, 2, 2, 2, 2), 16),  # of the default
    "resnet18": Entry(_resnet(resnet.BasicBlock, 2, 2, 2, 2), 64),
    "resnet34": Entry(_resnet(resnet.BasicBlock, 3, 4, 6, 3), 64),
    "resnet50": Entry(_resnet(resnet.Bottleneck, 3, 4, 6, 3), 64),
    "preactresnet18": Entry(_resnet(resnet.PreActBlock, 2, 2, 2, 2), 64),
    "preactresnet34": Entry(_resnet(resnet.PreActBlock, 3, 4, 6, 3), 64),
    "preactresnet50": Entry(_resnet(resnet.PreActBottleneck, 3, 4, 6, 3), 64),
    "vgg19_bn": Entry(torchvision_nets.small_vgg19_bn, 64),
    "mobilenet_v2": Entry(torchvision_nets.small_mobilenet_v2, 32),
}


def resolve_width(name: str, width: int | None) -> int | None:
    """The width that `build` will use; None for torchvision's own models, which have none."""
    entry = REGISTRY.get(name)
    return width if entry is None or width is not None else entry.width


def build(name: str, classes: int, channels: int, width: int | None = None) -> nn.Module:
    """A freshly initialised model (from torch's global generator: seed it first).

    name: of `REGISTRY`, or a torchvision classifier's (`densenet121`; `torchvision/resnet18` where
    ours has the same name). Input (N, channels, H, W); output logits (N, classes).

    Raises:
        ModelError: unknown name, a width for a model without one, or unfit channels.
    """
    if entry := REGISTRY.get(name):
        return entry.build(classes, channels, width or entry.width)
    if width is not None:
        raise ModelError(f"width={width}: torchvision's {name} has no width; leave width=auto")
    return torchvision_nets.by_name(name, classes, channels, sorted(REGISTRY))
