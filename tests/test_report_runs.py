"""Entry point `report`: many runs in one table, against numpy."""

import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.store.tracking.dbmodels import models as rows
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking import MlflowClient
from stores import artifacts, enter, newest

from rnp_mlflow.cli import main
from rnp_mlflow.report import comparison
from rnp_mlflow.report.overlay import RunCurve, draw_overlay
from rnp_mlflow.tracking import ui

FIGURES = ("acc_before", "acc", "asr_before", "asr", "ra", "der")


def table(count: int = 60) -> pd.DataFrame:
    """Runs of two attacks and one that occurs once; every fifth has no ASR."""
    draws = np.random.default_rng(0)
    found = pd.DataFrame({name: draws.random(count) for name in FIGURES})
    found["attack"] = ["badnets" if k % 3 else "sig" for k in range(count)]
    found.loc[0, "attack"] = "alone"
    found.loc[::5, ["asr_before", "asr", "ra", "der"]] = np.nan
    return found


def test_mean_and_spread_are_numpys_over_the_runs_whose_figure_is_known() -> None:
    runs = table()
    summary = comparison.summarise(runs, ["attack"])
    assert list(summary["attack"]) == ["alone", "badnets", "sig"]
    for _, line in summary.iterrows():
        some = runs[runs["attack"] == line["attack"]]
        assert line["n"] == len(some)
        known = {name: some[name].to_numpy() for name in FIGURES}
        known["acc_lost"] = known["acc_before"] - known["acc"]
        for name, values in known.items():
            values = values[~np.isnan(values)]
            mean = values.mean() if len(values) else np.nan
            std = values.std(ddof=1) if len(values) > 1 else np.nan
            assert np.isclose(line[f"{name}_mean"], mean, equal_nan=True)
            assert np.isclose(line[f"{name}_std"], std, equal_nan=True)


def test_a_table_is_shown_with_dashes_for_what_is_unknown_and_without_a_spread_of_one() -> None:
    runs = pd.DataFrame(
        {"attack": ["a_1", "a_1", "b|%"], "acc_before": [0.9, 0.8, 0.7], "acc": [0.8, 0.8, 0.7], "asr_before": np.nan,
         "asr": np.nan, "ra": np.nan, "der": [1.0, 0.5, 0.25]}
    )  # fmt: skip
    shown = comparison.cells(comparison.summarise(runs, ["attack"]), ["attack"], ["acc_lost", "asr", "der"])
    assert comparison.markdown(shown) == [
        "| attack | n | ACC lost      | ASR | DER           |",
        "|--------|---|---------------|-----|---------------|",
        "| a_1    | 2 | 0.050 ± 0.071 | –   | 0.750 ± 0.354 |",
        "| b\\|%   | 1 | 0.000         | –   | 0.250         |",
    ]
    paper = comparison.latex(shown)
    assert r"a\_1 & 2 & 0.050 $\pm$ 0.071 & -- & 0.750 $\pm$ 0.354 \\" in paper
    assert r"b|\% & 1" in paper


def test_the_page_escapes_names(tmp_path: Path) -> None:
    shown = pd.DataFrame({"attack": ["<script>alert(1)</script>"], "n": ["1"]})
    page = comparison.Comparison("1 < 2", ["a & b"], [("words", "http://x/?a=1&b=2")], shown)
    comparison.write(tmp_path, shown, page, None)
    html = (tmp_path / "comparison.html").read_text()
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "1 &lt; 2" in html
    assert 'href="http://x/?a=1&amp;b=2"' in html


