"""Entry point `rerun`: the same figures again, or what differs."""

from pathlib import Path

import numpy as np
import outside_files
import pytest
from mlflow.tracking import MlflowClient
from small import call
from stores import artifacts, newest, runs

from rnp_mlflow.cli import main
from rnp_mlflow.steps import subject
from rnp_mlflow.tracking import lineage

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("store")]


def test_main_is_one_parent_with_four_children_and_reruns_identically(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("main", attack="blended") == 0
    parent = newest("main")
    children = MlflowClient().search_runs(["0"], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert sorted(c.data.tags["rnp.entry"] for c in children) == ["attack", "prune", "recover", "unlearn"]
    assert {"acc_before", "asr_before", "acc", "asr", "ra", "der"} <= parent.data.metrics.keys()
    assert (artifacts(parent) / "pruning_curve.png").is_file()
    capsys.readouterr()
    assert main(["rerun", f"--run_id={parent.info.run_id}"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-1] == "identical"
    assert sum(line.endswith(": identical") for line in lines) == 5
    again = newest("rerun")
    assert again.data.tags["rnp.rerun_of"] == parent.info.run_id
    assert again.data.tags["rnp.identical"] == "True"
    new = MlflowClient().get_run(again.data.tags["rnp.repeated_run_id"])
    assert new.data.tags["rnp.threads"] == parent.data.tags["rnp.threads"] == "2"
    old_curve = (artifacts(parent) / "pruning_curve.csv").read_bytes()
    assert (artifacts(new) / "pruning_curve.csv").read_bytes() == old_curve


def test_rerun_of_prune_remakes_what_auto_made_and_another_seed_differs(capsys: pytest.CaptureFixture[str]) -> None:
    prune = newest("prune").info.run_id
    assert main(["rerun", f"--run_id={prune}"]) == 0
    assert capsys.readouterr().out.count(": identical") == 4
    assert main(["rerun", f"--run_id={prune}", "--seed=5"]) == 1
    output = capsys.readouterr().out
    assert output.strip().endswith("different")
    assert "parameter seed was 0, is 5" in output
    assert "mask_values.csv" in output
    assert "tensors differ, by up to" in output
    assert main(["rerun", f"--run_id={newest('rerun').info.run_id}"]) == 2


def test_rerun_of_a_step_alone_starts_from_the_run_it_was_given() -> None:
    recover = newest("recover")
    before = len(runs(entry="unlearn"))
    assert main(["rerun", f"--run_id={recover.info.run_id}"]) == 0
    assert len(runs(entry="unlearn")) == before
    assert newest("recover").data.tags["rnp.unlearn_run_id"] == recover.data.tags["rnp.unlearn_run_id"]


def test_a_rerun_in_another_experiment_than_the_old_run_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recover = newest("recover").info
    words = ["rerun", f"--run_id={recover.run_id}"]
    assert main(words) == 0
    assert "give `mlflow run` the option" not in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", MlflowClient().create_experiment("chosen by mlflow run"))
    assert main(words) == 0
    assert f"give `mlflow run` the option --experiment-id {recover.experiment_id}" in capsys.readouterr().err


def test_rerun_of_a_run_with_a_parameter_that_is_no_more_says_which_code_to_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prune = newest("prune")
    record = lineage.settings_of(prune.info.run_id)
    record["settings"]["prune"]["suspicion"] = 0.5
    monkeypatch.setattr(lineage, "settings_of", lambda run_id: record)
    assert main(["rerun", f"--run_id={prune.info.run_id}"]) == 2
    message = capsys.readouterr().err
    assert "suspicion" in message
    assert prune.data.tags["mlflow.source.git.commit"] in message


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    """Four classes of 8 × 8 grey images, told apart by which quarter is bright; one odd path."""
    (x_train, y_train), (x_test, y_test) = outside_files.clean_images(200, 0), outside_files.clean_images(80, 1)
    file = tmp_path / "odd name, ü" / "set 1.npz"
    file.parent.mkdir()
    np.savez(file, x_train=x_train[..., :1], y_train=y_train, x_test=x_test[..., :1], y_test=y_test)
    return file


def test_changed_data_are_refused_by_a_step_and_told_by_a_rerun(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = {"dataset": "npz", "data_dir": npz, "train_size": "auto", "test_size": "auto"}
    assert call("prune", **own) == 0
    prune, recover = newest("prune").info.run_id, newest("recover").info.run_id
    arrays = dict(np.load(npz))
    arrays["x_train"][0, 0, 0] ^= 1
    np.savez(npz, **arrays)
    subject.load_data.cache_clear()  # a rerun reads what was read once in its process
    assert main(["prune", f"--recover_run_id={recover}"]) == 2
    assert "not those that run" in capsys.readouterr().err
    assert main(["rerun", f"--run_id={prune}"]) == 1
    assert "data was" in capsys.readouterr().out
