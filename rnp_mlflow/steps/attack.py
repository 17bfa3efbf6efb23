"""Entry point `attack`: train a backdoored model, the test subject of all later steps."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from rnp_mlflow.attacks import poison, registry, train
from rnp_mlflow.attacks.trigger import Stamp
from rnp_mlflow.config import Attack
from rnp_mlflow.core.batches import EpochRecord, OnEpoch
from rnp_mlflow.core.evaluate import Scores, evaluate
from rnp_mlflow.core.neurons import norm_layers
from rnp_mlflow.data.imageset import Dataset, ImageSet
from rnp_mlflow.models import store
from rnp_mlflow.models.registry import resolve_width
from rnp_mlflow.steps import runtime, subject
from rnp_mlflow.steps.plan import Plan
from rnp_mlflow.tracking import figures
from rnp_mlflow.tracking.lineage import file_digest
from rnp_mlflow.tracking.runs import StepRun

PLANTED = 0.5  # an attack with a lower ASR did not plant (BackdoorBench's practice)


@dataclass(frozen=True)
class Prepared:
    """All that training needs. trigger: None for a clean model."""

    data: Dataset
    data_digest: str
    model: nn.Module
    spec: store.ModelSpec
    trigger: Stamp | None
    plan: poison.PoisonPlan


def prepare(settings: Attack) -> Prepared:
    """Data, freshly initialised model, trigger and poison plan; raises whatever is wrong with them."""
    data, digest = subject.load_data(settings)
    shape = data.train.shape
    width = resolve_width(settings.model, settings.width)
    spec = store.ModelSpec(settings.model, width, data.classes, shape, data.mean, data.std)
    torch.manual_seed(runtime.generator(settings.seed, "weights").initial_seed())
    model = spec.build()
    norm_layers(model)
    trigger, rate = None, 0.0
    if settings.attack != registry.NONE:
        make = registry.trigger_maker(settings.attack)
        trigger, rate = make(shape, runtime.generator(settings.seed, "trigger")), settings.poison_rate
    labels, draws = data.train.labels, runtime.generator(settings.seed, "poison")
    return Prepared(data, digest, model, spec, trigger, poison.plan(labels, settings.target, rate, draws))


def make(run: StepRun, plan: Plan, upstream: dict[str, str], device: torch.device) -> str:
    """Train, judge, and leave model, poison plan, trigger and sample picture."""
    settings: Attack = plan["attack"]
    ready = prepare(settings)
    run.dataset(ready.data.name, ready.data_digest, settings.data_dir or subject.EMBEDDED)
    clean = ready.data.train
    training = clean if ready.trigger is None else poison.poisoned(clean, ready.plan, ready.trigger)
    model, feed = ready.model.to(device), subject.preprocess(ready.data)
    with runtime.progress("attack", settings.training_epochs) as advance:
        history = train.train(
            model, training.to(device), feed, runtime.generator(settings.seed, "training"),
            epochs=settings.training_epochs, lr=settings.training_lr, batch_size=settings.batch_size,
            weight_decay=settings.weight_decay, on_epoch=on_epoch(run, "attack", advance),
        )  # fmt: skip
    scores = evaluate(model, subject.test_set(ready.data.test, ready.trigger, settings.target, device), feed)
    write_history(run.folder / "history.csv", history)
    store.save(run.folder / "model", model, ready.spec)
    made = [run.folder / "model" / store.WEIGHTS, write_plan(run.folder, settings, ready)]
    if ready.trigger is not None:
        made.append(run.folder / "trigger.safetensors")
        save_file(registry.tensors(ready.trigger), made[-1])
        draw_samples(run.folder / "samples.png", ready, settings.target)
    run.metrics({"acc": scores.acc, "asr": scores.asr, "ra": scores.ra})
    report(run, scores)
    return file_digest(*made)


def report(run: StepRun, scores: Scores) -> None:
    """Say what was planted; flag an attack that was not."""
    if scores.asr is None:
        runtime.say(f"  clean model: ACC {scores.acc:.4f}")
        return
    runtime.say(f"  ACC {scores.acc:.4f}  ASR {scores.asr:.4f}  RA {scores.ra:.4f}")
    run.tags({"planted": scores.asr >= PLANTED})
    if scores.asr < PLANTED:
        runtime.say(f"  warning: the attack did not plant (ASR below {PLANTED}); leave this run out of averages")


def write_plan(folder: Path, settings: Attack, ready: Prepared) -> Path:
    """`poison_plan.json`: which training images carry the trigger, and the label they got."""
    content = {
        "attack": settings.attack,
        "target": settings.target,
        "poison_rate": settings.poison_rate if ready.trigger is not None else 0.0,
        "indices": ready.plan.indices.tolist(),
    }
    file = folder / "poison_plan.json"
    file.write_text(json.dumps(content) + "\n")
    return file


def draw_samples(file: Path, ready: Prepared, target: int) -> None:
    """The first test image of up to eight classes other than the target, clean and triggered."""
    test = ready.data.test
    others = [k for k in range(len(ready.data.classes)) if k != target][:8]
    first = torch.tensor([int((test.labels == k).nonzero()[0]) for k in others])
    clean: ImageSet = test[first]
    assert ready.trigger is not None
    captions = [f"{ready.data.classes[k]} → {ready.data.classes[target]}" for k in others]
    figures.sample_png(file, clean.images, ready.trigger(clean.images), captions)


def on_epoch(run: StepRun, prefix: str, advance: runtime.Advance) -> OnEpoch:
    """What training calls after every epoch: log it, move the bar."""

    def log(record: EpochRecord) -> None:
        run.metrics({f"{prefix}/loss": record.loss, f"{prefix}/accuracy": record.accuracy}, record.epoch)
        advance()

    return log


def write_history(file: Path, history: Sequence[EpochRecord]) -> None:
    """`history.csv`: one row an epoch."""
    with file.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([field.name for field in fields(EpochRecord)])
        writer.writerows([r.epoch, repr(r.loss), repr(r.accuracy), r.steps] for r in history)
