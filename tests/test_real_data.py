"""A real BackdoorBench result (BadNets 10 %, PreActResNet18, CIFAR-10), through the project's own commands."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from stores import artifacts, enter, newest

from rnp_mlflow.cli import main
from rnp_mlflow.core.evaluate import EvalSet, evaluate, predict
from rnp_mlflow.core.neurons import ones_mask
from rnp_mlflow.core.prune import pruned_copy
from rnp_mlflow.data import sources
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.interop import backdoorbench
from rnp_mlflow.models.registry import build

pytestmark = [pytest.mark.slow, pytest.mark.real_data]


@pytest.fixture(scope="module")
def archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the archive lies; the model in it is imported into a store of its own."""
    root: Path = request.getfixturevalue("shared") / "backdoorbench-badnet"
    with pytest.MonkeyPatch.context() as patch:
        enter(tmp_path_factory.mktemp("real"), patch)
        torch.set_num_threads(1)  # beside another file on two cores, two threads each take a seventh more of them
        result = root / "record/badnet_0_1/attack_result.pt"
        assert main(["import", f"--attack_result={result}", f"--data={root / 'clean.npz'}"]) == 0
        yield root


def test_their_model_gives_their_figures(archive: Path) -> None:
    metrics = newest("import").data.metrics
    assert metrics["acc"] == pytest.approx(0.710, abs=1e-9)
    assert metrics["asr"] == pytest.approx(0.9556, abs=5e-5)
    assert metrics["ra"] == pytest.approx(0.0333, abs=5e-5)


def test_bf16_calls_at_most_2_of_1000_images_otherwise_than_fp32(archive: Path) -> None:
    """Of the suspect, and of it without 5 % of its neurons, drawn at random."""
    result = backdoorbench.read(archive / "record/badnet_0_1/attack_result.pt")
    model, clean = build("preactresnet18", 10, 3).eval(), sources.load("npz", str(archive / "clean.npz")).test
    model.load_state_dict(result.weights)
    assert clean is not None
    assert result.triggered is not None
    images = torch.cat([clean.images, result.triggered.images])
    draws = torch.Generator().manual_seed(0)
    mask = {name: torch.rand(len(values), generator=draws) for name, values in ones_mask(model).items()}
    feed = Preprocess(*sources.NORMALISATION["cifar10"])
    for subject in (model, pruned_copy(model, mask, 170)):
        quick, exact = (predict(subject, images, feed, kind) for kind in ("bf16", "fp32"))
        assert int((quick != exact).sum()) <= len(images) * 0.002


def test_their_mask_gives_their_curve_and_their_tools_read_ours(archive: Path) -> None:
    """All 19 points, within one image: ACC 1/500, ASR and RA 1/450. The export is their operating point."""
    theirs = archive / "backdoorbench-output"
    imported = newest("import").info.run_id
    arguments = [f"--model_run_id={imported}", f"--mask_file={theirs / 'mask_values.txt'}", "--bn_stats=keep",
                 f"--index={theirs / 'defence_index.txt'}", "--holdout_crops=0", "--holdout=0.02",
                 "--select_by=number", "--export=backdoorbench", "--pruning_stride=1",
                 "--repair_steps=0"]  # fmt: skip
    assert main(["prune", *arguments]) == 0
    run = newest("prune")
    folder = artifacts(run)
    wanted = list(csv.DictReader((theirs / "threshold_df.csv").open()))
    rows = list(csv.DictReader((folder / "pruning_curve.csv").open()))[1:]
    assert len(rows) == len(wanted) == 19
    for row, right in zip(rows, wanted, strict=True):
        assert float(row["threshold"]) == pytest.approx(float(right["threshold"]))
        assert float(row["acc"]) == pytest.approx(float(right["test_acc"]), abs=1 / 500 + 1e-9), row
        assert float(row["asr"]) == pytest.approx(float(right["test_asr"]), abs=1 / 450 + 1e-9), row
        assert float(row["ra"]) == pytest.approx(float(right["test_ra"]), abs=1 / 450 + 1e-9), row

    content = torch.load(folder / "defense_result.pt", weights_only=True)
    assert (content["model_name"], content["num_classes"]) == ("preactresnet18", 10)
    fresh = build("preactresnet18", 10, 3)
    fresh.load_state_dict(content["model"], strict=True)
    clean = sources.load("npz", str(archive / "clean.npz")).test
    bad = backdoorbench.read(archive / "record/badnet_0_1/attack_result.pt").triggered
    assert clean is not None
    assert bad is not None
    test = EvalSet(clean.images, clean.labels, bad.images, bad.true_labels, bad.target_labels)
    scores = evaluate(fresh, test, Preprocess(*sources.NORMALISATION["cifar10"]))
    assert (scores.acc, scores.asr, scores.ra) == tuple(run.data.metrics[name] for name in ("acc", "asr", "ra"))
