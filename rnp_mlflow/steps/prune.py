"""Entry point `prune`: draw the curve, choose the point, keep the purified model."""

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rnp_mlflow.artifacts import table
from rnp_mlflow.config import RUN_ID, Prune
from rnp_mlflow.core.curve import Point
from rnp_mlflow.core.evaluate import der
from rnp_mlflow.core.neurons import Mask
from rnp_mlflow.core.proxy import Proxy
from rnp_mlflow.core.prune import keep_vector, prune_at_, ranking
from rnp_mlflow.core.verdict import Verdict
from rnp_mlflow.errors import ConfigError
from rnp_mlflow.interop import backdoorbench, masks
from rnp_mlflow.interop.architectures import backdoorbench_name
from rnp_mlflow.method import Traced, backdoor_suspected, choose, oracle, own_rule, sweep_of, trace_by, views_of
from rnp_mlflow.models import store
from rnp_mlflow.steps import clean as clean_images
from rnp_mlflow.steps import curve, runtime, stored, subject
from rnp_mlflow.steps.plan import Plan
from rnp_mlflow.tracking import lineage, models
from rnp_mlflow.tracking.runs import StepRun

# select_by → where it prunes
WHERE = {
    "proxy": "by the proxy (by acc_ratio if there is none)",
    "clean_acc": "as far as acc_ratio allows",
    "number": "at pruning_number",
    "asr": "at the oracle (best DER in hindsight, sees the trigger)",
}
# parameter → the word of select_by that makes it decide where to prune
DECIDES = {
    "pruning_number": "number",
    "acc_ratio": "clean_acc",
    "proxy_ratio": "proxy",
    "stop_ratio": "proxy",
    "margin_ratio": "proxy",
}
# select_by → the row of the summary that it prunes at
SELECTED = {"proxy": "chosen", "clean_acc": "chosen", "number": "fixed", "asr": "oracle"}


def make(run: StepRun, plan: Plan, upstream: dict[str, str], device: torch.device) -> None:
    """Sweep the mask over the suspect model; leave curve, summary and purified model, and hand it on."""
    settings: Prune = plan["prune"]
    for line in advice(plan.given, settings):
        runtime.say(line)
    suspect = subject.load(upstream["attack"], plan, device)
    check_possible(settings, suspect.spec, suspect.triggered is not None)
    run.dataset(suspect.data.name, suspect.data_digest, suspect.place)
    if settings.mask_file:
        clean = clean_images.draw(suspect.data, plan["unlearn"], device)
        mask = masks.read(Path(settings.mask_file), suspect.model)
    else:
        clean = clean_images.recorded(upstream["unlearn"], suspect.data, device)
        mask = masks.read(lineage.fetch(upstream["recover"], table.MASK), suspect.model)
    settings = suspect.settle(run, settings, clean)
    proxy = stored.proxy(upstream["unlearn"], device) if "unlearn" in upstream else None
    verdict = stored.verdict(upstream["unlearn"]) if "unlearn" in upstream else None
    traced = draw(settings, suspect, clean, mask, proxy, verdict)
    summary = summarise(settings, traced)
    summary["verdict"] = conclusion(settings, traced, verdict, suspect.spec.classes)
    picked = summary["points"][summary["selected"]]
    summary["layers"] = pruned_by_layer(mask, picked["pruned"])
    summary |= looked_at(settings, suspect, clean)
    purified = prune_at_(suspect.model, mask, picked["pruned"], traced.refit)  # the suspect has served: no copy of it
    store.save(run.folder / "purified_model", purified, suspect.spec)
    masks.write_csv(run.folder / table.PRUNED_NEURONS, mask, ranking(mask)[: picked["pruned"]])
    if settings.export == "backdoorbench":
        export(run.folder / backdoorbench.DEFENSE, purified, suspect.spec)
    runtime.release_memory()  # torch.export takes some
    model_id = models.log(purified, suspect.spec, suspect.data.train.images[:2])
    if verdict:
        if traced.doubt is not None:
            run.tags({"backdoor_suspected": summary["verdict"]["backdoor_suspected"]})
        said = {name: summary["verdict"][name] for name in ("score", "size", "cost", "faded", "doubt")}
        run.metrics({f"verdict/{name}": value for name, value in (said | {"target": verdict.target}).items()})
    title = f"{suspect.spec.architecture} on {suspect.data.name}: {curve.measured_on(summary)}"
    curve.write(run, traced.points, summary, title, model_id)
    run.upload()
    if settings.register_as:
        register(run, settings.register_as, model_id, upstream, {key: picked[key] for key in curve.FIGURES})
    curve.tell(run, summary)


def check_possible(settings: Prune, spec: store.ModelSpec, triggered: bool) -> None:
    """Refuse what cannot be done with a suspect, before the work. triggered: whether triggered images of it are known.

    Raises:
        ConfigError: the oracle without triggered images, or an export that BackdoorBench could not load.
    """
    if settings.select_by == "asr" and not triggered:
        raise ConfigError("select_by=asr needs triggered images, and this model run has none")
    if settings.export == "backdoorbench":
        backdoorbench_name(spec.architecture, spec.width, spec.input_shape[0])


