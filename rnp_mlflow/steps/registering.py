"""Whether the purified model may be registered under the name that the user asked for, and its registration."""

from rnp_mlflow.config import RUN_ID, Prune, text
from rnp_mlflow.errors import ConfigError
from rnp_mlflow.steps import curve, notes, runtime
from rnp_mlflow.steps.summary import REPAIRED, PruneSummary
from rnp_mlflow.tracking import models
from rnp_mlflow.tracking.runs import StepRun


def check_name(name: str | None) -> None:
    """Refuse a name that the registry does not take, before the work.

    Raises:
        ConfigError: it has a slash or a colon, or nothing but dots.
    """
    if name is not None and (set("/:") & set(name) or not name.strip(". ")):
        raise ConfigError(f"register_as={name}: the name of a registered model has no / or : in it; give another")


def refusal(settings: Prune, summary: PruneSummary) -> str | None:
    """Say why the model is not registered; None if it may be.

    Nothing is called purified if nothing was pruned or repaired, if a repair that was to follow was not kept, if the
    verdict is borderline or there is none, or if held-out accuracy fell below the ratio that the choice without a
    trigger is bound by: min_acc_ratio with a proxy, else acc_ratio.
    """
    before, after = summary.before.holdout_acc, summary.picked.holdout_acc
    bound = "min_acc_ratio" if summary.before.proxy_asr and settings.select_by != "clean_acc" else "acc_ratio"
    if not summary.picked.num_pruned and summary.selected != REPAIRED:
        return "nothing was pruned"
    if summary.verdict is None or summary.verdict.backdoor_suspected is None:
        return "there is no verdict on this model (unlearning gave no estimate, or there is no proxy)"
    if summary.verdict.confidence == "borderline":
        return "the verdict is borderline, so a backdoor may be left in it"
    if summary.lacks_repair:
        return "no repair was kept, so the backdoor may still be in it"
    if after < getattr(settings, bound) * before:
        limit = f"{bound}={text(getattr(settings, bound))}"
        return f"held-out accuracy fell from {before:.4f} to {after:.4f}, further than {limit} allows"
    return None


def register(run: StepRun, settings: Prune, summary: PruneSummary, model_id: str, upstream: dict[str, str]) -> None:
    """Register a version of the model `register_as` with its runs, figures and description, or say why not."""
    assert settings.register_as is not None
    if reason := refusal(settings, summary):
        run.tags({"not_registered": f"{settings.register_as}: {reason}"})
        runtime.log(f"  warning: register_as={settings.register_as}: no version was registered, because {reason}")
        return
    known = {name: getattr(summary.picked, name) for name in curve.FIGURES}
    figures = {name: value for name, value in known.items() if value is not None}
    tags = {"prune_run_id": run.run_id, **{RUN_ID[step]: run_id for step, run_id in upstream.items()}}
    card = notes.card(summary, {**upstream, "prune": run.run_id})
    number = models.register(model_id, settings.register_as, tags | figures, card)
    run.tags({"registered": f"models:/{settings.register_as}/{number}"})
