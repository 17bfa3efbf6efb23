"""BackdoorBench's model names (`utils/aggregate_block/model_trainer_generate.py`) and our names for the same models.

BackdoorBench defines `preactresnet18`, `resnext29` and `senet18` itself. Every other name is torchvision's model of
that name, built with only the class count; a vision transformer is `Sequential(Resize((224, 224)), model)`, so its keys
begin with `1.`. Compared with ours at commit f02e353 (4 July 2025): the keys are equal and in the same order, and the
logits agree within 1e-6 in eval and in training mode.
"""

from rnp_mlflow.errors import ConfigError, ModelError

# If BackdoorBench's name means torchvision's model but our registry has the same name, `torchvision/` is prepended.
OURS = {
    "preactresnet18": "preactresnet18", "resnext29": "resnext29", "senet18": "senet18",
    "resnet18": "torchvision/resnet18", "resnet34": "torchvision/resnet34", "resnet50": "torchvision/resnet50",
    "vgg19_bn": "torchvision/vgg19_bn", "mobilenet_v2": "torchvision/mobilenet_v2",
    "mobilenet_v3_large": "mobilenet_v3_large", "densenet121": "densenet121", "densenet161": "densenet161",
    "inception_v3": "inception_v3", "googlenet": "googlenet", "shufflenet_v2_x1_0": "shufflenet_v2_x1_0",
    "resnext50_32x4d": "resnext50_32x4d", "wide_resnet50_2": "wide_resnet50_2", "mnasnet1_0": "mnasnet1_0",
    "efficientnet_b0": "efficientnet_b0", "efficientnet_b3": "efficientnet_b3",
    "alexnet": "alexnet", "vgg11": "vgg11", "vgg16": "vgg16", "vgg19": "vgg19", "squeezenet1_0": "squeezenet1_0",
    "convnext_tiny": "convnext_tiny",
    "vit_b_16": "vit_b_16", "vit_b_32": "vit_b_32", "vit_l_16": "vit_l_16", "vit_l_32": "vit_l_32",
}  # fmt: skip
OWN_WIDTH = {"preactresnet18": 64, "resnext29": 64, "senet18": 64}  # the only width that BackdoorBench builds


def our_name(name: str) -> str:
    """Return our name for a BackdoorBench model.

    Raises:
        ModelError: the name is not one of BackdoorBench's.
    """
    if name not in OURS:
        raise ModelError(
            f"model_name {name[:40]!r} is not one of BackdoorBench's ({', '.join(sorted(OURS))}): give model=NAME"
        )
    return OURS[name]


def backdoorbench_name(architecture: str, width: int | None, channels: int) -> str:
    """Return the name from which BackdoorBench builds the same model.

    Raises:
        ConfigError: BackdoorBench builds another model from that name, or does not know it.
    """
    names = {ours: theirs for theirs, ours in OURS.items()}
    name = names.get(architecture) or names.get(architecture.removeprefix("torchvision/"))
    if name is None:
        short = architecture.removeprefix("torchvision/")
        reason = f"its {short} is torchvision's" if short in OURS else "it has no such model"
        raise ConfigError(f"export=backdoorbench: BackdoorBench cannot load this {architecture}: {reason}")
    if width not in (None, OWN_WIDTH.get(name)):
        raise ConfigError(
            f"export=backdoorbench: BackdoorBench builds {name} of width {OWN_WIDTH[name]}, this one has {width}"
        )
    if channels != 3:
        raise ConfigError(
            f"export=backdoorbench: BackdoorBench builds {name} for 3 channels, this one takes {channels}"
        )
    return name
