"""Entry point `prune`: the curve, the point chosen, the purified model, and the ways to start from finished runs."""

import csv
import json
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image
from safetensors.torch import load_file
from small import SETTINGS, call
from stores import artifacts, newest
from torch import Tensor, nn

from rnp_mlflow import EvalSet, defend, pipeline
from rnp_mlflow.cli import main
from rnp_mlflow.core.neurons import flatten
from rnp_mlflow.models.store import ModelSpec
from rnp_mlflow.steps import subject
from rnp_mlflow.steps.plan import Plan, make_plan
from rnp_mlflow.tracking import models

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("store")]


def chosen_row(rows: list[dict[str, str]], norm: float, forgetting: float) -> int:
    """Rule of the docs: min_acc_ratio .8, if borderline .99; proxy_ratio .01, margin_ratio .975; limits .0025, .007."""
    acc, proxy = ([float(row[name]) for row in rows] for name in ("val_acc", "proxy_asr"))
    if proxy[0] == 0:
        return 0  # a proxy that turns nothing is no sign
    trade = [proxy[k] / proxy[0] + max(0, acc[0] - acc[k]) / acc[0] for k in range(len(rows))]
    score = norm * min(trade) * (0.1 + forgetting)
    if score > 0.007:
        return 0
    floor = (0.99 if score > 0.004 else 0.8) * acc[0]
    allowed = [k for k in range(len(rows)) if min(acc[: k + 1]) >= floor]
    k = next((k for k in allowed if proxy[k] <= 0.01 * proxy[0]), min(allowed, key=trade.__getitem__))
    limit = max(0.975 * acc[k], floor)
    return k and next((j - 1 for j in range(k, len(rows)) if acc[j] < limit), len(rows) - 1)


def test_curve_summary_and_purified_model_tell_the_same_story() -> None:
    run = newest("prune")
    folder = artifacts(run)
    rows = list(csv.DictReader((folder / "pruning_curve.csv").open()))
    assert list(rows[0]) == ["threshold", "pruned", "acc", "asr", "ra", "val_acc", "proxy_asr"]
    assert (rows[0]["threshold"], rows[0]["pruned"]) == ("", "0")
    assert [row["threshold"] for row in rows[1:]] == ["0.0", "0.3", "0.6", "0.9"]
    history = MlflowClient().get_metric_history(run.info.run_id, "curve/acc")
    assert [m.step for m in history] == [-1, 0, 300, 600, 900]
    assert [m.value for m in history] == [float(row["acc"]) for row in rows]

    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["points"]) == {"chosen", "fixed", "oracle"}
    chosen, found = summary["points"]["chosen"], summary["verdict"]
    row = rows[chosen_row(rows, found["relative_norm"], found["forgetting_rate"])]
    assert chosen["pruned"] == int(row["pruned"])
    unlearned = artifacts(newest("unlearn"))
    assert Image.open(unlearned / "proxy.png").size[0] > 300
    verdict = json.loads((unlearned / "verdict.json").read_text())
    assert found["target_share"] == verdict["target_share"]
    assert found["forgetting_rate"] == verdict["forgetting_rate"] == run.data.metrics["verdict/forgetting_rate"]
    score = found["relative_norm"] * found["removal_cost"] * (0.1 + found["forgetting_rate"])
    assert found["benign_score"] == score == run.data.metrics["verdict/benign_score"]
    assert found["backdoor_suspected"] is (score <= 0.007)
    assert found["confidence"] == ("no sign" if score > 0.007 else "borderline" if score > 0.004 else "clear")
    assert summary["points"]["fixed"]["threshold"] == 0.7
    weights = load_file(folder / "purified_model/model.safetensors")
    zeros = sum(int((v == 0).sum()) for k, v in weights.items() if k.endswith("weight") and v.ndim == 1)
    assert zeros == chosen["pruned"]
    mask = csv.DictReader((artifacts(newest("recover")) / "mask_values.csv").open())
    threshold = -1 if chosen["threshold"] is None else chosen["threshold"]
    assert chosen["pruned"] == sum(float(row["value"]) <= threshold for row in mask)


def test_defend_in_python_gives_what_the_steps_gave() -> None:
    """Mask, curve and purified weights bit for bit, from the images that the unlearn run recorded."""
    attack, unlearn, recover, prune = (newest(entry) for entry in ("attack", "unlearn", "recover", "prune"))
    suspect = subject.load(attack.info.run_id, make_plan("prune", {}), torch.device("cpu"))
    chosen = torch.tensor([int(line) for line in (artifacts(unlearn) / "defence_index.txt").read_text().split()])
    clean, bad = suspect.data.train[chosen], suspect.triggered
    assert bad is not None
    assert suspect.data.test is not None
    test = EvalSet(*vars(suspect.data.test).values(), *vars(bad).values())
    machine = ("width", "train_size", "test_size", "training_epochs", "ratio", "threads", "device")
    settings: dict[str, Any] = {name: value for name, value in SETTINGS.items() if name not in machine}
    settings |= {"mean": suspect.spec.mean, "std": suspect.spec.std, "flip": suspect.data.flip}
    torch.set_num_threads(2)
    result = defend(suspect.model, clean.images, clean.labels, test=test, **settings)
    stored = csv.DictReader((artifacts(recover) / "mask_values.csv").open())
    assert [float(row["value"]) for row in stored] == flatten(result.mask).tolist()
    curve = list(csv.DictReader((artifacts(prune) / "pruning_curve.csv").open()))
    assert [(float(r["acc"]), float(r["asr"]), float(r["val_acc"])) for r in curve] == [
        (p.scores.acc, p.scores.asr, p.holdout_acc) for p in result.curve
    ]
    weights = load_file(artifacts(prune) / "purified_model/model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in result.model.state_dict().items())


def test_steps_by_run_id_alone() -> None:
    recover = newest("recover").info.run_id
    arguments = ("--pruning_by=number", "--pruning_step=20", "--pruning_max=60", "--pruning_stride=1",
                 "--pruning_number=7", "--select_by=number", "--bn_stats=keep", "--repair_steps=0")  # fmt: skip
    assert main(["prune", f"--recover_run_id={recover}", *arguments]) == 0
    folder = artifacts(newest("prune"))
    rows = list(csv.DictReader((folder / "pruning_curve.csv").open()))
    assert [(row["number"], row["pruned"]) for row in rows] == [("", "0"), ("20", "20"), ("40", "40"), ("60", "60")]
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["selected"], summary["points"]["fixed"]["pruned"]) == ("fixed", 7)


