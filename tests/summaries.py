"""A summary of a prune run, as it leaves it."""

from typing import Any

from rnp_mlflow.steps.summary import PruneSummary


def summary(**changes: Any) -> PruneSummary:
    """A summary as `prune` leaves it, with these entries other; of a dict those named."""
    point = {
        "threshold": 0.5,
        "pruned": 7,
        "val_acc": 0.9,
        "proxy_asr": 0.0,
        "acc": 0.9,
        "asr": 0.0,
        "ra": 0.9,
        "der": 1,
    }
    found: dict[str, Any] = {
        "before": {"acc": 0.9, "asr": 1.0, "ra": 0.0, "val_acc": 0.9, "proxy_asr": 0.8}, "select_by": "proxy",
        "selected": "chosen", "pruning_by": "threshold", "curve_eval_size": 1000,
        "points": {"chosen": point, "fixed": point, "oracle": point},
        "images": {"clean": 500, "held_out": 100, "test": 400, "triggered": 300}, "layers": {},
        "views": {"images": 100, "each": 5, "cropped": 1, "mirrored": 0},
        "verdict": {"backdoor_suspected": True, "target": "cat", "target_share": 0.9, "relative_norm": 0.1,
                    "removal_cost": 0.01, "forgetting_rate": 0.2, "benign_score": 0.0003, "benign_threshold": 0.007,
                    "clear_threshold": 0.004, "confidence": "clear", "false_alarm_rate": 0.0},
    }  # fmt: skip
    for name, value in changes.items():
        found[name] = found[name] | value if isinstance(value, dict) else value
    return PruneSummary.from_json(found)
