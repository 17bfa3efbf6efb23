"""The images of a run as MLflow shows them: each part with its size, its classes and what it is used for."""

import hashlib

from rnp_mlflow.data.imageset import Dataset
from rnp_mlflow.data.triggered import Triggered
from rnp_mlflow.steps.clean import CleanImages
from rnp_mlflow.tracking.runs import DataPart, StepRun


def log_images(
    run: StepRun,
    data: Dataset,
    digest: str,
    place: str,
    *,
    suspect_id: str,
    clean: CleanImages | None = None,
    triggered: Triggered | None = None,
) -> None:
    """Log the images as the run's datasets. clean: the defender's; without them the training set is shown.

    suspect_id: run ID of the model whose triggered images they are.
    """
    shape = {"shape": "x".join(map(str, data.train.shape)), "classes": len(data.classes)}
    parts: dict[str, DataPart] = {}
    if clean is None:
        parts["training"] = DataPart({"images": len(data.train), **shape})
    else:
        key = hashlib.sha256(clean.indices.numpy().tobytes() + clean.holdout_indices.numpy().tobytes()).hexdigest()
        parts["clean"] = DataPart({"images": len(clean.indices), **shape}, key)
        parts["held out"] = DataPart({"images": len(clean.holdout_indices), **shape}, key)
    if triggered is not None:
        parts["triggered"] = DataPart({"images": len(triggered.images), **shape}, suspect_id)
    if data.test is not None:
        parts["test"] = DataPart({"images": len(data.test), **shape})
    run.dataset(data.name, digest, place, parts)
