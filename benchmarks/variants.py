"""The defences of the matrix, each on the same suspect model and the same clean images."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rnp_mlflow.artifacts import table
from rnp_mlflow.attacks.train import TrainParams, train
from rnp_mlflow.config import Unlearn
from rnp_mlflow.core.evaluate import der, evaluate
from rnp_mlflow.core.neurons import Mask, ones_mask
from rnp_mlflow.core.seeds import generator
from rnp_mlflow.core.units import norm_layers
from rnp_mlflow.interop import masks
from rnp_mlflow.models import store
from rnp_mlflow.steps import chain, runtime, stored, subject
from rnp_mlflow.steps import clean as clean_images
from rnp_mlflow.steps.plan import make_plan
from rnp_mlflow.tracking import lineage

# What BackdoorBench's rnp.py does, as far as parameters reach it, and the sweep's points alone. 100 images are held out
# as for ours: 400 train.
REFERENCE = {"preset": "reference", "select_by": "clean_acc", "holdout_crops": 5}
FINETUNING = TrainParams(20, lr=0.01, batch_size=64)

Figures = dict[str, Any]


def figures(run_id: str) -> Figures:
    """Return the figures of a prune run's points, and where it came from."""
    summary = json.loads(lineage.fetch(run_id, table.SUMMARY).read_text())
    found = {name: {k: v for k, v in point.items() if k != "threshold"} for name, point in summary["points"].items()}
    tags = lineage.get(run_id).data.tags
    known = {"run": run_id, "seconds": float(tags["rnp.seconds"]), "before": summary["before"]}
    return known | {"conclusion": summary["verdict"]} | found


def prune(settings: Figures) -> str:
    """Make a prune run; return its ID."""
    return chain.run_step("prune", make_plan("prune", settings))


def ours(base: Figures, earlier: Figures) -> Figures:
    """Run the defaults, chosen without the trigger; add the unlearned model's verdict."""
    run_id = prune(base)
    unlearned = lineage.get(lineage.tag(lineage.get(run_id), "unlearn_run_id") or "")
    estimate = stored.load_estimate(unlearned.info.run_id)
    verdict = asdict(estimate) if estimate else {}
    return figures(run_id) | {"unlearn_run": unlearned.info.run_id, "verdict": verdict}


def reference(base: Figures, earlier: Figures) -> Figures:
    """Run the reference's own steps on our code; its points are those of the sweep only."""
    return figures(prune(base | REFERENCE))


def by_mask(mask: Mask, base: Figures, **settings: Any) -> Figures:
    """Prune along this mask, by number."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "mask.csv")
        masks.write_csv(file, mask)
        return figures(prune(base | {"mask_file": str(file), "pruning_by": "number", "pruning_stride": 1} | settings))


def nwc(base: Figures, earlier: Figures) -> Figures:
    """Rank neurons by how much unlearning moved their weights (TSBD, NeurIPS 2024); choose by accuracy."""
    before, _ = store.load(lineage.fetch(base["model_run_id"], "model"))
    after, _ = store.load(lineage.fetch(earlier["ours"]["unlearn_run"], "unlearned_model"))
    return by_mask(weight_change(before, after), base, pruning_max=0.4, pruning_step=0.02)


def random(base: Figures, earlier: Figures) -> Figures:
    """Prune as many neurons as ours at random: a control. `fixed` is the point."""
    count = earlier["ours"]["chosen"]["pruned"]
    if not count:
        return {}
    model, _ = store.load(lineage.fetch(base["model_run_id"], "model"))
    draws = generator(base["seed"], "random")
    mask = {name: torch.rand(len(values), generator=draws) for name, values in ones_mask(model).items()}
    points = {"pruning_max": count, "pruning_step": count, "pruning_number": count, "select_by": "number"}
    return by_mask(mask, base, **points)


def finetuning(base: Figures, earlier: Figures) -> Figures:
    """Fine-tune all weights on all the clean images."""
    plan = make_plan("prune", base)
    settings: Unlearn = plan["unlearn"]
    device = runtime.prepare(settings)
    suspect = subject.load(base["model_run_id"], plan, device)
    clean = clean_images.draw(suspect.data, settings, device)
    test = suspect.eval_set(clean.holdout)
    before = evaluate(suspect.model, test, suspect.transform)
    given = suspect.data.train[clean.indices].to(device)
    train(suspect.model, given, suspect.transform, generator(base["seed"], "finetune"), FINETUNING)
    after = evaluate(suspect.model.eval(), test, suspect.transform)
    return {"chosen": vars(after) | {"der": der(before, after)}, "before": vars(before)}


def weight_change(before: nn.Module, after: nn.Module) -> Mask:
    """Return the weight change as a mask: 0 for the neuron that unlearning moved most, 1 for one that did not move.

    A neuron's weights are its γ and β, and the filter that makes its channel: that of the nearest convolution
    before it, in `state_dict` order, with as many output channels. Change: mean absolute difference of the
    filter, and of γ and β.
    """
    filters = dict(after.named_modules())
    changes: Mask = {}
    last: dict[int, torch.Tensor] = {}
    layers = norm_layers(before)
    for name, module in before.named_modules():
        if isinstance(module, nn.Conv2d):
            moved = (filters[name].weight - module.weight).detach().abs()
            last[module.out_channels] = moved.flatten(1).mean(1)
        elif name in layers:
            other = filters[name]
            own = (other.weight - module.weight).abs() + (other.bias - module.bias).abs()
            changes[name] = own.detach() / 2 + last.get(len(own), torch.zeros_like(own))
    most = max(float(values.max()) for values in changes.values())
    return {name: 1 - values / (most or 1.0) for name, values in changes.items()}


# (parameters that all share: model_run_id, seed, ratio, threads; variants made before)
Variant = Callable[[Figures, Figures], Figures]
VARIANTS: dict[str, Variant] = {
    "ours": ours, "reference": reference, "nwc": nwc, "random": random, "finetuning": finetuning,
}  # fmt: skip
