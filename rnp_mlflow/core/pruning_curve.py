"""The pruning curve with what was measured on it: the input of `core.selectors`."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import nn

from rnp_mlflow.core import verdict
from rnp_mlflow.core.curve import CurvePoint
from rnp_mlflow.core.prune import BNCalibration


def as_measured(point: CurvePoint) -> CurvePoint:
    """Return the point: it was measured on all test images."""
    return point


def not_measured(point: CurvePoint, model: nn.Module) -> CurvePoint:
    """Refuse: this curve has no images to measure `model` on."""
    raise NotImplementedError("this curve has no images to measure another model on")


@dataclass(frozen=True)
class PruningCurve:
    """All evaluated points, the unpruned model first; the fixed operating point; what calibrates a pruned model.

    proxy_norm, removal_cost, forgetting_rate: the detection statistics (`core.verdict`); None without a proxy.
    A proxy that flips nothing on the unpruned model counts as norm 1. on_full_test_set: replaces a point's scores by
    those on all test images, if the curve was measured on `curve_eval_size` of them. measure: replaces all that was
    measured at a point by what another model gives, on all test images. norm_ratio: of `core.verdict.TargetEstimate`.
    careful: a repair with the proxy follows, so that pruning need not remove all.
    """

    points: list[CurvePoint]
    fixed: CurvePoint
    calibrate: BNCalibration | None = field(default=None, repr=False)
    proxy_norm: float | None = None
    removal_cost: float | None = None
    forgetting_rate: float | None = None
    on_full_test_set: Callable[[CurvePoint], CurvePoint] = field(default=as_measured, repr=False)
    measure: Callable[[CurvePoint, nn.Module], CurvePoint] = field(default=not_measured, repr=False)
    norm_ratio: float | None = None
    careful: bool = False

    def tried(self, repaired: CurvePoint) -> "PruningCurve":
        """Return the curve with the removal cost of a repaired model, if that is lower."""
        found = verdict.removal_cost([self.points[0], repaired])
        return replace(self, removal_cost=min(found, 1.0 if self.removal_cost is None else self.removal_cost))

    @property
    def benign_score(self) -> float | None:
        """Return the benign score (`core.verdict`), low if backdoored; None without a proxy."""
        if self.norm_ratio is not None and self.removal_cost is not None:
            return verdict.norm_free_score(self.norm_ratio, self.removal_cost)
        if self.proxy_norm is None or self.removal_cost is None or self.forgetting_rate is None:
            return None
        return verdict.benign_score(self.proxy_norm, self.removal_cost, self.forgetting_rate)
