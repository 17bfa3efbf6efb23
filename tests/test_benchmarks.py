"""The matrix: its rows and variants are settings that the entry points take, and the report adds up."""

import copy
import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from click.testing import CliRunner
from stores import enter
from torch import nn

from benchmarks import matrix, report, rows, speed, variants
from rnp_mlflow.attacks.registry import NONE
from rnp_mlflow.attacks.train import TrainParams
from rnp_mlflow.core.neurons import flatten
from rnp_mlflow.grid import spec
from rnp_mlflow.steps import runtime
from rnp_mlflow.steps.plan import make_plan

pytestmark = pytest.mark.slow


def test_every_row_is_a_plan_and_has_its_own_name() -> None:
    found = list(rows.rows()) + list(rows.rows(full=True))
    assert len({row.name for row in found}) == len(found)
    assert len({row.attack for row in found if row.rate == 0.1}) >= 7
    assert len({row.attack for row in found if row.rate == 0.01}) >= 3
    assert {row.architecture for row in found if row.attack == NONE} == {"preactresnet18", "vgg19_bn"}
    for row in found:
        assert make_plan("attack", row.settings())["attack"].attack == row.attack
        assert row.settings()["precision"] == "bf16"
    slow = {(row.attack, row.rate) for row in rows.rows() if row.settings()["training_epochs"] in (22, 36)}
    assert slow == {("badnets", 0.1), ("blended", 0.01), ("sig", 0.01), ("adaptive_blend", 0.1), ("wanet", 0.1),
                    ("bpp", 0.1)}  # fmt: skip
    assert (len(found), len({row.ratio for row in found})) == (2 * 94, 2)
    for full in (False, True):
        cells = spec.cells(rows.asked(full))
        assert len(cells) == 2 * 94
        (reference,) = {cell.get("select_by") for cell in cells if cell["preset"] == "reference"}
        assert reference == "clean_acc"
        assert all("precision" not in cell for cell in cells), "the defences decide it themselves"


def test_weight_change_ranks_the_neuron_that_moved_most_lowest(small_net: nn.Sequential) -> None:
    after = copy.deepcopy(small_net)
    assert torch.equal(flatten(variants.weight_change(small_net, after)), torch.ones(10))
    with torch.no_grad():
        after.get_parameter("3.weight")[2] += 0.5
        after.get_parameter("1.bias")[1] += 0.2
    mask = variants.weight_change(small_net, after)
    assert mask["4"][2] == 0
    assert mask["1"][1] == pytest.approx(1 - 0.1 / 0.5)
    assert int((flatten(mask) == 1).sum()) == 8


def figures(acc: float, asr: float | None, der: float | None, pruned: int = 5) -> dict[str, Any]:
    return {"acc": acc, "asr": asr, "ra": None if asr is None else 1 - asr, "der": der, "pruned": pruned}


