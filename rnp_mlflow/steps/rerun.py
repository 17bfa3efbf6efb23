"""Entry point `rerun`: make a finished run again from what it logged, and say whether it came out the same."""

import json
from typing import Any

from rnp_mlflow.artifacts import table
from rnp_mlflow.config import RUN_ID, STEPS, Rerun, legacy_value, names, parameters, parse, text, with_current_names
from rnp_mlflow.errors import LineageError
from rnp_mlflow.steps import chain, main, notes, output, runtime
from rnp_mlflow.steps.plan import plan_again
from rnp_mlflow.tracking import compare, lineage
from rnp_mlflow.tracking.runs import prepare_store, step_run


def repeat(values: dict[str, Any]) -> int:
    """Repeat `run_id` in a new run tagged with it; 0 if identical, 1 if anything differs.

    A step is repeated from the runs that its user named; what `auto` found or made before it is made
    again too, and compared as well.

    Raises:
        LineageError: the run is unknown, unfinished, or a rerun itself.
    """
    settings = parse(Rerun, values)
    prepare_store()
    old = lineage.get(settings.run_id)
    if (origin := lineage.tag(old, "rerun_of")) and lineage.tag(old, "entry") == "rerun":
        raise LineageError(f"run {settings.run_id} is a rerun itself; repeat the run it repeats: {origin}")
    old = lineage.require(settings.run_id, *table.ARTIFACTS)
    record = lineage.settings_of(settings.run_id)
    changes = changed(settings)
    plan = plan_again(record["entry"], repeated_values(record, settings.run_id, old) | changes, changes)
    with step_run("rerun", {"rerun_of": settings.run_id}, old.info.experiment_id) as run:
        entry = record["entry"]
        suspect_id = chain.suspect_run("prune" if entry == "main" else entry, plan)
        chain.label(run, f"rerun of {entry}", plan, suspect_id)
        run.params({name: text(value) for name, value in settings})
        runtime.log(f"repeating {entry} run {settings.run_id}")
        if run.experiment_id != old.info.experiment_id:  # `mlflow run` has chosen
            home = old.info.experiment_id
            runtime.log(f"  warning: in experiment {run.experiment_id}, and not in {home}, in which that run is: "
                        f"give `mlflow run` the option --experiment-id {home} to repeat it there")  # fmt: skip
        new_id = main.run_all(plan) if entry == "main" else chain.run_step(entry, plan)
        pairs = matching(record, settings.run_id, new_id)
        neutral = names("machine", "place", "run", "output")
        findings = {step: compare.runs(*pair, neutral, with_current_names) for step, pair in pairs.items()}
        identical = not any(findings.values())
        (run.folder / table.COMPARISON).write_text(json.dumps(findings, indent=2) + "\n")
        run.tags({"identical": identical, "repeated_run_id": new_id})
        run.describe(description(findings, pairs))
        output.keep(result(run.run_id, settings.run_id, findings, pairs))
    return 0 if identical else 1


def changed(settings: Rerun) -> dict[str, Any]:
    """Return the parameters that this call gives another value."""
    values = {"seed": settings.seed, "data_dir": settings.data_dir}
    return {name: value for name, value in values.items() if value is not None}


def repeated_values(record: dict[str, Any], run_id: str, old: Any) -> dict[str, Any]:
    """Return the old run's settings, the runs that its user named, its threads and device.

    Raises:
        LineageError: it was made with a parameter that this version does not take.
    """
    values: dict[str, Any] = {}
    for step, settings in record["settings"].items():
        logged = with_current_names(settings)
        values |= {name: legacy_value(name, logged, f.default) for name, f in STEPS[step].model_fields.items()} | logged
    taken = parameters("main").keys() | parameters("import").keys() | set(RUN_ID.values())
    if gone := sorted(values.keys() - taken):
        commit = old.data.tags.get("mlflow.source.git.commit", "unknown")
        raise LineageError(
            f"run {run_id} has the parameter {gone[0]}, which was removed: repeat it with its own code, commit {commit}"
        )
    if record["entry"] != "import":
        values |= dict.fromkeys(RUN_ID.values())
        values |= {RUN_ID[step]: run_id for step, run_id in record["given"].items()}
        values |= {"register_as": None, "export": "none"}  # a repetition makes no new version
    return values | {"threads": lineage.tag(old, "threads"), "device": lineage.tag(old, "device")}


def matching(record: dict[str, Any], old_id: str, new_id: str) -> dict[str, tuple[str, str]]:
    """Return step → (old, new) run ID of every step that was made again."""
    new = lineage.settings_of(new_id)
    old_ids = record["upstream"] | {record["entry"]: old_id}
    new_ids = new["upstream"] | {record["entry"]: new_id}
    return {s: (old_ids[s], new_ids[s]) for s in new_ids if s in old_ids and old_ids[s] != new_ids[s]}


def description(findings: dict[str, list[str]], pairs: dict[str, tuple[str, str]]) -> str:
    """Return the result as the run's description."""
    lines = [
        f"* {step}: {notes.link('old', pairs[step][0])} and {notes.link('new', pairs[step][1])} are "
        + ("identical" if not differences else f"different: {'; '.join(differences[:3])}")
        for step, differences in findings.items()
    ]
    return "\n".join(["**Different**" if any(findings.values()) else "**Identical bit for bit**", "", *lines])


def result(
    run_id: str, old_id: str, findings: dict[str, list[str]], pairs: dict[str, tuple[str, str]]
) -> output.Result:
    """Return the comparison, after what the repeated run itself concludes."""
    repeated = output.newest()
    verdict = "different" if any(findings.values()) else "identical"

    def lines(width: int, verbose: bool) -> list[str]:
        compared = [part for line in comparison(findings, pairs) for part in output.wrap(line, width)]
        return [*(repeated.lines(width, verbose) if repeated else []), *compared, verdict]

    content = {
        "entry": "rerun",
        "run_id": run_id,
        "rerun_of": old_id,
        "identical": verdict == "identical",
        "compared": {step: {"run_ids": list(pairs[step]), "differences": found} for step, found in findings.items()},
        "result": repeated.content if repeated else None,
    }
    return output.Result(content, [f"rerun run {run_id}", f"  {verdict}"], lines)


def comparison(findings: dict[str, list[str]], pairs: dict[str, tuple[str, str]]) -> list[str]:
    """Return for each step whether it came out the same, which runs those are, and what differs."""
    lines = []
    for step, differences in findings.items():
        old, new = pairs[step]
        lines += [f"{step}: {'different' if differences else 'identical'}", f"  runs {old} and {new}"]
        lines += [f"  {difference}" for difference in differences]
    return lines
