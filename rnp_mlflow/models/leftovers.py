"""Keys that a training script keeps beside the net in one state dict: Lightning's `criterion.weight`, a metric."""

from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from rnp_mlflow.models import nearest

FEW, SHARE = 3, 0.05  # at most so many keys, or this fraction of all, may stand beside the net


def describe(weights: Mapping[str, Tensor]) -> str | None:
    """Say which keys do not belong to the net, if all others share a wrapper's prefix; None if that is not the reason.

    An architecture may itself have nearly all keys under one prefix (`features.` of a VGG). So the others without
    their prefix must be nearer to an architecture than all keys are as they stand.
    """
    prefix, odd = split(weights)
    if not odd:
        return None
    net = {key.removeprefix(prefix): value for key, value in weights.items() if key not in odd}
    while shared := _shared_prefix(net):
        prefix, net = prefix + shared, {key.removeprefix(shared): value for key, value in net.items()}
    best, _ = nearest.nearest(weights)
    inner, wrong = nearest.nearest(net)
    if nearest.similarity(inner, net) <= nearest.similarity(best, weights):
        return None
    names = ", ".join(repr(key[:60]) for key in odd[:3]) + (f" and {len(odd) - 3} more" if len(odd) > 3 else "")
    return (
        f"{len(net)} keys start with {prefix!r}, these do not: {names}; save the net's state_dict alone, "
        f"torch.save(model.{prefix.rstrip('.')}.state_dict(), FILE) (nearest is {inner}, "
        f"{'; '.join(wrong[:3]) or 'without a difference'})"
    )


def split(weights: Mapping[str, Tensor]) -> tuple[str, list[str]]:
    """Return the first part with its dot that most keys share, and the few keys without it; none if they are many."""
    counts = Counter(_first_part(key) for key in weights)
    (prefix, count), *_ = counts.most_common(1) or [("", 0)]
    odd = [key for key in weights if not key.startswith(prefix)]
    few = len(odd) <= max(FEW, SHARE * len(weights)) and len(odd) < count
    return (prefix, odd) if prefix.endswith(".") and few else ("", [])


def _first_part(key: str) -> str:
    return "".join(key.partition(".")[:2])


def _shared_prefix(weights: Mapping[str, Tensor]) -> str:
    parts = {_first_part(key) for key in weights}
    only = parts.pop() if len(parts) == 1 and len(weights) > 1 else ""
    return only if only.endswith(".") else ""
