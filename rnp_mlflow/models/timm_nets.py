"""timm's classifiers by name, if timm is installed (the extra `timm`). It is imported only when used."""

from typing import Any

from torch import nn

from rnp_mlflow.errors import ModelError
from rnp_mlflow.models.fixed_size import scales_input, split_size

PREFIX = "timm/"


def by_name(name: str, classes: int, channels: int) -> nn.Module:
    """Build `timm/NAME` with random weights; nothing is downloaded.

    A network of one image size scales its input to it; `timm/NAME@SIZE` builds it for another.

    Raises:
        ModelError: timm is not installed, it has no such model, or the model has no other size.
    """
    try:
        import timm
    except ImportError:
        raise ModelError(f"model={name} needs timm: pip install 'rnp-mlflow[timm]'") from None
    short, size = split_size(name.removeprefix(PREFIX))
    if short not in timm.list_models():
        raise ModelError(f"unknown model {name!r}: timm {timm.__version__} has none of that name")
    given: dict[str, Any] = {} if size is None else {"img_size": size}
    try:
        model: nn.Module = timm.create_model(short, pretrained=False, num_classes=classes, in_chans=channels, **given)
    except TypeError as error:
        raise ModelError(f"{name} cannot be built: {str(error)[:160]}") from None
    settings = model.pretrained_cfg
    if isinstance(settings, dict) and settings.get("fixed_input_size"):
        return scales_input(model, size or settings["input_size"][-1])
    return model
