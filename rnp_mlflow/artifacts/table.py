"""The table of all files that one step writes and another reads; no other module names them."""

from dataclasses import dataclass

SETTINGS, HISTORY, COMPARISON = "settings.json", "history.csv", "comparison.json"
PROGRESS = "progress.csv"
MODEL_FOLDER, UNLEARNED_FOLDER, PURIFIED_FOLDER = "model", "unlearned_model", "purified_model"
MODEL, MODEL_SPEC = "model/model.safetensors", "model/model.json"
DATA, POISON_PLAN = "data.json", "poison_plan.json"
TRIGGER, TRIGGERED = "trigger.safetensors", "triggered.safetensors"
UNLEARNED, UNLEARNED_SPEC = "unlearned_model/model.safetensors", "unlearned_model/model.json"
DEFENCE_INDEX, HOLDOUT_INDEX = "defence_index.txt", "holdout_index.txt"
VERDICT, PROXY = "verdict.json", "proxy.safetensors"
MASK, MASK_TEXT, MASK_PNG = "mask_values.csv", "mask_values.txt", "mask_histograms.png"
SAMPLES_PNG, PROXY_PNG = "samples.png", "proxy.png"
CURVE, CURVE_PNG, REPORT = "pruning_curve.csv", "pruning_curve.png", "report.html"
PURIFIED, PURIFIED_SPEC = "purified_model/model.safetensors", "purified_model/model.json"
PRUNED_NEURONS, SUMMARY = "pruned_neurons.csv", "summary.json"
GRID, CELLS = "grid.json", "cells.csv"


@dataclass(frozen=True)
class Artifact:
    """A file that later steps, `rerun` or `main` read.

    path: relative to the run's folder. optional: a run may omit it. compared: `rerun` compares it; not set for files
    that name paths or run IDs. decides: the results of later steps depend on its content.
    """

    path: str
    optional: bool = False
    compared: bool = True
    decides: bool = True


RECORD = Artifact(SETTINGS, compared=False, decides=False)
# Runs that were made before it existed have none, and a picture is all that it decides.
MOMENTS = Artifact(PROGRESS, optional=True, compared=False, decides=False)
MODEL_RUN = (
    Artifact(MODEL),
    Artifact(MODEL_SPEC),
    Artifact(DATA, compared=False, decides=False),  # it names a path; `chain.output_digest` uses the rest
    Artifact(POISON_PLAN),
    Artifact(TRIGGER, optional=True),
    Artifact(TRIGGERED, optional=True),
    RECORD,
)

# entry point → the files of its runs
ARTIFACTS: dict[str, tuple[Artifact, ...]] = {
    "attack": MODEL_RUN,
    "import": MODEL_RUN,
    "unlearn": (
        Artifact(UNLEARNED),
        Artifact(UNLEARNED_SPEC),
        Artifact(DEFENCE_INDEX),
        Artifact(HOLDOUT_INDEX),
        Artifact(VERDICT, optional=True),
        Artifact(PROXY, optional=True),
        MOMENTS,
        RECORD,
    ),
    "recover": (Artifact(MASK), MOMENTS, RECORD),
    "prune": (
        Artifact(CURVE),
        Artifact(CURVE_PNG, compared=False, decides=False),
        Artifact(REPORT, optional=True, compared=False, decides=False),  # earlier runs have none
        Artifact(PURIFIED),
        Artifact(PURIFIED_SPEC),
        Artifact(PRUNED_NEURONS),
        Artifact(SUMMARY),
        RECORD,
    ),
    "main": (Artifact(CURVE), Artifact(SUMMARY), RECORD),
}