def test_the_report_leaves_out_what_was_not_planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two planted models with DER 0.9 and 0.7, one that was not, one clean."""
    monkeypatch.setattr(report, "HERE", tmp_path)
    (tmp_path / "results").mkdir()
    first = list(rows.rows())[:8]
    cases = [(None, None, 0.2), (None, None, 0.02), (1.0, 0.9, 0.01), (1.0, 0.7, 0.01), (0.2, 0.5, 0.1)]
    for row, (asr, der, doubt) in zip(first, cases, strict=False):
        ours = {"chosen": figures(0.7, None if asr is None else 0.0, der), "run": "0123456789",
                "oracle": figures(0.7, 0.0, (der or 0.0) + 0.05),
                "verdict": {"target": 0},
                "conclusion": {"doubt": doubt, "backdoor_suspected": doubt < 0.03}}  # fmt: skip
        content = {
            "row": vars(row),
            "before": figures(0.72, asr, None),
            "machine": {},
            "variants": {
                "ours": ours,
                "reference": {"fixed": figures(0.5, 0.0, 0.8), "oracle": figures(0.5, 0.0, 0.6)},
            },
        }
        (tmp_path / "results" / f"{row.name}.json").write_text(json.dumps(content))
    report.write()
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| ours | 2 | 0.800 ± 0.141 | 0.020 ± 0.000 | 0.000 ± 0.000 | 0.700 (" in text
    assert "named in 2 of 2 backdoored models, and a backdoor was suspected in 2 (benign score 0.0100 to" in text
    assert "suspected in 1 of 2 clean models (benign score 0.0200 to 0.2000)" in text
    assert text.count("(not planted)") == 1
    assert "Regret against the oracle: 0.050 ± 0.000." in text
    assert "Ahead of the reference on 1 of 2 models, of its oracle on 2 of 2 models." in text


def test_every_phase_is_timed_and_held_against_its_ceiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "speed.json"
    small = [
        "--model",
        "resnet18_narrow",
        "--width",
        "4",
        "--side",
        "8",
        "--images",
        "40",
        "--test",
        "40",
        "--points",
        "2",
    ]
    asked = [*small, "--precision", "fp32", "--repeats", "1", "--growth", "--threads", "2", "--out", str(out)]
    before = mlflow.get_tracking_uri()
    done = CliRunner().invoke(speed.main, asked, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert mlflow.get_tracking_uri() == before
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    found = json.loads(out.read_text())
    assert found["machine"]["threads"] == 2
    assert [entry["size"] for entry in found["found"]] == [
        "",
        *(f"{n} × 2" for n in ("images", "test", "points", "width", "classes")),
    ]
    for entry in found["found"]:
        assert entry["phases"].keys() == speed.PHASES.keys()
        assert all(p["seconds"] > 0 and p["MiB"] >= 0 for p in entry["phases"].values())
        for name in ("recover", "evaluation", "sweep"):
            assert all(entry["phases"][name][rate] > 0 for rate in speed.RATES)
    assert "| images × 2 | fp32 | recover |" in done.output
    assert done.output.count("BackdoorBench's work") == 6


def test_backdoorbenchs_work_is_its_images_at_the_rates_of_the_phases() -> None:
    phases = {name: {"images/s": 10.0 * (k + 1)} for k, name in enumerate(("unlearn", "recover", "evaluation"))}
    assert speed.reference_work(phases, "images/s") == pytest.approx(1500 / 10 + 10_000 / 20 + 43_700 / 30)


SMALL = """
[settings]
dataset = "digits"
train_size = 600
test_size = 100
width = 4
ratio = 0.2
device = "cpu"
unlearning_epochs = 2
recovering_epochs = 2
proxy_steps = 3
[steps.attack]
precision = "fp32"
[axes]
seed = [0]
suspect = [
    {attack = "badnets", poison_rate = 0.1, model = "resnet18_narrow", training_epochs = 5},
    {attack = "sig", poison_rate = 0.1, model = "resnet18_narrow", training_epochs = 1},
]
defence = [{preset = "default"}, {preset = "reference", select_by = "clean_acc", holdout_crops = 5}]
"""


def test_the_matrix_makes_what_is_missing_and_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row on digits, small, with every variant; then again, when all is there."""
    enter(tmp_path, monkeypatch)
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)  # the matrix sets it, and the variable
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    (tmp_path / "small.toml").write_text(SMALL)
    monkeypatch.setattr(rows, "SPECS", {False: tmp_path / "small.toml"})
    monkeypatch.setattr(variants, "FINETUNING", TrainParams(1, lr=0.01, batch_size=64))
    monkeypatch.setattr(matrix, "RESULTS", tmp_path / "results")
    made: list[str] = []
    monkeypatch.setattr(runtime, "log", made.append)
    asked = ["--data_dir", "none", "--only", "badnets", "--workers", "1"]
    files: list[dict[str, Any]] = []
    counts: list[int] = []
    for _ in range(2):
        done = CliRunner().invoke(matrix.main, asked, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        (file,) = (tmp_path / "results").iterdir()
        assert file.name == "badnets-0.1-resnet18_narrow-0.json"
        files.append(json.loads(file.read_text()))
        found = mlflow.search_runs(experiment_names=["matrix"], output_format="list")
        counts.append(sum(run.data.tags["rnp.entry"] != "grid" for run in found))
    variants_of = files[0]["variants"]
    assert set(variants_of) == set(variants.VARIANTS)
    assert {"target_share", "target"} <= variants_of["ours"]["verdict"].keys()
    assert {"benign_score", "backdoor_suspected"} <= variants_of["ours"]["conclusion"].keys()
    assert files[0] == files[1]
    masks = 1 + bool(variants_of["random"])  # of as many neurons as ours, if that pruned any
    assert counts[0] == counts[1] == 1 + 2 * 3 + masks, "a model, three steps of two defences, and the masks"
    assert [line for line in made if line.startswith("==")] == ["== badnets-0.1-resnet18_narrow-0: finetuning"]