def test_the_curve_of_a_part_of_the_test_images_and_a_summary_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    recover, found = newest("recover").info.run_id, {}
    for count in (0, 7):
        sweep = ("--pruning_step=0.3", "--holdout_crops=1", "--select_by=number", f"--curve_eval_size={count}", "-v")
        assert main(["prune", f"--recover_run_id={recover}", *sweep]) == 0
        found[count] = json.loads((artifacts(newest("prune")) / "summary.json").read_text()), capsys.readouterr().out
    (whole, output_of_whole), (part, output) = found[0], found[7]
    assert part["before"] == whole["before"]
    assert part["points"]["fixed"] == whole["points"]["fixed"]
    assert "the curve: at most 7 of each" in output
    assert "the curve:" not in output_of_whole
    rows = list(csv.DictReader((artifacts(newest("prune")) / "pruning_curve.csv").open()))
    assert all(
        float(row[name]) * 7 == pytest.approx(round(float(row[name]) * 7)) for row in rows for name in ("acc", "asr")
    )


def test_the_suspect_becomes_the_purified_model_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[nn.Module] = []
    logged: list[nn.Module] = []
    original_load, original_log = subject.load, models.log

    def load(model_run_id: str, plan: Plan, device: torch.device) -> subject.Suspect:
        suspect = original_load(model_run_id, plan, device)
        loaded.append(suspect.model)
        return suspect

    def log(model: nn.Module, spec: ModelSpec, example: Tensor, **about: Any) -> str:
        logged.append(model)
        return original_log(model, spec, example, **about)

    monkeypatch.setattr(subject, "load", load)
    monkeypatch.setattr(models, "log", log)
    number = {"pruning_by": "number", "pruning_max": 0.2, "pruning_step": 0.1, "pruning_number": 0.1, "repair_steps": 0}
    assert call("prune", recover_run_id=newest("recover").info.run_id, select_by="number", **number) == 0
    assert newest("prune").data.metrics["pruned"] > 0
    assert logged == [loaded[-1]]


def test_the_purified_model_is_the_repaired_one_unless_the_repair_did_not_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recover = newest("recover").info.run_id
    found = {}
    for kept, steps in ((True, 5), (False, 5), (True, 0)):
        monkeypatch.setattr(pipeline, "is_kept", lambda pruned, repaired, unpruned, kept=kept: kept)
        arguments = ["--select_by=number", "--pruning_by=number", "--pruning_number=60", "--pruning_max=0.2",
                     "--pruning_step=0.1", "--holdout_crops=1"]  # fmt: skip
        assert main(["prune", f"--recover_run_id={recover}", f"--repair_steps={steps}", *arguments]) == 0
        run = newest("prune")
        summary = json.loads((artifacts(run) / "summary.json").read_text())
        weights = load_file(artifacts(run) / "purified_model" / "model.safetensors")
        found[kept, steps] = run.data.metrics, summary, weights
        assert ("\nrepaired ◀" in capsys.readouterr().out) == (kept and steps > 0)
    (metrics, summary, weights), (_, dropped, same), (_, without, plain) = found.values()
    assert (summary["selected"], dropped["selected"], without["selected"]) == ("repaired", "fixed", "fixed")
    assert metrics["acc"] == summary["points"]["repaired"]["acc"]
    assert "repaired" not in dropped["points"]
    assert summary["points"]["fixed"] == without["points"]["fixed"]
    assert all(torch.equal(same[name], value) for name, value in plain.items())
    assert any(not torch.equal(weights[name], value) for name, value in plain.items())
    scales = [name for name in plain if "bn" in name and name.endswith("weight")]
    assert sum(int((plain[name] == 0).sum()) for name in scales) > 0
    assert all(torch.equal(weights[name] == 0, plain[name] == 0) for name in scales)


def test_a_mask_file_takes_the_place_of_recovery() -> None:
    recover = newest("recover")
    model = recover.data.tags["rnp.model_run_id"]
    for name in ("mask_values.csv", "mask_values.txt"):
        mask = artifacts(recover) / name
        assert (
            main(["prune", f"--mask_file={mask}", f"--model_run_id={model}", "--ratio=0.2", "--pruning_step=0.3"]) == 0
        )
        assert newest("prune").data.tags["rnp.model_run_id"] == model
        assert "rnp.recover_run_id" not in newest("prune").data.tags
