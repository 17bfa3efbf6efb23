"""Which neurons a network has: the places in it that a mask can act on.

A neuron is a coordinate of a tensor inside a branch, of one of three kinds:

* norm: a channel of a BatchNorm, or of another norm over the channels of one convolution or linear layer; its scale is
  masked.
* hidden: an output channel of a convolution or linear layer that goes straight into an activation with f(0) = 0; its
  weights and its bias are masked, so that masking is the same as removing it.
* head: an attention head; its columns of the output projection are masked.

Never a norm that reads a sum (the residual stream): its scale hides a coordinate from one block and removes no neuron.
Never the classifier. A network with BatchNorm has its channels alone, as in the paper, whatever else is in it.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rnp_mlflow.core.flow import Acted, Flow, FlowRecorder, Layer
from rnp_mlflow.errors import ModelError

Kind = Literal["norm", "hidden", "head"]
REMEMBERED = "_rnp_units"  # attribute of a model without BatchNorm; copies of the model keep it


@dataclass(frozen=True)
class Scaled:
    """A parameter that a mask scales along `dim`. owner: the neuron of each place; None: one each, in order."""

    parameter: str
    dim: int = 0
    owner: tuple[int, ...] | None = None

    def factor(self, values: Tensor, dims: int) -> Tensor:
        """Return what the parameter, of so many dimensions, is multiplied by. values: (neurons,)."""
        factor = values if self.owner is None else values[torch.tensor(self.owner, device=values.device)]
        return factor.view([-1 if k == self.dim else 1 for k in range(dims)])


@dataclass(frozen=True)
class UnitLayer:
    """The neurons of one layer: their kind, their number, and the parameters that a mask scales."""

    kind: Kind
    count: int
    parts: tuple[Scaled, ...]


Units = dict[str, UnitLayer]  # module path → its neurons, in `state_dict` order


def norm_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers of `model` that carry a scale, by module path, in `state_dict` order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm) and module.affine}


def train_mode(model: nn.Module) -> nn.Module:
    """Put a model into train mode if it has BatchNorm, whose statistics have to follow, else into eval mode.

    Without BatchNorm, train mode would only add noise: dropout and stochastic depth.
    """
    return model.train(any(isinstance(module, _BatchNorm) for module in model.modules()))


def units_of(model: nn.Module) -> Units:
    """Return the neurons of a model: BatchNorm's channels or, without any, what `remember_units` found.

    Raises:
        ModelError: there are none.
    """
    if norms := norm_layers(model):
        return {
            name: UnitLayer("norm", layer.weight.numel(), (Scaled(f"{name}.weight"),)) for name, layer in norms.items()
        }
    found: Units | None = getattr(model, REMEMBERED, None)
    if found is None:
        raise ModelError(
            f"{type(model).__name__} has no BatchNorm layer with a scale, and its other neurons are not known: give "
            "remember_units a few inputs"
        )
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no neurons to prune: no BatchNorm with a scale, no other norm that reads a "
            "convolution or linear layer, none of these that goes straight into an activation, no attention"
        )
    return found


def remember_units(model: nn.Module, inputs: Tensor) -> None:
    """Find the neurons of a model without BatchNorm by one forward pass, and keep them with it.

    inputs: a few of the model's own, (N, C, H, W). A model with BatchNorm is left as it is.
    """
    if not norm_layers(model):
        setattr(model, REMEMBERED, find_units(model, inputs))


def forget_units(model: nn.Module) -> None:
    """Take off what `remember_units` kept."""
    vars(model).pop(REMEMBERED, None)


def find_units(model: nn.Module, inputs: Tensor) -> Units:
    """Return the neurons that one forward pass in eval mode shows, in `state_dict` order; norms of all kinds."""
    flow = trace_flow(model, inputs)
    parameters = dict(model.named_parameters())
    found = {name.removesuffix(".weight"): unit for name, unit in _units(flow, parameters)}
    order = {name: k for k, name in enumerate(model.state_dict())}
    return dict(sorted(found.items(), key=lambda item: order.get(item[1].parts[0].parameter, 0)))


def _units(flow: Flow, parameters: dict[str, nn.Parameter]) -> list[tuple[str, UnitLayer]]:
    """Return (weight's name, neurons) of each layer that has any; of one name the last counts."""
    found = []
    for name, columns in flow.heads.items():
        owner = next(iter(columns))
        if len(columns) == 1 and owner and len(owner) == parameters[name].shape[1]:
            found.append((name, UnitLayer("head", max(owner) + 1, (Scaled(name, 1, owner),))))
    for name, layer in flow.layers.items():
        if is_hidden(layer, flow):
            parts = [Scaled(name), *(Scaled(bias) for bias in sorted(filter(None, layer.biases)))]
            found.append((name, UnitLayer("hidden", len(parameters[name]), tuple(parts))))
    for name, makers in flow.norms.items():
        if all(maker is not None and maker.eaters == {"norm"} for maker in makers):
            found.append((name, UnitLayer("norm", parameters[name].numel(), (Scaled(name),))))
    return found


def is_hidden(layer: Layer, flow: Flow) -> bool:
    """Return whether all outputs of a layer go straight into activations, and not on into gates or the answer alone."""
    if layer.eaters != {"activation"} or None in layer.biases or layer in flow.answer:
        return False
    readers = [each for each in (*flow.layers.values(), *flow.unnamed) if layer in each.fed_by]
    return not readers or any(reader.eaters != {"gate"} for reader in readers)


def trace_flow(model: nn.Module, inputs: Tensor) -> Flow:
    """Run a copy of the model in eval mode, on the meta device if it can be, and return how tensors flowed."""
    try:
        return _traced(meta_copy(model), inputs.to("meta"))
    except Exception:  # it needs values; another fault comes again
        return _traced(copy.deepcopy(model), inputs)


def meta_copy(model: nn.Module) -> nn.Module:
    """Return a copy with all parameters and buffers on the meta device; nothing of their size is allocated."""
    memo: dict[int, Tensor] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    memo |= {id(b): b.detach().to("meta") for b in model.buffers()}
    return copy.deepcopy(model, memo)


@contextmanager
def attention_in_full() -> Iterator[None]:
    """Keep `nn.MultiheadAttention` from its fast path, which hides attention in one operation."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _traced(model: nn.Module, inputs: Tensor) -> Flow:
    """Run the model, which is left in eval mode, and return how tensors flowed."""
    recorder = FlowRecorder(dict(model.named_parameters()))
    with attention_in_full(), torch.inference_mode(), recorder:
        output = model.eval()(inputs)
    answer = recorder.tag(output)
    if isinstance(answer, Acted):
        recorder.flow.answer = answer.layers
    return recorder.flow
