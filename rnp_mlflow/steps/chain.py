"""From one step to the one before it: given by run ID, found by its inputs, or made."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from rnp_mlflow.artifacts import manifest, poisoning, split, table
from rnp_mlflow.config import PIPELINE, RUN_ID, STEPS, legacy_value, names, steps_of, text, with_current_names
from rnp_mlflow.core.precision import has_bf16
from rnp_mlflow.errors import ConfigError
from rnp_mlflow.models import store
from rnp_mlflow.steps import attack, clean, importing, prune, recover, runtime, subject, unlearn
from rnp_mlflow.steps.plan import Plan, flat
from rnp_mlflow.tracking import lineage
from rnp_mlflow.tracking.runs import StepRun, step_run

FILES = names("file")
NOT_IN_DIGEST = names("machine", "place", "file", "run", "output") | {"preset"}  # their content is, if they have any
NOT_HELD = names("machine", "place", "file", "run", "output", "own") | {"preset"}


class Step(Protocol):
    """What a step's module offers."""

    def make(self, run: StepRun, plan: Plan, upstream: dict[str, str], device: torch.device) -> None:
        """Do the work, and leave its files in `run.folder`.

        upstream: step → run ID of the finished runs before this one.
        """


MODULES: dict[str, Step] = {
    "attack": attack,
    "import": importing,
    "unlearn": unlearn,
    "recover": recover,
    "prune": prune,
}


def ask(step: str, plan: Plan) -> str:
    """Run the step that was asked for, and whatever it needs nested in it; its run ID."""
    preflight(step, plan)
    with step_run(step) as run:
        run.params(flat(plan, step))
        upstream = upstream_of(step, plan)
        fill(run, step, plan, upstream, inputs=inputs_digest(step, plan, upstream), given=named(step, plan))
        return run.run_id


def find_or_make(step: str, plan: Plan) -> dict[str, str]:
    """step → run ID: of the newest finished run of the same inputs, or of a new one; and of those before it.

    Those before it are this call's own. A run that is reused may itself have started from others of the same content.
    """
    upstream = upstream_of(step, plan)
    inputs = inputs_digest(step, plan, upstream)
    if plan.reuse and (found := lineage.find_finished(step, inputs)):
        runtime.say(f"{step}: taken from run {found} (same inputs)")
        return upstream | {step: found}
    with step_run(step) as run:
        own = {name: value for name, value in flat(plan, step).items() if name in STEPS[step].model_fields}
        resolved = {RUN_ID[name]: upstream[name] for name in upstream if RUN_ID[name] in own}
        run.params(own | resolved)
        nearest = {} if step == "attack" else {step_before(step, plan): upstream[step_before(step, plan)]}
        fill(run, step, plan, upstream, inputs=inputs, given=nearest)
        return upstream | {step: run.run_id}


def fill(run: StepRun, step: str, plan: Plan, upstream: dict[str, str], *, inputs: str, given: dict[str, str]) -> None:
    """The body of a step's run: the work, and the record of what went in and what came out.

    inputs: their digest. given: the run that a repetition has to start from, by its step.
    """
    device = runtime.prepare(plan[step])
    runtime.say(f"{step}: run {run.run_id}")
    made_on = {"device": device, "threads": torch.get_num_threads(), "processor": runtime.processor(device)}
    run.tags({"inputs": inputs, "code": lineage.code_digest(), **made_on})
    run.tags({RUN_ID[name]: run_id for name, run_id in upstream.items()})
    settings = {name: plan[name].model_dump(mode="json") for name in steps_of(step)}
    record = {"entry": step, "settings": settings, "upstream": upstream, "given": given}
    (run.folder / table.SETTINGS).write_text(json.dumps(record, indent=2) + "\n")
    MODULES[step].make(run, plan, upstream, device)
    runtime.release_memory()
    run.tags({"output": output_digest(run)})


def output_digest(run: StepRun) -> str:
    """A digest of all that later steps read of a run: files, and of the images their digest and how they are read."""
    files = manifest.of(run.folder, run.entry)
    content: dict[str, Any] = {a.path: files.get(a.path) for a in table.ARTIFACTS[run.entry] if a.decides}
    if table.DATA in files:
        source = json.loads((run.folder / table.DATA).read_text())
        content |= {"images": run.data_digest, "source": {k: v for k, v in source.items() if k != "data_dir"}}
    return lineage.digest(content)


def step_before(step: str, plan: Plan) -> str:
    """Which step's run this one starts from; a mask file takes the place of unlearning and recovery."""
    return "attack" if step == "prune" and plan["prune"].mask_file else PIPELINE[PIPELINE.index(step) - 1]


