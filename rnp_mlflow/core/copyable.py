"""Models that cannot be worked on as a copy: refused with the reason, before anything is computed."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from rnp_mlflow.errors import ModelError


def check_copyable(model: nn.Module) -> None:
    """Refuse a model that `copy.deepcopy` cannot copy, or in which one mask would mean several places.

    Raises:
        ModelError: it has lazy layers without weights, a BatchNorm layer that is used twice, or the old weight_norm.
    """
    if any(is_lazy(value) for value in (*model.parameters(), *model.buffers())):
        raise ModelError("the model has lazy layers without weights yet (LazyConv2d): run it once on a batch before")
    seen: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _BatchNorm) and module in seen:
            raise ModelError(
                f"the BatchNorm layers {seen[module]} and {name} are one module used twice, so that its neurons "
                "cannot be told apart: give each place its own (copy.deepcopy)"
            )
        seen[module] = name
        for key, value in (*vars(module).items(), *module._buffers.items()):
            if isinstance(value, Tensor) and not value.is_leaf:
                raise ModelError(
                    f"{key} of layer {name} is computed from other weights (the old torch.nn.utils.weight_norm or "
                    "spectral_norm): take it off with remove_weight_norm, or use torch.nn.utils.parametrizations"
                )
