"""How fast each phase is beside the machine's own ceiling: `python -m benchmarks.speed --model preactresnet18`.

Generated images that the network has learned for some epochs: an untrained one would be undecided, and bf16 looks at
what is undecided twice. The ceiling is a plain loop of the same network in the same run, in the same number format and
memory layout; the reference's way is a loop written like BackdoorBench's. A phase and these two are run in turn,
`repeats` times, and medians are taken.
"""

import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import chdir
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import click
import mlflow
import torch
from torch import nn

from benchmarks.loops import (
    Work,
    backward_loop,
    forward_loop,
    peak,
    plain_evaluation,
    plain_recovery,
    plain_unlearning,
    reset_peak,
)
from rnp_mlflow.attacks.train import TrainParams, train
from rnp_mlflow.config import Common
from rnp_mlflow.core.curve import CurvePoint, Evaluator, evaluate_sweep
from rnp_mlflow.core.evaluate import EvalSet, Scores, evaluate
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.neurons import flatten, ones_mask
from rnp_mlflow.core.params import Precision, RecoverParams, UnlearnParams
from rnp_mlflow.core.precision import has_bf16
from rnp_mlflow.core.prune import keep_mask, originals, prune_, sweep_cutoffs
from rnp_mlflow.core.recover import recover
from rnp_mlflow.core.unlearn import unlearn
from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.models.registry import build
from rnp_mlflow.steps import curve as curves
from rnp_mlflow.steps import runtime
from rnp_mlflow.tracking.runs import step_run

FORMATS: tuple[Precision, ...] = ("fp32", "bf16")
RATES = ("images/s", "ceiling images/s", "reference images/s")
Phase = Callable[[Work], int]  # does its part and gives the images that passed through the network


def unlearning(work: Work) -> int:
    """Run one epoch on all the clean images, forwards and backwards through all weights."""
    params = UnlearnParams(
        unlearning_epochs=1, clean_threshold=0.0, unlearning_stop="epoch", precision=work.precision
    )  # fmt: skip
    unlearn(work.model, work.clean, work.transform, work.draws(), params)
    return len(work.images)


def recovery(work: Work) -> int:
    """Run one epoch on all the clean images, backwards to the mask alone."""
    params = RecoverParams(recovering_epochs=1, recovering_batch_size=32, precision=work.precision)
    recover(work.model, work.clean, work.transform, work.draws(), params)
    return len(work.images)


def evaluation(work: Work) -> int:
    """Measure ACC of all test images."""
    evaluate(work.model, EvalSet(work.test, work.test_labels), work.transform, work.precision)
    return len(work.test)


def sweep(work: Work) -> int:
    """Evaluate the curve's points on the test images, 2 of them held out. No point counts twice."""
    holdout = LabeledImages(work.test[:2], work.test_labels[:2])
    evaluator = Evaluator(EvalSet(work.test, work.test_labels), holdout, work.transform, None, work.precision)
    points = sweep_cutoffs(work.mask, "threshold", 0.05 * work.points, 0.05)
    evaluate_sweep(work.model, work.mask, points, evaluator)
    return len(work.test) * len({point.num_pruned for point in points})


def pruning(work: Work) -> int:
    """Prune at every point, without any evaluation."""
    original = originals(work.model)
    for k in range(work.points):
        prune_(work.model, original, keep_mask(work.mask, k))
    prune_(work.model, original, torch.ones(len(flatten(work.mask))))
    return 0


@cache
def store() -> "tempfile.TemporaryDirectory[str]":
    """Return the folder of the tracking store: to make a new one takes seconds, once per process."""
    return tempfile.TemporaryDirectory()


def tracking(work: Work) -> int:
    """Open a run in an existing store, log a curve, upload files, and close the run."""
    rows = [CurvePoint(k / 100, k, Scores(0.5, 0.5, 0.5), 0.5) for k in range(work.points)]
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{store().name}/mlflow.db")
    with chdir(store().name), step_run("benchmark") as run:  # artifacts lie in the working directory
        (run.folder / "file.txt").write_text("x")
        curves.log_curve(run, rows)
    mlflow.set_tracking_uri(before)
    return 0


# phase → itself, its ceiling, the reference's way of doing it
PHASES: dict[str, tuple[Phase, Phase | None, Phase | None]] = {
    "unlearn": (unlearning, None, plain_unlearning),
    "recover": (recovery, backward_loop, plain_recovery),
    "evaluation": (evaluation, forward_loop, plain_evaluation),
    "sweep": (sweep, forward_loop, plain_evaluation),
    "pruning alone": (pruning, None, None),
    "tracking": (tracking, None, None),
}
# Images that BackdoorBench passes through the network on its archive (README.md): 3 epochs of 500, 20 of 500, and 46
# evaluations of 950.
REFERENCE_WORK = {"unlearn": 1500, "recover": 10_000, "evaluation": 43_700}


def timed(phase: Phase, work: Work) -> tuple[float, float]:
    """Return (seconds, images per second)."""
    if work.images.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    count = phase(work)
    if work.images.is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, count / seconds


def measure(work: Work, repeats: int) -> dict[str, dict[str, float | None]]:
    """Return phase → medians: seconds, images/s, those of the ceiling and of the reference; peak memory in MiB."""
    found: dict[str, dict[str, float | None]] = {}
    for name, ways in PHASES.items():
        reset_peak(work.images.device)
        timed(ways[0], work)  # kernels are made at their first use
        most = peak(work.images.device)
        runs = [[timed(way, work) if way else (0.0, 0.0) for way in ways] for _ in range(repeats)]
        rates = [median(run[k][1] for run in runs) or None for k in range(len(ways))]
        seconds = median(run[0][0] for run in runs)
        found[name] = {"seconds": seconds, "MiB": most, **dict(zip(RATES, rates, strict=True))}
    return found


