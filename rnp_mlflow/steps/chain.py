"""From one step to the one before it: given by run ID, found by its inputs, or made."""

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from rnp_mlflow.artifacts import manifest, poisoning, split, table
from rnp_mlflow.config import PIPELINE, RUN_ID, STEPS, legacy_value, names, steps_of, text, with_current_names
from rnp_mlflow.core.precision import has_bf16
from rnp_mlflow.errors import ConfigError
from rnp_mlflow.models import store
from rnp_mlflow.steps import (
    attack,
    clean,
    importing,
    labels,
    output,
    prune,
    recover,
    registering,
    runtime,
    subject,
    unlearn,
)
from rnp_mlflow.steps.output import Result
from rnp_mlflow.steps.plan import Plan, flat, used
from rnp_mlflow.tracking import lineage, location, turns
from rnp_mlflow.tracking.runs import StepRun, prepare_store, step_run

FILES = names("file")
NOT_IN_DIGEST = names("machine", "place", "file", "run", "output") | {"preset"}  # their content is, if they have any
NOT_COMPARED = names("machine", "place", "file", "run", "output", "own") | {"preset"}


class Step(Protocol):
    """What a step's module offers."""

    def execute(self, run: StepRun, plan: Plan, upstream: dict[str, str], device: torch.device) -> Result:
        """Do the work, and leave its files in `run.folder`; return what the step concludes.

        upstream: step → run ID of the finished runs before this one.
        """


MODULES: dict[str, Step] = {
    "attack": attack,
    "import": importing,
    "unlearn": unlearn,
    "recover": recover,
    "prune": prune,
}


def run_step(step: str, plan: Plan) -> str:
    """Run the requested step, with whatever it needs nested in it; return its run ID."""
    suspect_id = preflight(step, plan)
    with step_run(step) as run:
        label(run, step, plan, suspect_id)
        run.params(used(plan, step))
        upstream = resolve_upstream(step, plan)
        execute_in_run(
            run, step, plan, upstream, inputs=inputs_digest(step, plan, upstream), given=pinned_upstream(step, plan)
        )
        return run.run_id


def get_or_create_run(step: str, plan: Plan) -> dict[str, str]:
    """Return step → run ID: the newest finished run with the same inputs, or a new one; and those before it.

    Those before it are this call's own. A run that is reused may itself have started from others of the same content.
    """
    upstream = resolve_upstream(step, plan)
    inputs = inputs_digest(step, plan, upstream)
    work = lineage.digest({"store": location.address(), "inputs": inputs})
    with turns.turn(step, work) if plan.reuse == "all" else nullcontext():
        if found := find_made(step, plan, inputs):
            return upstream | {step: found}
        with step_run(step) as run:
            fill(run, step, plan, upstream, inputs)
            return upstream | {step: run.run_id}


def find_made(step: str, plan: Plan, inputs: str) -> str | None:
    """Return a finished run that may stand for a step, and say so; None if there is none. inputs: their digest."""
    if plan.reuse == "none":
        return None
    if plan.reuse == "all":
        if found := lineage.find_finished(step, inputs):
            runtime.log(f"{step}: reuses run {found} (same inputs)")
        return found
    if found := lineage.find_finished(step, inputs, by=lineage.UNFINISHED):
        lineage.take(found)
        runtime.log(f"{step}: takes run {found} of an earlier {lineage.UNFINISHED}, which did not finish (same inputs)")
    return found


def fill(run: StepRun, step: str, plan: Plan, upstream: dict[str, str], inputs: str) -> None:
    """Execute a step in its run, which starts from the nearest of the runs before it. inputs: their digest."""
    label(run, step, plan, upstream.get("attack"))
    own = {name: value for name, value in flat(plan, step).items() if name in STEPS[step].model_fields}
    resolved = {RUN_ID[name]: upstream[name] for name in upstream if RUN_ID[name] in own}
    run.params(own | resolved)
    nearest = {}
    if step not in lineage.MODEL_RUNS:
        nearest = {previous_step(step, plan): upstream[previous_step(step, plan)]}
    execute_in_run(run, step, plan, upstream, inputs=inputs, given=nearest)


