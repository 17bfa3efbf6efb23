"""Networks that take images of one size alone, such as vision transformers: other images are scaled to it."""

from functools import partial

from torch import Tensor, nn
from torch.nn.functional import interpolate

from rnp_mlflow.errors import ModelError


def scales_input(model: nn.Module, size: int) -> nn.Module:
    """Return the model, which from now on scales images to size × size, as `torchvision.transforms.Resize` would.

    Keys of the state dict stay as they are.
    """
    model.register_forward_pre_hook(partial(scaled_inputs, (size, size)))
    return model


def scaled_inputs(size: tuple[int, int], model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Scale a batch (N, C, H, W), unless it has the size."""
    images = inputs[0]
    if images.shape[-2:] == size:
        return inputs
    return (interpolate(images, size=size, mode="bilinear", antialias=True), *inputs[1:])


def split_size(name: str) -> tuple[str, int | None]:
    """Split `NAME@SIZE`; None without a size.

    Raises:
        ModelError: the size is not a whole number from 1 to 4096.
    """
    short, _, size = name.partition("@")
    if not size:
        return short, None
    if not size.isdecimal() or not 1 <= int(size) <= 4096:
        raise ModelError(f"model={name}: after @ give the size of the images that it was trained on, in pixels")
    return short, int(size)