def test_curves_are_drawn_by_group_with_and_without_asr(tmp_path: Path) -> None:
    curve = RunCurve([0, 5, 300], {"acc": [0.9, 0.88, 0.2], "asr": [1.0, 0.1, 0.0]}, 5)
    blind = RunCurve([0, 5, 300], {"acc": [0.9, 0.88, 0.2]}, 0)
    draw_overlay(
        tmp_path / "curves.png", {"a": [curve, curve], "b $x$": [blind], "c": [curve], "d": [blind]}, "caption"
    )
    drawn = (tmp_path / "curves.svg").read_text()
    assert drawn.count("neurons pruned") == 4
    assert "b $x$" in drawn
    assert (tmp_path / "curves.png").stat().st_size > 5000


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_store_with_one_chain_gives_a_run_with_table_page_and_curves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pruned = newest("prune")
    assert main(["report", f"--output={tmp_path / 'out'}", "--group_by=attack,seed", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    run = newest("report")
    assert (content["run_id"], run.info.status) == (run.info.run_id, "FINISHED")
    (group,) = content["groups"]
    assert (group["attack"], group["seed"], group["n"]) == ("badnets", pruned.data.params["seed"], 1)
    assert group["der_mean"] == pytest.approx(pruned.data.metrics["der"])
    names = {f"comparison.{kind}" for kind in ("csv", "md", "tex", "html")} | {"curves.png", "curves.svg"}
    for folder in (artifacts(run), tmp_path / "out"):
        assert names <= {file.name for file in folder.iterdir()}
        (line,) = csv.DictReader((folder / "comparison.csv").open())
        assert float(line["acc_mean"]) == pytest.approx(pruned.data.metrics["acc"])
    assert "data:image/svg+xml;base64," in (tmp_path / "out/comparison.html").read_text()
    assert main(["report", "--quiet"]) == 0, "its own runs are not counted"
    assert "| 1 |" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--experiment=nowhere", "experiment=nowhere: there is none of this name or ID"),
        ("--filter=metrics.acc >", "filter: MLflow does not take it"),
        ("--filter=metrics.acc > 2", "no finished prune run"),
        ("--group_by=attack,colour", "group_by=attack,colour: 'colour' is unknown"),
        ("--group_by=attack,attack", "a name is given twice"),
        ("--output=mlflow.db/x", "output="),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_leaves_no_run(
    given: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = newest("prune").info.experiment_id
    count = len(MlflowClient().search_runs([before]))
    assert main(["report", given]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert len(MlflowClient().search_runs([before])) == count


def fill(experiment_id: str, count: int) -> list[dict[str, Any]]:
    """Store so many finished prune runs of four attacks and two models, written into the database's tables."""
    draws = np.random.default_rng(1)
    attacks, models = ("badnets", "blended", "sig", "wanet"), ("preactresnet18", "vgg19_bn")
    made: list[dict[str, Any]] = []
    store = SqlAlchemyStore("sqlite:///mlflow.db", "mlruns")
    with store.ManagedSessionMaker(read_only=False) as session:
        for k in range(count):
            figures = {name: float(draws.random()) for name in FIGURES}
            words = {"attack": attacks[k % 4], "model": models[k // 4 % 2], "entry": "prune", "inputs": str(k)}
            made.append(words | figures)
            uuid = f"{k:032x}"
            session.add(
                rows.SqlRun(
                    run_uuid=uuid, name=f"r{k}", status="FINISHED", start_time=k, end_time=k + 1, user_id="u",
                    source_type="LOCAL", source_name="s", entry_point_name="prune", source_version="",
                    lifecycle_stage="active", artifact_uri=f"mlruns/{uuid}/artifacts",
                    experiment_id=int(experiment_id),
                )
            )  # fmt: skip
            session.flush()
            for name, word in words.items():
                session.add(rows.SqlTag(key=f"rnp.{name}", value=word, run_uuid=uuid))
            for name, value in figures.items():
                session.add(
                    rows.SqlLatestMetric(key=name, value=value, timestamp=0, step=0, is_nan=False, run_uuid=uuid)
                )
            for seed in range(30):
                session.add(rows.SqlParam(key=f"p{seed}", value="0", run_uuid=uuid))
    return made


@pytest.mark.slow
def test_two_thousand_runs_take_less_than_twenty_seconds_and_have_numpys_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enter(tmp_path, monkeypatch)
    experiment = MlflowClient().create_experiment("many")
    made = fill(experiment, 2000)
    capsys.readouterr()
    start = time.process_time()  # of this process: other tests run beside it
    assert main(["report", "--experiment=many", "--group_by=attack,model", "--json"]) == 0
    assert time.process_time() - start < 20
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert len(groups) == 8
    for group in groups:
        some = [run for run in made if (run["attack"], run["model"]) == (group["attack"], group["model"])]
        assert group["n"] == len(some) == 250
        for name in FIGURES:
            values = np.array([run[name] for run in some])
            assert group[f"{name}_mean"] == pytest.approx(values.mean())
            assert group[f"{name}_std"] == pytest.approx(values.std(ddof=1))


def test_links_name_the_runs() -> None:
    found = ui.compare_url("http://h", "7", ["a", "b"])
    assert found == "http://h/#/compare-runs?runs=%5B%22a%22%2C%20%22b%22%5D&experiments=%5B%227%22%5D"
