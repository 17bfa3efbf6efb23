"""Models by name: ours for small images, or any classifier of torchvision's or timm's.

To add an architecture, write a file with a builder `(classes, channels, width) -> nn.Module`, and add one line to
`REGISTRY`. If both have a name, `small/NAME` means ours and `torchvision/NAME` torchvision's.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from rnp_mlflow.errors import ModelError
from rnp_mlflow.models import cifar_nets, norm_free, own_code, resnet, timm_nets, torchvision_nets

SMALL = "small/"


@dataclass(frozen=True)
class ModelEntry:
    """How to build a model, and its default width (channels of the first stage), None if the width is fixed."""

    build: Callable[[int, int, int], nn.Module]  # (classes, channels, width)
    width: int | None


def _resnet(block: type[resnet.Block], *depths: int) -> Callable[[int, int, int], nn.Module]:
    return lambda classes, channels, width: resnet.SmallImageResNet(block, depths, classes, channels, width)


def _three_stages(n: int) -> Callable[[int, int, int], nn.Module]:
    return lambda classes, channels, width: cifar_nets.ThreeStageResNet(n, classes, channels, width)


def _small_stem(name: str, max_pool: bool) -> Callable[[int, int, int], nn.Module]:
    return lambda classes, channels, width: torchvision_nets.small_stem_resnet(name, max_pool, classes, channels)


REGISTRY: dict[str, ModelEntry] = {
    "resnet18_narrow": ModelEntry(_resnet(resnet.BasicBlock, 2, 2, 2, 2), 16),  # the default model
    "resnet18": ModelEntry(_resnet(resnet.BasicBlock, 2, 2, 2, 2), 64),
    "resnet34": ModelEntry(_resnet(resnet.BasicBlock, 3, 4, 6, 3), 64),
    "resnet50": ModelEntry(_resnet(resnet.Bottleneck, 3, 4, 6, 3), 64),
    "preactresnet18": ModelEntry(_resnet(resnet.PreActBlock, 2, 2, 2, 2), 64),
    "preactresnet34": ModelEntry(_resnet(resnet.PreActBlock, 3, 4, 6, 3), 64),
    "preactresnet50": ModelEntry(_resnet(resnet.PreActBottleneck, 3, 4, 6, 3), 64),
    "vgg19_bn": ModelEntry(torchvision_nets.small_vgg19_bn, 64),
    "mobilenet_v2": ModelEntry(torchvision_nets.small_mobilenet_v2, 32),
    "resnet20": ModelEntry(_three_stages(3), 16),
    "resnet32": ModelEntry(_three_stages(5), 16),
    "resnet44": ModelEntry(_three_stages(7), 16),
    "resnet56": ModelEntry(_three_stages(9), 16),
    "resnet110": ModelEntry(_three_stages(18), 16),
    "resnext29": ModelEntry(cifar_nets.ResNeXt29, 64),
    "senet18": ModelEntry(cifar_nets.SENet18, 64),
    "vit_mini": ModelEntry(norm_free.SmallViT, 64),
    "convnext_mini": ModelEntry(norm_free.small_convnext, 32),
    "resnet18_gn": ModelEntry(norm_free.group_norm_resnet18, 16),
    "vgg8": ModelEntry(norm_free.plain_vgg8, 32),
    "resnet18_cifar": ModelEntry(_small_stem("resnet18", max_pool=False), None),
    "resnet34_cifar": ModelEntry(_small_stem("resnet34", max_pool=False), None),
    "resnet50_cifar": ModelEntry(_small_stem("resnet50", max_pool=False), None),
    "resnet18_cifar_maxpool": ModelEntry(_small_stem("resnet18", max_pool=True), None),
    "resnet34_cifar_maxpool": ModelEntry(_small_stem("resnet34", max_pool=True), None),
    "resnet50_cifar_maxpool": ModelEntry(_small_stem("resnet50", max_pool=True), None),
}


def find_entry(name: str) -> ModelEntry | None:
    """Return our entry of that name, with or without `small/`; None for torchvision's and unknown names."""
    return REGISTRY.get(name.removeprefix(SMALL))


def resolve_width(name: str, width: int | None) -> int | None:
    """Return the width that `build` will use; None for models with a fixed width, such as torchvision's."""
    entry = find_entry(name)
    return width if entry is None or width is not None else entry.width


def build(name: str, classes: int, channels: int, width: int | None = None) -> nn.Module:
    """Build a freshly initialised model (from torch's global generator: seed it first).

    name: a name of `REGISTRY`, a torchvision classifier's (`densenet121`; `torchvision/resnet18` if `REGISTRY` has the
    same name), `timm/NAME`, or `code/MODULE:FUNCTION` (`own_code`). Input (N, channels, H, W); output logits
    (N, classes).

    Raises:
        ModelError: unknown name, or `width` is given for a model with a fixed width.
    """
    entry = find_entry(name)
    if entry is None and name.startswith(SMALL):
        raise ModelError(f"unknown model {name!r}; ours: {', '.join(sorted(REGISTRY))}")
    if width is not None and (entry is None or entry.width is None):
        owner = "" if entry or name.startswith(timm_nets.PREFIX) else "torchvision's "
        raise ModelError(f"width={width}: {owner}{name} has no width; leave width=auto")
    if entry:
        return entry.build(classes, channels, width or entry.width or 0)
    if name.startswith(own_code.PREFIX):
        return own_code.by_name(name)
    if name.startswith(timm_nets.PREFIX):
        return timm_nets.by_name(name, classes, channels)
    return torchvision_nets.by_name(name, classes, channels, sorted(REGISTRY))
