"""Entry point `prune`: draw the curve, choose the point, keep the purified model."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rnp_mlflow.config import Prune
from rnp_mlflow.core import select
from rnp_mlflow.core.bn_stats import reestimate_
from rnp_mlflow.core.evaluate import Scores, accuracy, der, evaluate, predict
from rnp_mlflow.core.neurons import Mask
from rnp_mlflow.core.prune import Refit, cut_at, cuts, pruned_copy, sweep
from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.errors import ConfigError
from rnp_mlflow.interop import masks
from rnp_mlflow.models import store
from rnp_mlflow.steps import curve, runtime, subject
from rnp_mlflow.steps.curve import Row
from rnp_mlflow.steps.plan import Plan
from rnp_mlflow.steps.recover import stored_clean
from rnp_mlflow.tracking import lineage
from rnp_mlflow.tracking.runs import StepRun


def make(run: StepRun, plan: Plan, upstream: dict[str, str], device: torch.device) -> str:
    """Sweep the mask over the suspect model; leave curve, summary and purified model."""
    settings: Prune = plan["prune"]
    suspect = subject.load(upstream["attack"], plan, device)
    run.dataset(suspect.data.name, suspect.data_digest, suspect.source)
    if settings.mask_file:
        clean = subject.draw_clean(suspect.data, plan["unlearn"], device)
        mask = masks.read(Path(settings.mask_file), suspect.model)
    else:
        clean = stored_clean(upstream["unlearn"], suspect, device)
        mask = masks.read(lineage.fetch(upstream["recover"], "mask_values.csv"), suspect.model)
    rows, fixed, refit = judge_all(settings, suspect, clean, mask)
    summary = summarise(settings, rows, fixed)
    picked = summary["points"][summary["selected"]]
    purified = pruned_copy(suspect.model, mask, picked["pruned"], refit)
    store.save(run.folder / "purified_model", purified, suspect.spec)
    curve.write(run, rows, summary, f"{suspect.spec.architecture} on {suspect.data.name}")
    curve.tell(run.run_id, summary)
    names = ("purified_model/model.safetensors", curve.CSV)
    return lineage.file_digest(*(run.folder / name for name in names))


def judge_all(
    settings: Prune, suspect: subject.Subject, clean: subject.CleanImages, mask: Mask
) -> tuple[list[Row], Row, Refit | None]:
    """Every row of the curve; the row of the fixed operating point; what refits a pruned model."""

    generator = runtime.generator(settings.seed, "views")
    held = views(clean.held, settings.clean_views, suspect, generator)
    used = views(clean.used, settings.clean_views, suspect, generator)

    def judge(model: nn.Module) -> tuple[Scores, float]:
        answers = predict(model, held.images, suspect.transform)
        return evaluate(model, suspect.test, suspect.transform), accuracy(answers, held.labels)

    def reestimate(model: nn.Module) -> None:
        reestimate_(model, used.images, suspect.transform)

    refit = reestimate if settings.bn_stats == "reestimate" else None
    points = cuts(mask, settings.pruning_by, settings.pruning_max, settings.pruning_step)
    points.append(cut_at(mask, settings.pruning_by, settings.pruning_number))
    rows = []
    with runtime.progress("prune", len(points)) as advance:
        for point, (scores, val_acc) in sweep(suspect.model, mask, points, judge, refit):
            rows.append(Row(point.at, point.pruned, scores, val_acc))
            advance()
    return rows[:-1], rows[-1], refit


def views(clean: ImageSet, count: int, suspect: subject.Subject, generator: torch.Generator) -> ImageSet:
    """Each image in `count` random crops, as models are trained on; or as it is for 0.

    Accuracy: the suspect often knows the defender's images by heart, and fails on them later than on
    new ones; shifted ones are nearer to new ones. Statistics: those it was trained with are of crops,
    too, and the plain images' cost ACC (6.8 points on a quarter-width PreActResNet18, CIFAR-10).
    """
    if not count:
        return clean
    crops = [suspect.transform.augment(clean.images, generator) for _ in range(count)]
    return ImageSet(torch.cat(crops), clean.labels.repeat(count))


def summarise(settings: Prune, rows: list[Row], fixed: Row) -> dict[str, Any]:
    """`summary.json`: the figures before, and those of each operating point."""
    before = rows[0].scores
    chosen = rows[select.by_clean_accuracy([row.val_acc for row in rows], settings.acc_ratio)]
    points = {"chosen": chosen, "fixed": fixed}
    best = select.oracle([row.scores for row in rows])
    if best is not None:
        points["oracle"] = rows[best]
    names = {"clean_acc": "chosen", "number": "fixed", "asr": "oracle"}
    selected = names[settings.select_by]
    if selected not in points:
        raise ConfigError("select_by=asr needs triggered images, and this model run has none")
    return {
        "before": asdict(before),
        "select_by": settings.select_by,
        "selected": selected,
        "pruning_by": settings.pruning_by,
        "points": {
            name: {settings.pruning_by: row.at, "pruned": row.pruned, "val_acc": row.val_acc}
            | asdict(row.scores) | {"der": der(before, row.scores)}
            for name, row in points.items()
        },
    }  # fmt: skip
