"""Entry point `attack`: train a backdoored model, the test subject of all later steps."""

import copy
from dataclasses import dataclass, fields, replace

import torch
from torch import nn

from rnp_mlflow.artifacts import history as history_file
from rnp_mlflow.artifacts import poisoning, table
from rnp_mlflow.artifacts import source as source_file
from rnp_mlflow.artifacts.source import Source
from rnp_mlflow.attacks import poison, registry, train
from rnp_mlflow.attacks.trigger import AttackContext, AttackEntry, Trigger
from rnp_mlflow.config import Attack
from rnp_mlflow.core.evaluate import Scores, accuracy, evaluate, predict
from rnp_mlflow.core.params import Precision
from rnp_mlflow.core.seeds import generator
from rnp_mlflow.core.units import norm_layers, units_of
from rnp_mlflow.data.imageset import Dataset, ImageSet
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.data.triggered import Triggered
from rnp_mlflow.errors import DataError
from rnp_mlflow.models import store
from rnp_mlflow.models.pixel_input import PixelInputModel
from rnp_mlflow.models.registry import resolve_width
from rnp_mlflow.steps import epochs, images, notes, runtime, samples, subject, unfinished
from rnp_mlflow.steps.captions import caption_of_model
from rnp_mlflow.steps.output import Result
from rnp_mlflow.steps.plan import Plan
from rnp_mlflow.steps.progress import note
from rnp_mlflow.steps.summary import scores_result
from rnp_mlflow.tracking.runs import StepRun

# An attack with a lower ASR did not plant (BackdoorBench's practice), nor one whose label most images get anyway.
PLANTED = 0.5


@dataclass(frozen=True)
class AttackSetup:
    """All that training needs. attack: None for a clean model."""

    source: Source
    data: Dataset
    data_digest: str
    test: ImageSet
    model: nn.Module
    spec: store.ModelSpec
    attack: AttackEntry | None
    plan: poison.PoisonPlan


def prepare(settings: Attack) -> AttackSetup:
    """Load data, initialise the model and plan the poison; raise whatever is wrong with them."""
    named = {field.name for field in fields(Source)} & Attack.model_fields.keys()
    source = Source(**{name: getattr(settings, name) for name in named})
    data, digest = subject.load_data(source)
    if data.test is None:
        raise DataError(f"attack needs a test part too, and {source.place} has none (train/CLASS and test/CLASS)")
    shape = data.train.shape
    width = resolve_width(settings.model, settings.width)
    spec = store.ModelSpec(settings.model, width, data.classes, shape, data.mean, data.std)
    torch.manual_seed(generator(settings.seed, "weights").initial_seed())
    model = spec.build()
    units_of(model)
    attack, plan = None, poison.NO_POISON
    if settings.attack != registry.NONE:
        attack, draws = registry.find_entry(settings.attack), generator(settings.seed, "poison")
        how = (settings.target, settings.label_mode, settings.poison_rate)
        plan = poison.plan(data.train.labels, attack, *how, generator=draws)
    return AttackSetup(source, data, digest, data.test, model, spec, attack, plan)


def execute(run: StepRun, plan: Plan, upstream: dict[str, str], device: torch.device) -> Result:
    """Train and evaluate; leave model, poison plan, trigger and sample picture; return the figures."""
    settings: Attack = plan["attack"]
    if settings.precision == "auto":  # there is no model yet to hold bf16 to
        settings = settings.model_copy(update={"precision": "fp32"})
    setup = prepare(settings)
    model, transform = setup.model.to(device), subject.preprocess(setup.spec, setup.data)
    with note("making the trigger and the poisoned images"):
        training, trigger = poisoned_training_set(settings, setup, transform, device)
    params = train_params(settings, setup.model)
    with unfinished.keeping(run) as keeper, runtime.progress("attack", settings.training_epochs) as bar:
        history = train.train(
            model, training.to(device), transform, generator(settings.seed, "training"), params,
            on_epoch=epochs.on_epoch(run, "attack", bar),
            on_step=epochs.on_step(bar, len(training), settings.training_batch_size), keeper=keeper,
        )  # fmt: skip
    how = (len(setup.data.classes), settings.target, settings.label_mode)
    bad = poison.with_trigger(setup.test, *how, trigger) if trigger else None
    place = setup.source.place
    images.log_images(run, setup.data, setup.data_digest, place, suspect_id=run.run_id, triggered=bad)
    with note("testing the model"):
        scores = evaluate(model, subject.test_set(setup.test, bad, device), transform, settings.precision)
    history_file.write(run.folder, history)
    store.save(run.folder / table.MODEL_FOLDER, model, setup.spec)
    source_file.write(run.folder, setup.source)
    described = settings.model_dump(include={"attack", "target", "label_mode", "poison_rate"})
    chosen = {"indices": setup.plan.indices, "covers": setup.plan.covers}
    poisoning.write(run.folder, described | ({} if trigger else {"poison_rate": 0.0}), chosen, trigger)
    if bad is not None:
        respondents = samples.Respondents({"": model}, transform, settings.precision, setup.data.classes)
        named = (settings.attack, settings.poison_rate)
        caption = caption_of_model(run, setup.spec, setup.data.name, settings.seed, named)
        samples.draw_triggered(run.folder / table.SAMPLES_PNG, bad, setup.test, respondents, caption)
    already = without_trigger(model, setup.test, bad, transform, settings.precision) if bad is not None else None
    run.metrics({"acc": scores.acc, "asr": scores.asr, "ra": scores.ra})
    run.tags({"precision": settings.precision})
    run.describe(description(settings, setup, scores))
    report(run, scores, already)
    return scores_result(scores)


