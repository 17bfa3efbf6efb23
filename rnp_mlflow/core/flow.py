"""How tensors flow through a network in one forward pass: which layer made what, and which operation takes it.

A `TorchDispatchMode` sees every operation, functional ones too, so neither the order of modules nor their classes
matter. In inference mode operations arrive whole (`linear`, `layer_norm`, `scaled_dot_product_attention`).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Eater = Literal["activation", "norm", "gate", "other"]

WEIGHTED = {"linear", "conv1d", "conv2d", "conv3d", "convolution"}
NORMS = {"layer_norm", "group_norm", "instance_norm", "batch_norm", "rms_norm"}
WEIGHT_PLACE = {"group_norm": 2, "layer_norm": 2, "rms_norm": 2}  # of a norm's arguments; 1 for the others
CHANNELS_LAST = {"linear", "layer_norm", "rms_norm"}
# f(0) = 0, so that a channel of zeros stays one
ACTIVATIONS = {
    "relu", "relu6", "hardtanh", "gelu", "silu", "hardswish", "mish", "elu", "selu", "celu", "leaky_relu", "prelu",
    "tanh",
}  # fmt: skip
GATES = {"sigmoid", "hardsigmoid"}
LAYOUT = {
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "squeeze", "unsqueeze", "movedim",
    "swapaxes", "select", "slice", "narrow", "unbind", "contiguous", "clone", "expand",
}  # fmt: skip
SAME = {"dropout", "feature_dropout", "alpha_dropout", "detach", "alias", "to", "_to_copy"}
# They keep a channel of zeros apart from the others.
POOLS = {
    "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_max_pool2d", "mean", "pad", "roll", "chunk", "split", "index",
}  # fmt: skip
SOFTMAX = {"softmax", "_softmax", "_safe_softmax"}


@dataclass(eq=False)
class Layer:
    """A convolution or linear layer, over all its calls.

    weight: its parameter's name; None if the weight is computed or the layer is transposed. channels: that it gives.
    biases: their names; None stands for a computed one. eaters: what takes its outputs. fed_by: the layers whose
    activations it reads.
    """

    weight: str | None
    channels: int
    biases: set[str | None] = field(default_factory=set)
    eaters: set[Eater] = field(default_factory=set)
    fed_by: set["Layer"] = field(default_factory=set)


@dataclass(frozen=True)
class Made:
    """A tensor that a layer made."""

    layer: Layer


@dataclass(frozen=True)
class Acted:
    """An activation of what these layers made."""

    layers: frozenset[Layer]


@dataclass(frozen=True)
class Weights:
    """Attention weights, the output of a softmax."""


@dataclass(frozen=True, eq=False)
class Heads:
    """The output of attention. labels: of the same shape, the image and head that each value comes from."""

    labels: Tensor


Tag = Made | Acted | Weights | Heads


@dataclass
class Flow:
    """What one forward pass showed.

    layers: by the name of their weight; those without a name are in `unnamed`. norms: a norm's weight → the layers of
    as many channels that made its inputs, None for anything else. heads: a weight → for its calls, the head that each
    input column belongs to; empty for an input that does not come from attention. answer: the layers whose activations
    are the network's output.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    unnamed: list[Layer] = field(default_factory=list)
    norms: dict[str, set[Layer | None]] = field(default_factory=dict)
    heads: dict[str, set[tuple[int, ...]]] = field(default_factory=dict)
    answer: frozenset[Layer] = frozenset()