def reference_work(phases: dict[str, dict[str, Any]], rates: str) -> float:
    """Return the seconds of BackdoorBench's work on its archive at these rates, without start-up and plots."""
    found: float = sum(count / phases[name][rates] for name, count in REFERENCE_WORK.items())
    return found


def sizes(base: dict[str, int]) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield the requested size, and each of its numbers doubled."""
    yield "", base
    for name in ("images", "test", "points", "width", "classes"):
        yield f"{name} × 2", base | {name: 2 * base[name]}


def made(size: dict[str, int], model: str, side: int, precision: Precision, device: torch.device) -> Work:
    """Make images (a pattern per class under noise), labels, network and mask of that size, from seed 0."""
    draws = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    patterns = torch.randint(192, (size["classes"], 3, side, side), generator=draws, dtype=torch.uint8)

    def pictures(count: int) -> ImageSet:
        labels = torch.arange(count) % size["classes"]
        noise = torch.randint(64, (count, 3, side, side), generator=draws, dtype=torch.uint8)
        return ImageSet(patterns[labels] + noise, labels).to(device)

    network: nn.Module = build(model, size["classes"], 3, size["width"]).to(device)
    transform = Preprocess.for_image_size(side, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), False)
    images, test = pictures(size["images"]), pictures(size["test"])
    train(network, images, transform, draws, TrainParams(6, lr=0.02, batch_size=32, precision=precision))
    # Half a percent of the neurons more at each point of the sweep, as real masks have it.
    mask = {name: (10 * torch.rand(len(v), generator=draws)).clamp(max=1) for name, v in ones_mask(network).items()}
    clean = LabeledImages(images.images, images.labels)
    return Work(network.eval(), clean, test.images, test.labels, mask, transform, size["points"], precision)


def table(found: list[dict[str, Any]]) -> str:
    """Return Markdown: a line per phase, size and precision; and what BackdoorBench's work would take."""
    columns = ("size", "precision", "phase", "seconds", "images/s", "share of ceiling", "× reference's way", "peak MiB")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for entry in found:
        for phase, values in entry["phases"].items():
            rate, ceiling, plain = (values[name] for name in RATES)
            cells = [entry["size"] or "as said", entry["precision"], phase, f"{values['seconds']:.3f}"]
            cells += [f"{rate:.0f}" if rate else "", f"{rate / ceiling:.0%}" if ceiling else ""]
            cells += [f"{rate / plain:.2f}" if plain else "", f"{values['MiB']:.0f}"]
            lines.append("| " + " | ".join(cells) + " |")
    for entry in found:
        ours, plain = (reference_work(entry["phases"], rates) for rates in (RATES[0], RATES[2]))
        lines.append(
            f"\nBackdoorBench's work ({entry['size'] or 'as said'}, {entry['precision']}; "
            f"{', '.join(f'{name} {count}' for name, count in REFERENCE_WORK.items())} images): {ours:.0f} s, "
            f"the reference's way {plain:.0f} s, {plain / ours:.2f} times."
        )
    return "\n".join(lines)


@click.command()
@click.option("--model", default="preactresnet18", help="an architecture of ours")
@click.option("--width", default=64, help="channels of its first stage")
@click.option("--side", default=32, help="pixels a side of the images")
@click.option("--classes", default=10)
@click.option("--images", default=400, help="clean images that the defender trains with")
@click.option("--test", default=950, help="test images")
@click.option("--points", default=18, help="points of the sweep")
@click.option("--precision", default="fp32,bf16", help="number formats, comma between; bf16 only where it is at home")
@click.option("--repeats", default=3, help="runs of each phase; medians are taken")
@click.option("--growth/--no-growth", default=False, help="also with each size doubled")
@click.option("--threads", default="auto", help="CPU threads")
@click.option("--device", default="auto", help="cpu or cuda")
@click.option("--out", default="speed.json", help="where the figures go, as JSON")
def main(
    *,
    model: str,
    side: int,
    precision: str,
    repeats: int,
    growth: bool,
    threads: str,
    device: str,
    out: str,
    **base: int,
) -> None:
    """Time every phase."""
    where = runtime.prepare(Common(threads=threads, device=device))
    asked: list[Precision] = [kind for kind in FORMATS if kind in precision.split(",")]
    kinds = [kind for kind in asked if kind == "fp32" or has_bf16(where)]
    found = []
    for label, size in list(sizes(base))[: None if growth else 1]:
        for kind in kinds:
            phases = measure(made(size, model, side, kind, where), repeats)
            found.append({"size": label, "precision": kind, **size, "phases": phases})
    machine = {
        "machine": f"{platform.machine()}, {platform.system()}", "python": platform.python_version(),
        "torch": torch.__version__, "threads": torch.get_num_threads(), "device": str(where), "repeats": repeats,
        "model": model, "side": side,
    }  # fmt: skip
    Path(out).write_text(json.dumps({"machine": machine, "found": found}, indent=1) + "\n")
    print(", ".join(f"{name} {value}" for name, value in (machine | base).items()) + "\n\n" + table(found))


if __name__ == "__main__":
    main()