def execute_in_run(
    run: StepRun, step: str, plan: Plan, upstream: dict[str, str], *, inputs: str, given: dict[str, str]
) -> None:
    """Execute a step in its run, and record what went in and what came out.

    inputs: their digest. given: the run that a repetition has to start from, by its step.
    """
    device = runtime.prepare(plan[step])
    run.inputs = None if plan.is_rerun else inputs
    runtime.log(f"{step}: run {run.run_id}")
    made_on = {"device": device, "threads": torch.get_num_threads(), "processor": runtime.processor(device)}
    run.tags({"inputs": inputs, "code": lineage.code_digest(), **made_on})
    run.tags({RUN_ID[name]: run_id for name, run_id in upstream.items()})
    run.tags({lineage.FILE + name: digest for name, digest in file_digests([plan[step]]).items()})
    label(run, step, plan, upstream.get("attack"))
    settings = {name: plan[name].model_dump(mode="json") for name in steps_of(step)}
    record = {"entry": step, "settings": settings, "upstream": upstream, "given": given}
    (run.folder / table.SETTINGS).write_text(json.dumps(record, indent=2) + "\n")
    run.closing = lambda: {"output": output_digest(run)}
    result = MODULES[step].execute(run, plan, upstream, device)
    runtime.release_memory()
    output.keep(result.of_run(step, run.run_id, upstream | {step: run.run_id}))


def label(run: StepRun, entry: str, plan: Plan, model_run_id: str | None) -> None:
    """Name a run after its suspect. model_run_id: None if the suspect is still to be made."""
    subject = labels.recorded(model_run_id) if model_run_id else labels.planned(plan)
    seed = None if "import" in plan.settings else plan["prune"].seed
    labels.label(run, entry, seed, subject)


def output_digest(run: StepRun) -> str:
    """Digest all that later steps read of a run: files, the images' digest, and how the images are read."""
    files = manifest.of(run.folder, run.entry)
    content: dict[str, Any] = {a.path: files.get(a.path) for a in table.ARTIFACTS[run.entry] if a.decides}
    if table.DATA in files:
        source = json.loads((run.folder / table.DATA).read_text())
        content |= {"images": run.data_digest, "source": {k: v for k, v in source.items() if k != "data_dir"}}
    return lineage.digest(content)


def previous_step(step: str, plan: Plan) -> str:
    """Return the step whose run this one starts from; a mask file replaces unlearning and recovery."""
    return "attack" if step == "prune" and plan["prune"].mask_file else PIPELINE[PIPELINE.index(step) - 1]


def own_upstream(step: str, plan: Plan) -> dict[str, str]:
    """Return the run that the user named for this step to start from, if any, by its step."""
    if step in lineage.MODEL_RUNS:
        return {}
    before = previous_step(step, plan)
    holder = "unlearn" if before == "attack" else step
    named = getattr(plan[holder], RUN_ID[before])
    return {before: named} if named else {}


def pinned_upstream(step: str, plan: Plan) -> dict[str, str]:
    """Return the run that the user named for this step, or one before it, to start from, if any, by its step."""
    found: dict[str, str] = {}
    for name in steps_of(step):
        found |= own_upstream(name, plan)
    return found


def resolve_upstream(step: str, plan: Plan) -> dict[str, str]:
    """Return step → run ID of everything before this step: named by the user, found or made.

    Raises:
        LineageError: a named run, or one that it started from, cannot be used.
        ConfigError: it was made with other parameters than this call gives.
    """
    if step in lineage.MODEL_RUNS:
        return {}
    before = previous_step(step, plan)
    run_id = own_upstream(step, plan).get(before)
    if run_id is None:
        return get_or_create_run(before, plan)
    found = {before: run_id}
    run = lineage.require(run_id, *kinds(before))
    for name in PIPELINE[: PIPELINE.index(before)]:
        if earlier := lineage.tag(run, RUN_ID[name]):
            found[name] = earlier
            lineage.require(earlier, *kinds(name))
    check_same_settings(found, plan)
    return found


def kinds(step: str) -> tuple[str, ...]:
    """Return the entry points whose runs can stand in this place of the pipeline."""
    return lineage.MODEL_RUNS if step == "attack" else (step,)