def advice(given: Collection[str], settings: Prune) -> list[str]:
    """A line for each parameter that the call gave and that does not decide where to prune.

    given: the names of the parameters that the call gave.
    """
    idle = [name for name, way in DECIDES.items() if name in given and way != settings.select_by]
    return [
        f"  warning: {name}={getattr(settings, name):g} does not decide where to prune: select_by={settings.select_by} "
        f"prunes {WHERE[settings.select_by]}; add select_by={DECIDES[name]} to prune by it"
        for name in idle
    ]


def export(file: Path, purified: nn.Module, spec: store.ModelSpec) -> None:
    """BackdoorBench's file (`backdoorbench_name` has been asked before the work)."""
    backdoorbench.write_defense(file, purified, spec.architecture, len(spec.classes), spec.width, spec.input_shape[0])


def register(run: StepRun, name: str, model_id: str, upstream: dict[str, str], figures: dict[str, Any]) -> None:
    """A version of the registered model `name`, tagged with the runs it came from and its figures."""
    tags = {"prune_run_id": run.run_id, **{RUN_ID[step]: run_id for step, run_id in upstream.items()}}
    number = models.register(model_id, name, tags | figures)
    run.tags({"registered": f"models:/{name}/{number}"})


def draw(
    settings: Prune,
    suspect: subject.Subject,
    clean: clean_images.CleanImages,
    mask: Mask,
    proxy: Proxy | None,
    verdict: Verdict | None,
) -> Traced:
    """The curve, with a progress bar."""
    test = suspect.judged_by(clean.held)
    expected = len(sweep_of(settings, mask)[0]) // settings.pruning_stride + 2  # most often two beside the choice
    with runtime.progress("prune", expected) as advance:
        return trace_by(
            settings, suspect.model, mask, clean.used.pair, clean.held.pair, test, suspect.transform,
            proxy, verdict, advance,
        )  # fmt: skip


def looked_at(settings: Prune, suspect: subject.Subject, clean: clean_images.CleanImages) -> dict[str, dict[str, int]]:
    """How many images there are, and how held-out ones are looked at, for `summary.json`.

    `views`: how many held-out images, how often each (0: as it is), and whether cropped and mirrored (0 or 1).
    """
    images = {
        "clean": len(clean.indices), "held_out": len(clean.held), "test": len(suspect.data.test or ()),
        "triggered": len(suspect.triggered.images) if suspect.triggered else 0,
    }  # fmt: skip
    some, each = views_of(settings, len(clean.held))
    ways = {"cropped": int(suspect.transform.crop > 0), "mirrored": int(suspect.transform.flip)}
    return {"images": images, "views": {"images": some, "each": each} | ways}


def pruned_by_layer(mask: Mask, pruned: int) -> dict[str, list[int]]:
    """layer → [neurons pruned, neurons] of the layers that lose any."""
    parts = keep_vector(mask, pruned).split([len(values) for values in mask.values()])
    lost = {name: [int((keep == 0).sum()), len(keep)] for name, keep in zip(mask, parts, strict=True)}
    return {name: counts for name, counts in lost.items() if counts[0]}


def conclusion(
    settings: Prune, traced: Traced, verdict: Verdict | None, classes: tuple[str, ...]
) -> dict[str, Any] | None:
    """What speaks for a backdoor and what against, for `summary.json`; None where unlearning gave no verdict."""
    if verdict is None:
        return None
    return {
        "backdoor_suspected": backdoor_suspected(traced, settings), "target": classes[verdict.target],
        "score": verdict.score, "size": traced.size, "cost": traced.cost, "faded": traced.faded,
        "doubt": traced.doubt, "max_doubt": settings.max_doubt,
    }  # fmt: skip


def summarise(settings: Prune, traced: Traced) -> dict[str, Any]:
    """`summary.json`: the figures before, and those of each operating point, on all test images."""
    picked = {"before": traced.points[0], "chosen": choose(traced, own_rule(settings)), "fixed": traced.fixed}
    points: dict[str, Point] = {}
    with runtime.progress("test", len(picked) + 1) as advance:
        for name, point in picked.items():
            points[name] = traced.whole(point)
            advance()
        if best := oracle(traced, settings):
            points["oracle"] = traced.whole(best)
        advance()
    before = points.pop("before")
    return {
        "before": asdict(before.scores) | {"val_acc": before.val_acc, "proxy_asr": before.proxy_asr},
        "select_by": settings.select_by,
        "selected": SELECTED[settings.select_by],
        "pruning_by": settings.pruning_by,
        "curve_images": settings.curve_images,
        "points": {
            name: {settings.pruning_by: row.at, "pruned": row.pruned}
            | {"val_acc": row.val_acc, "proxy_asr": row.proxy_asr}
            | asdict(row.scores) | {"der": der(before.scores, row.scores)}
            for name, row in points.items()
        },
    }  # fmt: skip
