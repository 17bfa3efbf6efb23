"""What a run is about: the suspect that it makes, takes in or starts from, as its name and its tags say."""

from pathlib import Path

from rnp_mlflow.artifacts import poisoning, table
from rnp_mlflow.artifacts import source as source_file
from rnp_mlflow.config import Import
from rnp_mlflow.models import store
from rnp_mlflow.steps.plan import Plan
from rnp_mlflow.tracking import lineage, naming
from rnp_mlflow.tracking.naming import Subject
from rnp_mlflow.tracking.runs import StepRun

# What `prune` says of the suspect; `main` repeats it.
VERDICT_TAGS = ("verdict", "backdoor_suspected", "suspected_target")


def label(run: StepRun, entry: str, seed: int | None, subject: Subject) -> None:
    """Name the run after its subject, and tag it with it."""
    run.subject = subject
    run.name(naming.run_name(entry, subject, seed))
    run.tags(subject.tags())


def planned(plan: Plan) -> Subject:
    """Describe the suspect that `attack` would make, or `import` take in, with these settings."""
    if "import" in plan.settings:
        settings: Import = plan["import"]
        return Subject(naming.UNKNOWN, None, settings.model, settings.dataset, origin(settings))
    attack = plan["attack"]
    rate = None if attack.attack == naming.CLEAN else attack.poison_rate
    return Subject(attack.attack, rate, attack.model, dataset_name(attack.dataset, attack.data_dir))


def recorded(model_run_id: str) -> Subject:
    """Describe the suspect of a finished model run."""
    poison = poisoning.read(lineage.fetch(model_run_id, table.POISON_PLAN))
    spec = store.read_spec(lineage.fetch(model_run_id, table.MODEL_SPEC))
    source = source_file.read(lineage.fetch(model_run_id, table.DATA))
    record = lineage.settings_of(model_run_id)
    imported = record["settings"].get("import")
    return Subject(
        poison["attack"],
        poison["poison_rate"],
        spec.architecture,
        dataset_name(source.dataset, source.data_dir),
        imported and origin(Import.model_construct(**imported)),
    )


def origin(settings: Import) -> str:
    """Return the name of what is imported: of a file, of a BackdoorBench result's folder, or of an MLflow model."""
    if settings.attack_result:
        return Path(settings.attack_result).absolute().parent.name
    if settings.checkpoint:
        return Path(settings.checkpoint).name
    return (settings.model_uri or "").partition(":/")[2].strip("/") or naming.UNKNOWN


def dataset_name(dataset: str, data_dir: str | None) -> str:
    """Return a dataset's name; of images in a folder or file, the name of that."""
    return Path(data_dir).name if data_dir and dataset in ("folder", "npz") else dataset
