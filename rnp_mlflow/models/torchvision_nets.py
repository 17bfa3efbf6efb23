"""torchvision's classifiers by name, and two of them refitted for small images.

Torchvision is imported where it is used: it costs seconds, and the default needs none of it.
"""

from torch import nn

from rnp_mlflow.errors import ModelError


def small_vgg19_bn(classes: int, channels: int, width: int) -> nn.Module:
    """VGG19 with BatchNorm (Simonyan & Zisserman, 2015) for small images: one linear layer on top.

    width: channels of the first stage (64 as published). H, W ≥ 32.
    """
    from torchvision.models import VGG
    from torchvision.models.vgg import cfgs, make_layers

    plan = [c if c == "M" else int(c) * width // 64 for c in cfgs["E"]]
    model = VGG(make_layers(plan, batch_norm=True), num_classes=classes)
    if channels != 3:
        model.features[0] = nn.Conv2d(channels, plan[0], 3, padding=1)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Sequential(nn.Linear(plan[-2], classes))
    return model


def small_mobilenet_v2(classes: int, channels: int, width: int) -> nn.Module:
    """MobileNetV2 (Sandler et al., CVPR 2018) with the strides of its first two stages undone.

    width: channels of the stem (32 as published). H, W ≥ 16.
    """
    from torchvision.models import MobileNetV2

    setting = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1],
               [6, 160, 3, 2], [6, 320, 1, 1]]  # fmt: skip  # t, c, n, s: table 2, stage 2's s 2 → 1
    model = MobileNetV2(classes, width / 32, inverted_residual_setting=setting)
    stem = model.features[0][0]
    model.features[0][0] = nn.Conv2d(channels, stem.out_channels, 3, padding=1, bias=False)
    return model


def is_torchvision(name: str) -> bool:
    """Whether torchvision has a classifier of that name."""
    from torchvision import models

    return name in models.list_models(module=models)


def by_name(name: str, classes: int, channels: int, ours: list[str]) -> nn.Module:
    """A torchvision classifier with random weights; `torchvision/` before the name is allowed."""
    from torchvision import models

    short = name.removeprefix("torchvision/")
    if not is_torchvision(short):
        raise ModelError(f"unknown model {name!r}; ours: {', '.join(ours)}; or any torchvision classifier")
    if channels != 3:
        raise ModelError(f"torchvision's {short} takes 3-channel images, these have {channels}")
    return models.get_model(short, weights=None, num_classes=classes)
