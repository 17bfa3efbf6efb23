"""The defences of the matrix, each on the same suspect model and the same clean images."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.peers import finetuning as peer
from rnp_mlflow.artifacts import table
from rnp_mlflow.attacks.train import TrainParams
from rnp_mlflow.config import Unlearn
from rnp_mlflow.core.evaluate import EvalSet, der, evaluate
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.neurons import Mask, ones_mask
from rnp_mlflow.core.seeds import generator
from rnp_mlflow.core.units import norm_layers
from rnp_mlflow.interop import masks
from rnp_mlflow.models import store
from rnp_mlflow.steps import clean as clean_images
from rnp_mlflow.steps import runtime, stored, subject
from rnp_mlflow.steps.plan import make_plan
from rnp_mlflow.tracking import lineage

BY_MASK = {"pruning_by": "number", "pruning_stride": 1}
FINETUNING = TrainParams(20, lr=0.01, batch_size=64)

Figures = dict[str, Any]


def figures(run_id: str) -> Figures:
    """Return the figures of a prune run's points, and where it came from."""
    summary = json.loads(lineage.fetch(run_id, table.SUMMARY).read_text())
    found = {name: {k: v for k, v in point.items() if k != "threshold"} for name, point in summary["points"].items()}
    tags = lineage.get(run_id).data.tags
    known = {"run": run_id, "seconds": float(tags["rnp.seconds"]), "before": summary["before"]}
    return known | {"conclusion": summary["verdict"]} | found


def ours(run_id: str) -> Figures:
    """Return the figures of a run with the defaults, and the unlearned model's verdict."""
    unlearn_id = lineage.tag(lineage.get(run_id), "unlearn_run_id") or ""
    estimate = stored.load_estimate(unlearn_id)
    return figures(run_id) | {"unlearn_run": unlearn_id, "verdict": asdict(estimate) if estimate else {}}


def upstream(run_id: str, step: str, folder: str) -> nn.Module:
    """Load the model of a run that a prune run started from."""
    found = lineage.tag(lineage.get(run_id), f"{step}_run_id") or ""
    return store.load(lineage.fetch(found, folder))[0]


def nwc(run_id: str, seed: int, file: Path) -> Figures:
    """Rank neurons by how much unlearning moved their weights (TSBD, NeurIPS 2024); choose by accuracy."""
    before, after = upstream(run_id, "model", "model"), upstream(run_id, "unlearn", "unlearned_model")
    masks.write_csv(file, weight_change(before, after))
    return BY_MASK | {"mask_file": str(file.absolute()), "pruning_max": 0.4, "pruning_step": 0.02}


def random(run_id: str, seed: int, file: Path) -> Figures:
    """Prune as many neurons as ours at random: a control. `fixed` is the point. Nothing, if ours pruned none."""
    count = figures(run_id)["chosen"]["pruned"]
    if not count:
        return {}
    draws = generator(seed, "random")
    neurons = ones_mask(upstream(run_id, "model", "model"))
    masks.write_csv(file, {name: torch.rand(len(values), generator=draws) for name, values in neurons.items()})
    points = {"pruning_max": count, "pruning_step": count, "pruning_number": count, "select_by": "number"}
    return BY_MASK | {"mask_file": str(file.absolute())} | points


def opened(values: Mapping[str, Any]) -> tuple[subject.Suspect, LabeledImages, EvalSet]:
    """Return the suspect of `model_run_id`, all the clean images, and what it is tested on."""
    plan = make_plan("prune", dict(values))
    settings: Unlearn = plan["unlearn"]
    device = runtime.prepare(settings)
    suspect = subject.load(values["model_run_id"], plan, device)
    clean = clean_images.draw(suspect.data, settings, device)
    given = suspect.data.train[clean.indices].to(device)
    return suspect, clean_images.labeled(given), suspect.eval_set(clean.holdout)


def finetuning(base: Figures) -> Figures:
    """Fine-tune all weights on all the clean images."""
    suspect, clean, test = opened(base)
    before = evaluate(suspect.model, test, suspect.transform)
    tuned = peer.purify(suspect.model, clean, suspect.transform, base["seed"], FINETUNING)
    after = evaluate(tuned, test, suspect.transform)
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


# (prune run of ours, seed, file for the mask) → parameters of a prune run by that mask, if there is one
MASKED: dict[str, Callable[[str, int, Path], Figures]] = {"nwc": nwc, "random": random}
VARIANTS = ("ours", "reference", *MASKED, "finetuning")
