"""Which runs a call takes for its steps: those of a `main` that did not finish; none that were deleted."""

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from small import call
from stores import newest, runs

from rnp_mlflow.steps import recover
from rnp_mlflow.tracking import signals

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("store")]


def test_main_takes_what_one_that_did_not_finish_has_made_and_makes_all_again_otherwise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*values: object) -> None:
        raise signals.Stopped("stopped by SIGTERM")

    made_alone = {entry: len(runs(entry=entry)) for entry in ("attack", "unlearn")}
    with monkeypatch.context() as patch:
        patch.setattr(recover, "execute", stop)
        assert call("main") == 143
        unlearned = newest("unlearn").info.run_id
        assert call("main") == 143, "it takes two runs, and does not finish either"

    def made() -> list[int]:
        return [len(runs(entry=entry)) - count for entry, count in made_alone.items()]

    assert made() == [1, 1]
    capsys.readouterr()
    assert call("main") == 0
    assert f"unlearn: takes run {unlearned} of an earlier main, which did not finish" in capsys.readouterr().err
    assert made() == [1, 1]
    assert call("main") == 0
    assert made() == [2, 2]
    assert newest("main").data.metrics["acc"] == newest("prune").data.metrics["acc"]


def test_a_store_that_is_away_while_the_model_is_logged_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    log_model, tries = mlflow.pytorch.log_model, []

    def away_at_first(*given: object, **more: object) -> object:
        tries.append(1)
        if len(tries) == 1:
            raise mlflow.MlflowException("API request to http://store failed with exception: Connection refused")
        return log_model(*given, **more)

    monkeypatch.setattr(mlflow.pytorch, "log_model", away_at_first)
    before = len(runs(entry="prune"))
    assert call("prune") == 0
    assert len(tries) == 2
    assert len(runs(entry="prune")) == before + 1
    assert len(newest("prune").outputs.model_outputs) == 1


def test_an_attack_that_was_deleted_is_made_again_once(capsys: pytest.CaptureFixture[str]) -> None:
    MlflowClient().delete_run(newest("attack").info.run_id)
    assert call("prune", min_acc_ratio=0.5) == 0
    made = newest("attack").info.run_id
    assert newest("prune").data.tags["rnp.model_run_id"] == made
    assert "recover: reuses run" in capsys.readouterr().err
    assert call("prune", min_acc_ratio=0.6) == 0
    assert f"attack: reuses run {made}" in capsys.readouterr().err
