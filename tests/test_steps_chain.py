"""A chain of steps as MLflow runs: how they are nested, what they leave, and when a finished run is taken again."""

import csv
import json

import pytest
from mlflow.tracking import MlflowClient
from small import call
from stores import artifacts, newest, runs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("store")]


def test_prune_on_an_empty_store_makes_the_chain_nested_in_it() -> None:
    (prune,) = runs(entry="prune")
    children = newest("attack"), newest("unlearn"), newest("recover")
    for child in children:
        assert child.data.tags["mlflow.parentRunId"] == prune.info.run_id
        assert child.data.tags["mlflow.project.entryPoint"] == child.data.tags["rnp.entry"]
        assert child.info.status == "FINISHED"
    attack, unlearn, recover = (child.info.run_id for child in children)
    assert {k: prune.data.tags[f"rnp.{k}"] for k in ("model_run_id", "unlearn_run_id", "recover_run_id")} == {
        "model_run_id": attack, "unlearn_run_id": unlearn, "recover_run_id": recover,
    }  # fmt: skip
    assert children[2].data.params["unlearn_run_id"] == unlearn


def test_artifacts_and_metrics_have_the_names_others_rely_on() -> None:
    expected = {
        "attack": ["model/model.safetensors", "model/model.json", "data.json", "poison_plan.json",
                   "trigger.safetensors", "samples.png", "history.csv"],
        "unlearn": ["unlearned_model/model.safetensors", "unlearned_model/model.json", "history.csv",
                    "defence_index.txt"],
        "recover": ["mask_values.csv", "mask_values.txt", "history.csv", "mask_histograms.png"],
        "prune": ["pruning_curve.csv", "pruning_curve.png", "report.html", "summary.json", "pruned_neurons.csv",
                  "purified_model/model.safetensors", "purified_model/model.json"],
    }  # fmt: skip
    for entry, names in expected.items():
        folder = artifacts(newest(entry))
        assert all((folder / name).stat().st_size > 0 for name in names), entry
    spec = json.loads((artifacts(newest("attack")) / "model/model.json").read_text())
    assert spec["architecture"] == "resnet18_narrow"
    assert spec["input_shape"] == [1, 16, 16]
    metrics = newest("prune").data.metrics
    rates = {"acc_before", "asr_before", "ra_before", "acc", "asr", "ra", "der"}
    assert rates | {f"curve/{name}" for name in ("acc", "asr", "ra", "pruned")} <= metrics.keys()
    assert {"unlearn/loss", "unlearn/accuracy"} <= newest("unlearn").data.metrics.keys()
    assert {"recover/loss", "recover/accuracy"} <= newest("recover").data.metrics.keys()
    tags = newest("prune").data.tags
    assert {"mlflow.source.git.commit", "rnp.dirty", "rnp.torch", "rnp.machine", "rnp.threads"} <= tags.keys()


def test_a_second_call_takes_what_is_there_and_another_setting_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    before = len(runs(entry="attack"))
    assert call("prune", acc_ratio=0.9) == 0
    assert len(runs(entry="attack")) == before
    assert capsys.readouterr().err.count("(same inputs)") == 3
    assert call("prune", alpha=0.5) == 0
    assert capsys.readouterr().err.count("(same inputs)") == 2
    assert call("prune", train_size=500) == 0
    assert len(runs(entry="attack")) == before + 1


def test_a_run_whose_artifact_is_gone_is_not_reused_and_is_refused_by_id(capsys: pytest.CaptureFixture[str]) -> None:
    recover = newest("recover")
    (artifacts(recover) / "mask_values.csv").unlink()
    assert call("prune", recover_run_id=recover.info.run_id) == 2
    assert "mask_values.csv" in capsys.readouterr().err
    assert call("prune") == 0
    assert newest("recover").info.run_id != recover.info.run_id


def test_moments_of_unlearning_and_recovery_are_measured_and_drawn_by_the_prune() -> None:
    steps = {step: newest(step) for step in ("unlearn", "recover", "prune")}
    client = MlflowClient()

    def history(step: str, metric: str) -> list[tuple[int, float]]:
        return [(m.step, m.value) for m in client.get_metric_history(steps[step].info.run_id, metric)]

    expected: dict[str, list[float]] = {"acc": [], "asr": []}
    for step in ("unlearn", "recover"):
        rows = list(csv.DictReader((artifacts(steps[step]) / "progress.csv").open()))
        measured = [row for row in rows if row["acc"]]
        assert 1 <= len(measured) <= 10
        for name, values in expected.items():
            assert history(step, f"{step}/test_{name}") == [(int(row["step"]), float(row[name])) for row in measured]
            values += [float(row[name]) for row in measured]
    rows = list(csv.DictReader((artifacts(steps["unlearn"]) / "progress.csv").open()))
    seen = [float(row["rule_accuracy"]) for row in rows if row["rule_accuracy"]]
    assert [value for _, value in history("unlearn", "unlearn/rule_accuracy")] == seen
    for name, values in expected.items():
        chart = [value for _, value in history("prune", f"rnp/{name}")]
        assert chart[: len(values)] == values
    names = ("rnp", "pruning_curve", "confusion", "tradeoff", "trigger_change")
    assert all((artifacts(steps["prune"]) / f"{name}{kind}").is_file() for name in names for kind in (".png", ".svg"))
    assert (artifacts(steps["prune"]) / "samples_after.png").is_file()


def test_a_clean_model_has_no_asr_and_the_chain_still_works() -> None:
    assert call("prune", attack="none") == 0
    run = newest("prune")
    assert "asr" not in run.data.metrics
    assert "acc" in run.data.metrics
    summary = json.loads((artifacts(run) / "summary.json").read_text())
    assert summary["points"]["chosen"]["asr"] is None
    assert "oracle" not in summary["points"]


def test_without_a_proxy_there_is_no_verdict_and_accuracy_decides(capsys: pytest.CaptureFixture[str]) -> None:
    known = newest("attack").info.run_id
    assert call("prune", model_run_id=known, proxy_steps=0, clean_threshold=0.99) == 0
    run = newest("prune")
    assert "rnp.backdoor_suspected" not in run.data.tags
    assert not {f"verdict/{name}" for name in ("relative_norm", "removal_cost", "forgetting_rate", "benign_score")} & (
        run.data.metrics.keys()
    )
    assert "verdict: none without a proxy" in capsys.readouterr().out