def explicit(step: str, plan: Plan) -> dict[str, str]:
    """The run that the user named for this step to start from, if any, by its step."""
    if step in lineage.MODEL_RUNS:
        return {}
    before = step_before(step, plan)
    holder = "unlearn" if before == "attack" else step
    named = getattr(plan[holder], RUN_ID[before])
    return {before: named} if named else {}


def named(step: str, plan: Plan) -> dict[str, str]:
    """The run that the user named, for this step or for one before it to start from, if any, by its step."""
    found: dict[str, str] = {}
    for name in steps_of(step):
        found |= explicit(name, plan)
    return found


def upstream_of(step: str, plan: Plan) -> dict[str, str]:
    """step → run ID of everything before this step: named, found or made.

    Raises:
        LineageError: a named run, or one that it started from, cannot be used.
        ConfigError: it was made with other parameters than this call gives.
    """
    if step in lineage.MODEL_RUNS:
        return {}
    before = step_before(step, plan)
    run_id = explicit(step, plan).get(before)
    if run_id is None:
        return find_or_make(before, plan)
    found = {before: run_id}
    run = lineage.require(run_id, *kinds(before))
    for name in PIPELINE[: PIPELINE.index(before)]:
        if earlier := lineage.tag(run, RUN_ID[name]):
            found[name] = earlier
            lineage.require(earlier, *kinds(name))
    hold_to_plan(found, plan)
    return found


def kinds(step: str) -> tuple[str, ...]:
    """The entry points whose runs can stand in this place of the chain."""
    return lineage.MODEL_RUNS if step == "attack" else (step,)


def hold_to_plan(chain: dict[str, str], plan: Plan) -> None:
    """Refuse a parameter that this call gives and that a named run, or one that it started from, was not made with."""
    for step, run_id in chain.items():
        made = lineage.settings_of(run_id)  # of an upstream "attack", an import may have taken the place
        logged = with_current_names(made["settings"][made["entry"]])
        for name, field in STEPS[step].model_fields.items():
            if name == "index" and name in plan.given:
                hold_to_index(run_id, Path(plan[step].index))
            if name not in plan.given or name in NOT_HELD:
                continue
            if made["entry"] == "import" and name not in logged:
                value = text(getattr(plan[step], name))
                raise ConfigError(f"{name}={value} cannot be given with run {run_id}, an imported model")
            wanted, there = getattr(plan[step], name), logged.get(name, legacy_value(name, logged, field.default))
            if wanted == (tuple(there) if isinstance(there, list) else there):  # JSON has no tuples
                continue
            raise ConfigError(f"{name}={text(wanted)}, but run {run_id} was made with {name}={text(there)}")


def hold_to_index(run_id: str, file: Path) -> None:
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
    """A digest of all that decides what a step makes: settings, files, upstream results, code, processor, threads."""
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
    for name in sorted(FILES):
        place = next((found for part in settings if (found := getattr(part, name, None))), None)
        if place and Path(place).is_file():
            content[name] = manifest.file_digest(Path(place))
    if step == "attack":
        ready = attack.prepare(plan["attack"])
        content |= {"images": ready.data_digest, "model": asdict(ready.spec), "flip": ready.data.flip}
    return lineage.digest(content)


def preflight(step: str, plan: Plan) -> None:
    """Find bad input before hours of work: device, files, what the suspect cannot do and, if all is to be made, data.

    Raises:
        RnpError: whichever the step itself would raise later.
    """
    subject.load_data.cache_clear()  # what was read for an earlier call may have changed since
    device = runtime.prepare(plan[step])
    if step == "import":
        return
    for holder, name in (("unlearn", "index"), ("prune", "mask_file")):
        place = getattr(plan[holder], name)
        if place and PIPELINE.index(holder) <= PIPELINE.index(step) and not Path(place).is_file():
            raise ConfigError(f"{name}={place}: there is no such file")
    if run_id := suspect_run(step, plan):
        if step == "prune":
            spec = store.read_spec(lineage.fetch(run_id, table.MODEL_SPEC))
            triggered = poisoning.read(lineage.fetch(run_id, table.POISON_PLAN))["triggered"]
            prune.check_possible(plan["prune"], spec, triggered is not None)
        return
    ready = attack.prepare(plan["attack"])
    if step != "attack":
        clean.draw(ready.data, plan["unlearn"], device)
    if step == "prune":
        prune.check_possible(plan["prune"], ready.spec, ready.attack is not None)


def suspect_run(step: str, plan: Plan) -> str | None:
    """The model run that a run named by the user leads to; None if no run is named.

    Raises:
        LineageError: the run cannot be used.
    """
    for name, run_id in named(step, plan).items():
        run = lineage.require(run_id, *kinds(name))
        return run_id if name == "attack" else lineage.tag(run, RUN_ID["attack"])
    return None
