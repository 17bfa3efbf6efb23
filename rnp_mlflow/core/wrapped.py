"""A float32 copy of a model to work on, and the result in the form in which the model was given."""

import copy

import torch
from torch import nn

from rnp_mlflow.errors import ModelError

PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def working_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the module itself, without wrappers, its floating-point weights in float32.

    Raises:
        ModelError: it is TorchScript, or not a module at all.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("a TorchScript module cannot be masked: give the nn.Module that it was made from")
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model must be a torch.nn.Module, not {type(model).__name__}")
    plain = unwrapped(model)
    copied = copy.deepcopy(plain)
    return copied if all(dtype == torch.float32 for dtype in dtypes(plain).values()) else copied.float()


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside DataParallel, DistributedDataParallel and torch.compile's wrapper."""
    while True:
        inner = model.module if isinstance(model, PARALLEL) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    """Return the dtype of every floating-point parameter and buffer, by name."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: value.dtype for name, value in named if value.is_floating_point()}


def as_given(result: nn.Module, given: nn.Module) -> nn.Module:
    """Return `result`, in place in the dtypes of `given`, whose plain module it was made from; wrapped if it was so.

    Only DataParallel is put on again: the other wrappers belong to a process group or a compilation.
    """
    wanted = dtypes(unwrapped(given))
    named = [*result.named_parameters(remove_duplicate=False), *result.named_buffers(remove_duplicate=False)]
    for name, value in named:
        if name in wanted and value.dtype != wanted[name]:
            value.data = value.data.to(wanted[name])
    if isinstance(given, nn.DataParallel):
        wrapped = copy.copy(given)
        wrapped._modules = given._modules | {"module": result}
        return wrapped.eval()
    return result
