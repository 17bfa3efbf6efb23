"""What a prune run concludes: the typed content of `summary.json`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from rnp_mlflow.core.curve import CurvePoint
from rnp_mlflow.core.evaluate import Scores, der
from rnp_mlflow.core.params import PruningBy, SelectBy
from rnp_mlflow.core.selectors import SELECTORS
from rnp_mlflow.core.verdict import Confidence
from rnp_mlflow.steps.output import Result


def scores_result(scores: Scores) -> Result:
    """Return what a model's scores say, as the result of a step."""
    known = {name: value for name, value in asdict(scores).items() if value is not None}
    return Result(asdict(scores), ["  " + ", ".join(f"{name.upper()} {value:.3f}" for name, value in known.items())])


REPAIRED = "repaired"  # the purified model, if the pruned model was repaired


@dataclass(frozen=True)
class PointFigures:
    """A point of the curve, with its test scores on all test images (0 to 1; None if unknown)."""

    cutoff: float | int | None
    num_pruned: int
    holdout_acc: float
    proxy_asr: float | None
    acc: float
    asr: float | None
    ra: float | None
    der: float | None = None

    @classmethod
    def of(cls, point: CurvePoint, before: Scores | None = None) -> Self:
        """Take the figures of a point; DER follows from the unpruned model's scores."""
        s = point.scores
        rating = None if before is None else der(before, s)
        return cls(point.cutoff, point.num_pruned, point.holdout_acc, point.proxy_asr, s.acc, s.asr, s.ra, rating)


@dataclass(frozen=True)
class DetectionSummary:
    """What indicates a backdoor, and what does not (`core.verdict`); None for what needs a proxy.

    false_alarm_rate: the estimated share of clean models whose benign score is as low (0 to 1). norm_ratio: without
    BatchNorm, norm of the proxy relative to the median of the other classes' proxies; the score then has no forgetting
    rate. repair_follows: pruning was only as careful as a repair with the proxy allows (`PruningCurve.careful`).
    """

    backdoor_suspected: bool | None
    target: str
    target_share: float
    relative_norm: float | None
    removal_cost: float | None
    forgetting_rate: float | None
    benign_score: float | None
    benign_threshold: float
    clear_threshold: float
    confidence: Confidence | None
    false_alarm_rate: float | None
    norm_ratio: float | None = None
    repair_follows: bool = False

    @property
    def rarity(self) -> str:
        """Return `false_alarm_rate` in words, to begin a sentence with."""
        rate = self.false_alarm_rate or 0.0
        return "Fewer than 0.1 %" if rate < 0.001 else f"About {100 * rate:.2g} %"


@dataclass(frozen=True)
class ImageCounts:
    """How many images there are: the defender's clean ones, those of them held out, test and triggered ones."""

    clean: int
    held_out: int
    test: int
    triggered: int


@dataclass(frozen=True)
class HoldoutViews:
    """How held-out accuracy is measured.

    images: how many are evaluated. each: how often (0 = as it is). cropped, mirrored: 0 or 1.
    """

    images: int
    each: int
    cropped: int
    mirrored: int


@dataclass(frozen=True)
class PruneSummary:
    """before: the unpruned model. selected: the key in `points` of the purified model: the point pruned at
    (`pruned_at`), or repaired.

    layers: layer → (neurons pruned, neurons) of the layers that lose any.
    """

    before: PointFigures
    select_by: SelectBy
    selected: str
    pruning_by: PruningBy
    curve_eval_size: int
    points: Mapping[str, PointFigures]
    verdict: DetectionSummary | None
    layers: Mapping[str, tuple[int, int]]
    images: ImageCounts
    views: HoldoutViews

    @property
    def pruned_at(self) -> str:
        """Return the name of the point that the model is pruned at: chosen, fixed or oracle."""
        return SELECTORS[self.select_by].row

    @property
    def picked(self) -> PointFigures:
        """Return the figures of the purified model."""
        return self.points[self.selected]

    @property
    def lacks_repair(self) -> bool:
        """Return whether a repair was to remove what careful pruning left of a backdoor, and none was kept."""
        found = self.verdict
        return bool(found and found.backdoor_suspected and found.repair_follows) and REPAIRED not in self.points

    def to_json(self) -> dict[str, Any]:
        """Return the content of `summary.json`."""
        before = self.before
        return {
            "before": {"acc": before.acc, "asr": before.asr, "ra": before.ra, "val_acc": before.holdout_acc,
                       "proxy_asr": before.proxy_asr},
            "select_by": self.select_by,
            "selected": self.selected,
            "pruning_by": self.pruning_by,
            "curve_eval_size": self.curve_eval_size,
            "points": {name: _point_to_json(point, self.pruning_by) for name, point in self.points.items()},
            "verdict": None if self.verdict is None else asdict(self.verdict),
            "layers": {name: list(counts) for name, counts in self.layers.items()},
            "images": asdict(self.images),
            "views": asdict(self.views),
        }  # fmt: skip

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read what `to_json` returned."""
        axis = content["pruning_by"]
        verdict = content["verdict"]
        return cls(
            before=_point_from_json({axis: None, "pruned": 0, "der": None} | content["before"], axis),
            select_by=content["select_by"],
            selected=content["selected"],
            pruning_by=axis,
            curve_eval_size=content["curve_eval_size"],
            points={name: _point_from_json(point, axis) for name, point in content["points"].items()},
            verdict=None if verdict is None else DetectionSummary(**verdict),
            layers={name: (lost, count) for name, (lost, count) in content["layers"].items()},
            images=ImageCounts(**content["images"]),
            views=HoldoutViews(**content["views"]),
        )


def _point_to_json(point: PointFigures, axis: str) -> dict[str, Any]:
    return {
        axis: point.cutoff, "pruned": point.num_pruned, "val_acc": point.holdout_acc, "proxy_asr": point.proxy_asr,
        "acc": point.acc, "asr": point.asr, "ra": point.ra, "der": point.der,
    }  # fmt: skip


def _point_from_json(content: Mapping[str, Any], axis: str) -> PointFigures:
    return PointFigures(
        content[axis], content["pruned"], content["val_acc"], content["proxy_asr"],
        content["acc"], content["asr"], content["ra"], content["der"],
    )  # fmt: skip