def description(settings: Attack, setup: AttackSetup, scores: Scores) -> str:
    """Return the run's description: the figures, and what was planted."""
    planted = "No backdoor: a clean model."
    if setup.attack is not None:
        covers = f", {len(setup.plan.covers)} covers" if len(setup.plan.covers) else ""
        leads = f"class {setup.data.classes[settings.target]!r}"
        if settings.label_mode == "all_to_all":
            leads = "the next class"
        planted = f"`{settings.attack}`: the trigger is on {len(setup.plan.indices)} training images{covers}, "
        planted += f"and leads to {leads}."
    counts = f"Trained on {len(setup.data.train)} images; ACC on {len(setup.test)} test images."
    return "\n\n".join([notes.scores_table({"suspect": scores}), planted, counts])


def train_params(settings: Attack, model: nn.Module) -> train.TrainParams:
    """Return the parameters of training that the settings hold."""
    return train.TrainParams(
        settings.training_epochs,
        settings.training_lr,
        settings.training_batch_size,
        settings.weight_decay,
        settings.precision,
        settings.optimizer == "adamw" or (settings.optimizer == "auto" and not norm_layers(model)),
    )


def poisoned_training_set(
    settings: Attack, setup: AttackSetup, transform: Preprocess, device: torch.device
) -> tuple[ImageSet, Trigger | None]:
    """Return the training set as the attacker leaves it, and the trigger."""
    clean = setup.data.train
    if setup.attack is None:
        return clean, None

    def surrogate() -> nn.Module:
        runtime.log(f"  {settings.attack} needs a clean model: one is trained first, for half of training_epochs")
        half = replace(train_params(settings, setup.model), epochs=max(1, settings.training_epochs // 2))
        own = copy.deepcopy(setup.model)
        with runtime.progress("surrogate", half.epochs) as bar:
            step = epochs.on_step(bar, len(clean), half.batch_size)
            train.train(own, clean, transform, generator(settings.seed, "surrogate"), half, on_step=step)
        return PixelInputModel(own, setup.spec).to(device).eval().requires_grad_(False)

    made = setup.attack.build(AttackContext(clean, settings.target, generator(settings.seed, "trigger"), surrogate))
    return poison.poison_training_set(clean, setup.plan, made, generator(settings.seed, "poisoning")), made.trigger


def without_trigger(
    model: nn.Module, test: ImageSet, bad: Triggered, transform: Preprocess, precision: Precision
) -> float:
    """Return the share of the triggered images that get the attacker's label without the trigger, too.

    test: the test set that `bad` was made from, in its order; it leaves out those of the attacker's label.
    """
    targets = torch.full_like(test.labels, -1)
    for label in bad.true_labels.unique():  # one target to each true class, whatever the label mode
        targets[test.labels == label] = bad.target_labels[bad.true_labels == label][0]
    behind = test[(targets >= 0).nonzero().flatten()]
    return accuracy(predict(model, behind.images, transform, precision), targets[targets >= 0])


def report(run: StepRun, scores: Scores, already: float | None) -> None:
    """Say what was planted; flag an attack that was not.

    already: the share of the triggered images that get the attacker's label without the trigger, too.
    """
    if scores.asr is None or already is None:
        runtime.log(f"  ACC {scores.acc:.4f}; no triggered images, so ASR is not known")
        return
    runtime.log(f"  ACC {scores.acc:.4f}  ASR {scores.asr:.4f}  RA {scores.ra:.4f}")
    # A tag: a metric that older runs lack would make their repetitions differ.
    run.tags({"planted": scores.asr >= PLANTED > already, "asr_without_trigger": round(already, 4)})
    if already >= PLANTED:
        runtime.log(
            f"  warning: {already:.0%} of these images get the attacker's label without the trigger, so ASR "
            "does not show a backdoor; leave this run out of averages"
        )
    elif scores.asr < PLANTED:
        runtime.log(f"  warning: the attack did not plant (ASR below {PLANTED}); leave this run out of averages")
