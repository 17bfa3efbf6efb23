"""torchvision's classifiers by name, and some of them adapted to small images.

Torchvision is imported inside the functions, because the import takes seconds and default runs do not need it.
"""

from functools import cache

from torch import nn

from rnp_mlflow.errors import ModelError
from rnp_mlflow.models.fixed_size import scales_input, split_size


def small_vgg19_bn(classes: int, channels: int, width: int) -> nn.Module:
    """Build VGG19 with BatchNorm (Simonyan & Zisserman, 2015) for small images: one linear layer on top.

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
    built: nn.Module = model
    return built


def small_mobilenet_v2(classes: int, channels: int, width: int) -> nn.Module:
    """Build MobileNetV2 (Sandler et al., CVPR 2018) with stride 1 in its stem and second stage.

    width: channels of the stem (32 as published). H, W ≥ 16.
    """
    from torchvision.models import MobileNetV2

    setting = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1],
               [6, 160, 3, 2], [6, 320, 1, 1]]  # fmt: skip  # t, c, n, s: table 2, stage 2's s 2 → 1
    model = MobileNetV2(classes, width / 32, inverted_residual_setting=setting)
    stem = model.features[0][0]
    model.features[0][0] = nn.Conv2d(channels, stem.out_channels, 3, padding=1, bias=False)
    built: nn.Module = model
    return built


def small_stem_resnet(name: str, max_pool: bool, classes: int, channels: int) -> nn.Module:
    """Build torchvision's ResNet with the usual change for CIFAR: a 3 × 3 stem of stride 1, not 7 × 7 of stride 2.

    max_pool: whether to keep the max pool after the stem; both variants are in use, with the same keys and shapes.
    H, W ≥ 8.
    """
    from torchvision import models

    model = models.get_model(name, weights=None, num_classes=classes)
    model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    if not max_pool:
        model.maxpool = nn.Identity()
    built: nn.Module = model
    return built


@cache
def names() -> tuple[str, ...]:
    """Return the names of all torchvision classifiers."""
    from torchvision import models

    return tuple(models.list_models(module=models))


@cache
def families() -> dict[str, tuple[str, ...]]:
    """Group the classifiers by the file that defines them: first name of the group → all names."""
    from torchvision import models

    found: dict[str, list[str]] = {}
    for name in names():
        found.setdefault(models.get_model_builder(name).__module__, []).append(name)
    return {group[0]: tuple(group) for group in found.values()}


def is_torchvision(name: str) -> bool:
    """Whether torchvision has a classifier of that name."""
    return name in names()


def by_name(name: str, classes: int, channels: int, ours: list[str]) -> nn.Module:
    """Build a torchvision classifier with random weights; the name may start with `torchvision/`.

    A vision transformer scales its input to the one size that it takes, 224; `NAME@SIZE` builds it for another.
    channels: if it is not three, the first convolution is replaced by one with so many input channels.

    Raises:
        ModelError: unknown name.
    """
    from torchvision import models

    short, size = split_size(name.removeprefix("torchvision/"))
    if not is_torchvision(short):
        raise ModelError(
            f"unknown model {name!r}; ours: {', '.join(ours)}; or any torchvision classifier, or timm/NAME"
        )
    transformer = short.startswith("vit_")
    if size and not transformer:
        raise ModelError(f"model={name}: {short} takes images of any size; leave @{size} out")
    model = models.get_model(short, weights=None, num_classes=classes, **({"image_size": size} if size else {}))
    if channels != 3:
        replace_stem(model, channels)
    built: nn.Module = model
    return scales_input(built, built.image_size) if transformer else built  # type: ignore[arg-type]


def replace_stem(model: nn.Module, channels: int) -> None:
    """Replace the model's first convolution by one with `channels` inputs that is otherwise the same."""
    path, old = next((path, layer) for path, layer in model.named_modules() if isinstance(layer, nn.Conv2d))
    kind = {"stride": old.stride, "padding": old.padding, "bias": old.bias is not None}
    owner, _, last = path.rpartition(".")
    new = nn.Conv2d(channels, old.out_channels, old.kernel_size, **kind)  # type: ignore[arg-type]
    setattr(model.get_submodule(owner), last, new)
