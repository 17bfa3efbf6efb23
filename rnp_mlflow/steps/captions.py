"""What every picture of a run says of itself."""

from rnp_mlflow.artifacts import poisoning, table
from rnp_mlflow.models.store import ModelSpec
from rnp_mlflow.report.style import Caption
from rnp_mlflow.steps.subject import Suspect
from rnp_mlflow.tracking import lineage
from rnp_mlflow.tracking.runs import StepRun


def caption_of_model(run: StepRun, spec: ModelSpec, data: str, seed: int, attack: tuple[str, float | None]) -> Caption:
    """Return the caption of a model run's pictures. attack: its name and the poison rate."""
    width = f" of width {spec.width}" if spec.width else ""
    return Caption(f"{spec.architecture}{width}", data, *attack, seed, run.run_id)


def caption_of(run: StepRun, suspect: Suspect, seed: int) -> Caption:
    """Return the caption of the pictures of a step after the model run."""
    plan = poisoning.read(lineage.fetch(suspect.run_id, table.POISON_PLAN))
    return caption_of_model(run, suspect.spec, suspect.data.name, seed, (plan["attack"], plan["poison_rate"]))