def check_same_settings(chain: dict[str, str], plan: Plan) -> None:
    """Refuse a given parameter if a named run, or one that it started from, was made with another value."""
    for step, run_id in chain.items():
        if step == "unlearn" and "index" in plan.given:
            check_same_index(run_id, Path(plan[step].index))
        made = lineage.settings_of(run_id)  # of an upstream "attack", an import may have taken the place
        logged = with_current_names(made["settings"][made["entry"]])
        for name, field in STEPS[step].model_fields.items():
            if name not in plan.given or name in NOT_COMPARED:
                continue
            if made["entry"] == "import" and name not in logged:
                value = text(getattr(plan[step], name))
                raise ConfigError(f"{name}={value} cannot be given with run {run_id}, an imported model")
            wanted, there = getattr(plan[step], name), logged.get(name, legacy_value(name, logged, field.default))
            if wanted == (tuple(there) if isinstance(there, list) else there):  # JSON has no tuples
                continue
            raise ConfigError(f"{name}={text(wanted)}, but run {run_id} was made with {name}={text(there)}")


def check_same_index(run_id: str, file: Path) -> None:
    """Refuse an index file of other images than an unlearn run was made with.

    Raises:
        ConfigError: it lists others, or it cannot be read.
    """
    try:
        same = split.read(file).equal(split.read(lineage.fetch(run_id, table.DEFENCE_INDEX)))
    except (OSError, ValueError) as error:
        raise ConfigError(f"index={file} cannot be read: {error}") from None
    if not same:
        raise ConfigError(f"index={file} lists other images than run {run_id} was made with")


def inputs_digest(step: str, plan: Plan, upstream: dict[str, str]) -> str:
    """Digest all that decides what a step makes: settings, files, upstream results, code, processor, threads."""
    settings = [plan[step]]
    if step == "prune" and plan["prune"].mask_file:  # it draws the clean images itself then, as `unlearn` would
        settings.append(plan["unlearn"])
    device = runtime.prepare(plan[step])
    content: dict[str, Any] = {
        "step": step,
        "settings": [part.model_dump(mode="json", exclude=NOT_IN_DIGEST) for part in settings],
        "upstream": {name: lineage.output_of(run_id) for name, run_id in upstream.items()},
        "code": lineage.code_digest(),
        "device": device.type,
        "processor": runtime.processor(device),
        "threads": torch.get_num_threads(),
        "bf16": has_bf16(device),
    }
    content |= file_digests(settings)
    if step == "attack":
        setup = attack.prepare(plan["attack"])
        content |= {"images": setup.data_digest, "model": asdict(setup.spec), "flip": setup.data.flip}
    return lineage.digest(content)


def file_digests(settings: list[Any]) -> dict[str, str]:
    """Return parameter → SHA-256 (hex) of each file that these settings name."""
    places = {n: found for n in sorted(FILES) for part in settings if (found := getattr(part, n, None))}
    return {name: manifest.file_digest(Path(place)) for name, place in places.items() if Path(place).is_file()}


def preflight(step: str, plan: Plan) -> str | None:
    """Find bad input before hours of work: device, files, what the suspect cannot do and, if all is to be made, data.

    Return the run ID of the suspect that the user's runs lead to, if any.

    Raises:
        RnpError: whichever the step itself would raise later.
    """
    prepare_store()
    subject.load_data.cache_clear()  # what was read for an earlier call may have changed since
    device = runtime.prepare(plan[step])
    if step == "import":
        return None
    if step == "prune":
        registering.check_name(plan["prune"].register_as)
    for holder, name in (("unlearn", "index"), ("prune", "mask_file")):
        place = getattr(plan[holder], name)
        if place and PIPELINE.index(holder) <= PIPELINE.index(step) and not Path(place).is_file():
            raise ConfigError(f"{name}={place}: there is no such file")
    if run_id := suspect_run(step, plan):
        if step == "prune":
            spec = store.read_spec(lineage.fetch(run_id, table.MODEL_SPEC))
            triggered = poisoning.read(lineage.fetch(run_id, table.POISON_PLAN))["triggered"]
            prune.check_possible(plan["prune"], spec, triggered is not None)
        return run_id
    setup = attack.prepare(plan["attack"])
    if step != "attack":
        clean.draw(setup.data, plan["unlearn"], device)
    if step == "prune":
        prune.check_possible(plan["prune"], setup.spec, setup.attack is not None)
    return None


def suspect_run(step: str, plan: Plan) -> str | None:
    """Return the model run that a run named by the user leads to; None if no run is named.

    Raises:
        LineageError: the run cannot be used.
    """
    for name, run_id in pinned_upstream(step, plan).items():
        run = lineage.require(run_id, *kinds(name))
        return run_id if name == "attack" else lineage.tag(run, RUN_ID["attack"])
    return None
