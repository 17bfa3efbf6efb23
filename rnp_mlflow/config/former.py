"""Parameters as stored runs have them: former names, and values from before a parameter existed."""

from collections.abc import Mapping
from typing import Any

from rnp_mlflow.config.values import text

# Values assumed for runs that were logged before a parameter existed (`legacy_value`).
LEGACY_DEFAULTS: dict[str, Any] = {
    "precision": "fp32",
    "unlearning_batch_size": 128,
    "proxy_steps": 0,
    "proxy_classes": 1,
    "proxy_share": 0.0,
    "suspect_steps": 0,
    "mask_averaging": "none",
    "pruning_stride": 1,
    "curve_eval_size": 0,
    "repair_steps": 0,
    "repair_proxy": 0.0,
}
# Former name of a parameter → its name now, and its former values → the values now, if these changed too.
AUGMENT = {"plain": False, "augmented": True}
RENAMED: dict[str, tuple[str, dict[str, Any]]] = {
    "batch_size": ("training_batch_size", {}),
    "clip": ("grad_clip_norm", {}),
    "unlearning_views": ("unlearning_augment", AUGMENT),
    "recovering_views": ("recovering_augment", AUGMENT),
    "curve_images": ("curve_eval_size", {}),
    "clean_views": ("holdout_crops", {}),
    "stop_ratio": ("min_acc_ratio", {}),
    "max_doubt": ("benign_threshold", {}),
}
# Former parameters that changed no result → what there is in their place. Stored values are ignored.
REMOVED = {"eval_every": "unlearning and recovery measure ACC and ASR at a few moments in any case"}


def with_current_names(logged: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a run logged under the names and values that parameters have now."""
    found = {}
    for name, value in logged.items():
        if name in REMOVED:
            continue
        current, values = RENAMED.get(name, (name, {}))
        found[current] = values.get(value, value) if values else value
    return found


def rename_hint(name: str) -> str | None:
    """Return what to say of a parameter's former name, or of one that was removed; None for any other name."""
    if name in REMOVED:
        return f"parameter {name} was removed: {REMOVED[name]}"
    if name not in RENAMED:
        return None
    current, values = RENAMED[name]
    return f"parameter {name} is now called {current}" + (f" ({words_of(values)})" if values else "")


def words_of(values: Mapping[str, Any]) -> str:
    """Return former values beside the present ones, in words."""
    return ", ".join(f"{text(now)} instead of {former}" for former, now in values.items())


def legacy_value(name: str, logged: Mapping[str, Any], default: Any) -> Any:
    """Return the value of a parameter in a run that was logged before it existed. logged: the run's own settings."""
    if name == "flip":  # images of these kinds were mirrored
        return "yes" if logged.get("dataset") in (None, "folder", "npz") else "auto"
    if name == "clear_threshold":  # there was no borderline
        return logged.get("benign_threshold", default)
    return LEGACY_DEFAULTS.get(name, default)
