"""Models by name: ours for small images, else any torchvision classifier.

To add an architecture: one file with a builder `(classes, channels, width) -> nn.Module`, and one
line in `REGISTRY`. `small/NAME` and `torchvision/NAME` say which is meant if both have the name.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from rnp_mlflow.errors import ModelError
from rnp_mlflow.models import cifar_nets, resnet, torchvision_nets

SMALL = "small/"


@dataclass(frozen=True)
class Entry:
    """How to build a model, and the width meant by `auto` (channels of its first stage), None if it has no choice."""

    build: Callable[[int, int, int], nn.Module]  # (classes, channels, width)
    width: int | None


def _resnet(block: type[resnet.Block], *depths: int) -> Callable[[int, int, int], nn.Module]:
    return lambda classes, channels, width: resnet.SmallImageResNet(block, depths, classes, channels, width)


def _three_stages(n: int) -> Callable[[int, int, int], nn.Module]:
    return lambda classes, channels, width: cifar_nets.ThreeStageResNet(n, classes, channels, width)


def _small_stem(name: str, max_pool: bool) -> Callable[[int, int, int], nn.Module]:
    return lambda classes, channels, width: torchvision_nets.small_stem_resnet(name, max_pool, classes, channels)


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
    "resnet20": Entry(_three_stages(3), 16),
    "resnet32": Entry(_three_stages(5), 16),
    "resnet44": Entry(_three_stages(7), 16),
    "resnet56": Entry(_three_stages(9), 16),
    "resnet110": Entry(_three_stages(18), 16),
    "resnext29": Entry(cifar_nets.ResNeXt29, 64),
    "senet18": Entry(cifar_nets.SENet18, 64),
    "resnet18_cifar": Entry(_small_stem("resnet18", max_pool=False), None),
    "resnet34_cifar": Entry(_small_stem("resnet34", max_pool=False), None),
    "resnet50_cifar": Entry(_small_stem("resnet50", max_pool=False), None),
    "resnet18_cifar_maxpool": Entry(_small_stem("resnet18", max_pool=True), None),
    "resnet34_cifar_maxpool": Entry(_small_stem("resnet34", max_pool=True), None),
    "resnet50_cifar_maxpool": Entry(_small_stem("resnet50", max_pool=True), None),
}


def entry_of(name: str) -> Entry | None:
    """Return ours of that name, with or without `small/`; None for torchvision's and unknown names."""
    return REGISTRY.get(name.removeprefix(SMALL))


def resolve_width(name: str, width: int | None) -> int | None:
    """The width that `build` will use; None for models that have none, as torchvision's own."""
    entry = entry_of(name)
    return width if entry is None or width is not None else entry.width


def build(name: str, classes: int, channels: int, width: int | None = None) -> nn.Module:
    """A freshly initialised model (from torch's global generator: seed it first).

    name: of `REGISTRY`, or a torchvision classifier's (`densenet121`; `torchvision/resnet18` where
    ours has the same name, which `small/resnet18` names). Input (N, channels, H, W); output logits (N, classes).

    Raises:
        ModelError: unknown name, or a width for a model without one.
    """
    entry = entry_of(name)
    if entry is None and name.startswith(SMALL):
        raise ModelError(f"unknown model {name!r}; ours: {', '.join(sorted(REGISTRY))}")
    if width is not None and (entry is None or entry.width is None):
        owner = "" if entry else "torchvision's "
        raise ModelError(f"width={width}: {owner}{name} has no width; leave width=auto")
    if entry:
        return entry.build(classes, channels, width or entry.width or 0)
    return torchvision_nets.by_name(name, classes, channels, sorted(REGISTRY))
