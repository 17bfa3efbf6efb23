"""Entry point `main`: all steps made again as children of one run, which carries the final figures."""

import json
import shutil
from dataclasses import replace

from rnp_mlflow.artifacts import table
from rnp_mlflow.config import RUN_ID
from rnp_mlflow.steps import chain, curve, notes, output
from rnp_mlflow.steps.labels import VERDICT_TAGS
from rnp_mlflow.steps.plan import Plan, used
from rnp_mlflow.steps.summary import PruneSummary
from rnp_mlflow.tracking import lineage
from rnp_mlflow.tracking.runs import step_run


def run_all(plan: Plan) -> str:
    """Make attack (unless `model_run_id` is given), unlearn, recover and prune; the parent's run ID."""
    suspect_id = chain.preflight("prune", plan)
    with step_run("main") as run:
        chain.label(run, "main", plan, suspect_id)
        run.params(used(plan, "main"))
        prune_id = chain.get_or_create_run("prune", plan)["prune"]
        pruned = lineage.require(prune_id, "prune")
        record = lineage.settings_of(prune_id)
        upstream = record["upstream"] | {"prune": prune_id}
        run.tags({RUN_ID.get(step, f"{step}_run_id"): run_id for step, run_id in upstream.items()})
        named = plan["unlearn"].model_run_id
        record |= {"entry": "main", "upstream": upstream, "given": {"attack": named} if named else {}}
        (run.folder / table.SETTINGS).write_text(json.dumps(record, indent=2) + "\n")
        for name in (table.SUMMARY, table.CURVE, table.CURVE_PNG, table.REPORT):
            shutil.copy(lineage.fetch(prune_id, name), run.folder / name)
        summary = PruneSummary.from_json(json.loads((run.folder / table.SUMMARY).read_text()))
        curve.log_figures(run, summary)
        run.describe(notes.pruning(summary, upstream))
        taken = ("data", "output", "code", "device", "threads", "processor", *VERDICT_TAGS)
        run.tags({name: found for name in taken if (found := lineage.tag(pruned, name)) is not None})
    if result := output.newest():  # that of the prune run
        output.keep(replace(result, content={**result.content, "entry": "main", "run_id": run.run_id}))
    return run.run_id
