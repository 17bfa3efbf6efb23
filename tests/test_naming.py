"""What runs and models are called, which names MLflow made up, and when a purified model is not registered."""

import dataclasses
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from mlflow.utils.name_utils import _generate_random_name
from mlflow.utils.validation import _validate_logged_model_name

from rnp_mlflow import config
from rnp_mlflow.errors import ConfigError, LineageError
from rnp_mlflow.steps import labels, notes, registering
from rnp_mlflow.steps.plan import make_plan
from rnp_mlflow.steps.summary import DetectionSummary, HoldoutViews, ImageCounts, PointFigures, PruneSummary
from rnp_mlflow.tracking import lineage, naming, ui, views
from rnp_mlflow.tracking.naming import Subject
from rnp_mlflow.tracking.runs import is_random_name

BEFORE = PointFigures(None, 0, 0.9, 0.8, 0.91, 1.0, 0.0)
AFTER = PointFigures(0.3, 7, 0.85, 0.0, 0.9, 0.02, 0.88, 0.985)
VERDICT = DetectionSummary(
    backdoor_suspected=True, target="cat", target_share=0.8, relative_norm=0.1, removal_cost=0.1, forgetting_rate=0.1,
    benign_score=0.002, benign_threshold=0.007, clear_threshold=0.004, confidence="clear", false_alarm_rate=0.001,
)  # fmt: skip
SUMMARY = PruneSummary(
    BEFORE, "proxy", "chosen", "threshold", 1000, {"chosen": AFTER}, VERDICT, {"bn1": (7, 16)},
    ImageCounts(100, 20, 500, 450), HoldoutViews(20, 5, 1, 0),
)  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "values", "name"),
    [
        ("prune", {"seed": 1}, "prune · badnets 10 % · resnet18_narrow · digits · seed 1"),
        ("main", {"attack": "sig", "poison_rate": "0.01"}, "main · sig 1 % · resnet18_narrow · digits · seed 0"),
        ("attack", {"attack": "none"}, "attack · clean · resnet18_narrow · digits · seed 0"),
        ("attack", {"dataset": "folder", "data_dir": "/b"}, "attack · badnets 10 % · resnet18_narrow · b · seed 0"),
    ],
)  # fmt: skip
def test_a_run_is_named_after_its_suspect(entry: str, values: dict[str, object], name: str) -> None:
    plan = make_plan(entry, values)
    assert naming.run_name(entry, labels.planned(plan), plan["prune"].seed) == name


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"checkpoint": "/x/suspect.pt", "model": "vgg19_bn"}, "import · suspect.pt · vgg19_bn"),
        ({"attack_result": "/x/badnet_0_1/attack_result.pt"}, "import · badnet_0_1"),
        ({"model_uri": "models:/birds@purified", "dataset": "cifar10"}, "import · birds@purified · cifar10"),
    ],
)
def test_an_import_is_named_after_its_file_or_model(values: dict[str, object], name: str) -> None:
    assert naming.run_name("import", labels.planned(make_plan("import", values)), None) == name


def test_mlflow_takes_the_models_name_whatever_the_suspect_is_called() -> None:
    for suspect in ("badnets", "none", "unknown"):
        for origin in (None, "a.b%'\":/suspect.pt"):
            _validate_logged_model_name(naming.model_name(Subject(suspect, 0.1, "resnet18", "cifar10", origin)))
    assert naming.model_name(Subject("sig", 0.01, "vgg19_bn", "digits")) == "purified-sig-1-vgg19_bn-digits"


def test_names_that_mlflow_made_up_are_told_from_a_persons() -> None:
    made = [name for name in (_generate_random_name() for _ in range(200)) if len(name) < 20]  # longer ones are cut
    assert all(map(is_random_name, made))
    assert not any(map(is_random_name, ("my-run-1", "big-run", "handsome-sloth", "badnets-seed-3", "a-b-c-1", "")))


def test_the_description_begins_with_the_verdict_and_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(run_id: str) -> mlflow.entities.Run:
        raise LineageError(run_id)

    monkeypatch.setattr(lineage, "get", gone)
    lines = notes.pruning(SUMMARY, {"attack": "a" * 32}).splitlines()
    assert lines[:2] == [
        "**A backdoor to class 'cat' is suspected.** About 0.1 % of clean models look as suspicious (estimated). "
        "ACC 0.910 → 0.900, ASR 1.000 → 0.020, RA 0.000 → 0.880; 7 neurons pruned.",
        "",
    ]
    assert [" ".join(line.replace("\xa0", "").split()) for line in lines[2:6]] == [
        "| | ACC | ASR | RA | DER |",
        "| --- | --- | --- | --- | --- |",
        "| before | 0.9100 | 1.0000 | 0.0000 | – |",
        "| after (chosen) | 0.9000 | 0.0200 | 0.8800 | 0.9850 |",
    ]
    assert "7 neurons were pruned: `bn1` 7 of 16." in lines
    assert "Runs: suspect" in lines


def changed(**values: object) -> PruneSummary:
    return dataclasses.replace(SUMMARY, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("summary", "words"),
    [
        (SUMMARY, None),
        (changed(points={"chosen": dataclasses.replace(AFTER, num_pruned=0)}), "nothing was pruned"),
        (changed(verdict=None), "there is no verdict"),
        (changed(verdict=dataclasses.replace(VERDICT, backdoor_suspected=None)), "there is no verdict"),
        (changed(verdict=dataclasses.replace(VERDICT, confidence="borderline")), "the verdict is borderline"),
        (changed(points={"chosen": dataclasses.replace(AFTER, holdout_acc=0.71)}), "min_acc_ratio=0.8 allows"),
        (changed(before=dataclasses.replace(BEFORE, proxy_asr=0.0)), "acc_ratio=0.95 allows"),
    ],
)
def test_what_is_not_purified_is_not_registered(summary: PruneSummary, words: str | None) -> None:
    reason = registering.refusal(config.Prune(), summary)
    assert reason is None if words is None else words in str(reason)


@pytest.mark.parametrize("name", ["a/b", "a:b", "..", " "])
def test_a_name_that_the_registry_refuses_is_refused_before_the_work(name: str) -> None:
    with pytest.raises(ConfigError, match="register_as="):
        registering.check_name(name)
    registering.check_name("cifar-purified")


def test_the_printed_links_are_short() -> None:
    lines = ui.ui_links("12", ["f" * 32])
    assert lines[-1].endswith("/#/experiments/12/runs?workflowType=machine_learning&viewStateShareKey=rnp")
    assert max(map(len, lines[1:])) < 120


def test_a_chosen_experiment_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in views.CHOSEN_BY:
        monkeypatch.setenv(name, "7")
        assert views.experiment_id() is views.home("3") is None
        monkeypatch.delenv(name)


def test_the_experiment_is_made_once_and_earlier_runs_are_found_in_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    for name in views.CHOSEN_BY:
        monkeypatch.delenv(name, raising=False)
    try:
        client = MlflowClient()
        assert views.searched("0") == ["0"]
        ours = views.experiment_id()
        assert ours is not None
        assert ours == views.experiment_id() == client.get_experiment_by_name("rnp").experiment_id
        assert set(views.searched("0")) == set(views.searched(ours)) == {"0", ours}
        assert (views.home(None), views.home("3")) == (ours, "3")
        other = client.create_experiment("theirs")
        assert views.searched(other) == [other]
        client.delete_experiment(ours)
        with pytest.raises(LineageError, match="deleted"):
            views.experiment_id()
    finally:
        mlflow.set_tracking_uri(before)