class FlowRecorder(TorchDispatchMode):
    """Records the flow of one forward pass in inference mode."""

    def __init__(self, parameters: Mapping[str, Tensor]):
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = {id(value): name for name, value in parameters.items()}
        self.tags: dict[int, tuple[Tensor, Tag]] = {}  # by id; the tensors are held, so that no id is used twice
        self.flow = Flow()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        called = name.removesuffix("_") if name[0] != "_" else name
        tags = self.outcome(called, func, args, kwargs or {}, result)
        outputs = result if isinstance(result, tuple | list) else [result]
        for output, tag in zip(outputs, tags, strict=False):
            if isinstance(output, Tensor):
                self.tags.pop(id(output), None)
                if tag is not None:
                    self.tags[id(output)] = output, tag
        return result

    def tag(self, value: object) -> Tag | None:
        """Return what is known of a tensor."""
        found = self.tags.get(id(value))
        return found[1] if found else None

    def outcome(
        self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> Iterator[Tag | None]:
        """Note what an operation takes; yield what is then known of each of its outputs."""
        first = self.tag(args[0]) if args else None
        if name in LAYOUT and isinstance(first, Heads):
            yield from relabelled(func, first.labels, args, kwargs)
        elif name in SAME or (name in ("mul", "div") and not isinstance(args[1], Tensor)):
            yield first
        elif name in LAYOUT | POOLS and not isinstance(first, Heads):
            yield from [first] * (len(result) if isinstance(result, tuple | list) else 1)
        elif name == "cat":
            yield self.joined(args[0])
        elif name in ACTIVATIONS and isinstance(first, Made):
            first.layer.eaters.add("activation")
            yield Acted(frozenset({first.layer}))
        elif name in WEIGHTED:
            self.eaten("other", args[0])
            yield Made(self.called(name, args, result))
        elif name in NORMS:
            self.normed(name, args)
            yield None
        elif name in SOFTMAX:
            self.eaten("other", args[0])
            yield Weights()
        elif name == "scaled_dot_product_attention" or (name in ("matmul", "bmm") and isinstance(first, Weights)):
            self.eaten("other", *args)
            yield Heads(labels_of(result.shape))
        else:
            self.eaten("gate" if name in GATES else "other", *args, *kwargs.values())
            yield None

    def eaten(self, by: Eater, *values: Any) -> None:
        """Note what takes these values, if a layer made them."""
        for value in values:
            if isinstance(value, tuple | list):
                self.eaten(by, *value)
            elif isinstance(tag := self.tag(value), Made):
                tag.layer.eaters.add(by)

    def joined(self, parts: list[Tensor]) -> Tag | None:
        """Return what is known of tensors in a row: activations stay such."""
        tags = [self.tag(part) for part in parts]
        acted = [tag.layers for tag in tags if isinstance(tag, Acted)]
        if len(acted) == len(tags):
            return Acted(frozenset().union(*acted))
        self.eaten("other", *parts)
        return None

    def called(self, operation: str, args: tuple[Any, ...], result: Tensor) -> Layer:
        """Note a call of a convolution or linear layer; return the layer."""
        weight, bias = args[1], args[2] if len(args) > 2 else None
        transposed = len(args) > 6 and args[6] is True
        name = None if transposed else self.names.get(id(weight))
        layer = Layer(name, result.shape[-1 if operation in CHANNELS_LAST else 1])
        source = self.tag(args[0])
        if name is None:
            self.flow.unnamed.append(layer)
        else:
            layer = self.flow.layers.setdefault(name, layer)
            columns = head_of_column(source.labels, weight.ndim) if isinstance(source, Heads) else ()
            self.flow.heads.setdefault(name, set()).add(columns)
        if bias is not None:
            layer.biases.add(self.names.get(id(bias)))
        if isinstance(source, Acted):
            layer.fed_by |= source.layers
        return layer

    def normed(self, operation: str, args: tuple[Any, ...]) -> None:
        """Note a call of a norm."""
        made = self.tag(args[0])
        self.eaten("norm", args[0])
        weight = weight_of(operation, args)
        name = self.names.get(id(weight))
        if name and weight is not None and weight.ndim == 1:
            layer = made.layer if isinstance(made, Made) and made.layer.channels == len(weight) else None
            self.flow.norms.setdefault(name, set()).add(layer)


class LayerWatch(TorchDispatchMode):
    """Hands every call of the layers and norms with these weights to `on_call`, in inference mode.

    names: id of the weight → name. on_call: receives the name, the operation, what it took and what it gave.
    """

    def __init__(self, names: Mapping[int, str], on_call: Callable[[str, str, Tensor, Tensor], None]):
        super().__init__()  # type: ignore[no-untyped-call]
        self.names, self.on_call = names, on_call

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        operation = func.overloadpacket.__name__
        name = self.names.get(id(weight_of(operation, args))) if operation in WEIGHTED | NORMS else None
        if name is not None:
            self.on_call(name, operation, args[0], result)
        return result


def weight_of(operation: str, args: tuple[Any, ...]) -> Tensor | None:
    """Return the weight among the arguments of a layer or norm; None if it has none."""
    place = WEIGHT_PLACE.get(operation, 1)
    found: Tensor | None = args[place] if len(args) > place else None
    return found


def labels_of(shape: torch.Size) -> Tensor:
    """Return labels for attention's output (…, tokens, dim): the number of the leading place, its image and head."""
    lead = shape[:-2]
    return torch.arange(lead.numel()).reshape(*lead, 1, 1).expand(shape)


def relabelled(
    func: Callable[..., Any], labels: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[Tag | None]:
    """Do with the labels what the operation does with the values."""
    name = func.overloadpacket.__name__  # type: ignore[attr-defined]
    moved = labels.reshape(args[1]) if name == "view" else func(labels, *args[1:], **kwargs)
    yield from (Heads(each) for each in (moved if isinstance(moved, tuple | list) else [moved]))


def head_of_column(labels: Tensor, weight_dims: int) -> tuple[int, ...]:
    """Return the head of each input column of a projection, in order of appearance; empty if rows differ in it.

    labels: of its input, channels last for a linear layer (two dimensions of the weight), else second.
    """
    rows = (labels if weight_dims == 2 else labels.movedim(1, -1)).flatten(0, -2)
    first, last = (pattern(rows[k].tolist()) for k in (0, -1))
    return first if first == last else ()


def pattern(values: list[int]) -> tuple[int, ...]:
    """Replace each value by the number of different ones before its first place: 7, 7, 3 → 0, 0, 1."""
    number = {value: k for k, value in enumerate(dict.fromkeys(values))}
    return tuple(number[value] for value in values)
