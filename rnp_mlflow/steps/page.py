"""The report page of a prune run: `report.html`."""

from collections.abc import Mapping

import mlflow

from rnp_mlflow.artifacts import table
from rnp_mlflow.config import text
from rnp_mlflow.report.page import Picture, Report, Row, Run, inlined, write_report
from rnp_mlflow.steps import notes, printed
from rnp_mlflow.steps.plan import Plan
from rnp_mlflow.steps.summary import PointFigures, PruneSummary
from rnp_mlflow.tracking import lineage, naming, ui
from rnp_mlflow.tracking.runs import PREFIX, StepRun

# file, in the order of the page → title, and how to read it
PICTURES = {
    "rnp.svg": (
        "The three steps",
        "ACC should fall in unlearning and come back in recovery; pruning should take ASR away.",
    ),
    "pruning_curve.svg": (
        "Pruning curve",
        "Bands are 95 % intervals (Wilson). Dashed lines are known without the trigger.",
    ),
    "samples_after.png": (
        "Answers before and after",
        "What the model answers to images with and without the trigger or the proxy.",
    ),
    "confusion.svg": ("Confusion matrices", "Rows are true classes, columns are answers, before and after pruning."),
    "pruned_layers.svg": ("Where neurons were pruned", "Share and number of pruned neurons in each layer."),
    "tradeoff.svg": (
        "Trade-off",
        "ACC lost against ASR left at each point of the curve; lines join points of equal DER.",
    ),
    "trigger_change.svg": (
        "What the trigger uses",
        "Pruned neurons should be among those that the trigger changes most.",
    ),
}
HEADS = ("point", "ACC", "ASR", "RA", "DER", "neurons", "mask value", "held-out ACC", "proxy")
PROVENANCE = ("version", "python", "torch", "mlflow", "machine", "processor", "device", "threads", "precision", "dirty")
COMMIT = "mlflow.source.git.commit"


def write(run: StepRun, summary: PruneSummary, plan: Plan, upstream: Mapping[str, str]) -> None:
    """Write the page into the run's folder, beside its pictures."""
    verdict = summary.verdict
    report = Report(
        title=naming.run_name("prune", run.subject, plan["prune"].seed),
        verdict=notes.verdict(summary),
        suspected=bool(verdict and verdict.backdoor_suspected),
        result=[notes.changed(summary), notes.lost(summary).replace("`", "")],
        basis=[line.strip() for line in printed.score_lines(summary)],
        heads=HEADS,
        rows=rows(summary),
        notes=[f"{name}: {printed.meaning(name, summary)}" for name in summary.points] + measured(summary),
        pictures=[
            Picture(inlined(run.folder / name), *words)
            for name, words in PICTURES.items()
            if (run.folder / name).is_file()
        ],
        runs=[linked(notes.ROLES[step], run_id) for step, run_id in {**upstream, "prune": run.run_id}.items()],
        parameters=other_than_default(plan),
        commands=[
            f"python -m rnp_mlflow rerun --run_id {run.run_id}",
            f"mlflow run . -e rerun --env-manager local -P run_id={run.run_id}",
        ],
        provenance=provenance(run),
    )
    write_report(run.folder / table.REPORT, report)


def rows(summary: PruneSummary) -> list[Row]:
    """Return the table: the unpruned model, and each operating point."""

    def row(name: str, point: PointFigures, used: bool = False) -> Row:
        tested = shares(point.acc, point.asr, point.ra, point.der)
        cutoff = "" if point.cutoff is None else f"{point.cutoff:g}"
        unseen = shares(point.holdout_acc, point.proxy_asr)
        return Row([name, *tested, f"{point.num_pruned:,}", cutoff, *unseen], used)

    points = [row(name, point, name == summary.selected) for name, point in summary.points.items()]
    return [row("before", summary.before), *points]


def shares(*values: float | None) -> list[str]:
    """Return shares as text; unknown ones are empty."""
    return ["" if value is None else f"{value:.4f}" for value in values]


def measured(summary: PruneSummary) -> list[str]:
    """Say which row is that of the purified model, and on how many images the columns were measured."""
    return ["bold: the purified model", f"n: {printed.measured(summary)}"]


def linked(role: str, run_id: str) -> Run:
    """Return a run; with its address if runs are on a server."""
    server = mlflow.get_tracking_uri()
    if not server.startswith("http"):
        return Run(role, run_id)
    return Run(role, run_id, f"{server.rstrip('/')}/#/{ui.run_path(lineage.get(run_id).info.experiment_id, run_id)}")


def other_than_default(plan: Plan) -> list[tuple[str, str, str]]:
    """Return (name, value, default) of each parameter whose value is not its default."""
    found = {}
    for settings in plan.settings.values():
        for name, field in type(settings).model_fields.items():
            value, default = text(getattr(settings, name)), text(field.default)
            if value != default:
                found[name] = name, value, default
    return list(found.values())


def provenance(run: StepRun) -> list[tuple[str, str]]:
    """Return what made the run: versions, machine and commit."""
    tags = run.client.get_run(run.run_id).data.tags
    known = {name: tags.get(PREFIX + name) for name in PROVENANCE} | {"commit": tags.get(COMMIT)}
    return [(name, value) for name, value in known.items() if value is not None]
