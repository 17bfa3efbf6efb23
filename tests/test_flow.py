"""The steps as MLflow runs: lineage, reuse, reruns, and what bad input leaves behind. Small settings."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import mlflow
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient
from PIL import Image
from safetensors.torch import load_file

from rnp_mlflow import config
from rnp_mlflow.cli import main
from rnp_mlflow.core.neurons import flatten
from rnp_mlflow.core.unlearn import UnlearningResult
from rnp_mlflow.steps import rerun, runtime, subject, unlearn
from rnp_mlflow.steps.clean import recorded
from rnp_mlflow.steps.plan import make_plan
from rnp_mlflow.tracking import figures, models

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SMALL = {
    "width": 4, "train_size": 600, "test_size": 100, "training_epochs": 1, "ratio": 0.2, "unlearning_epochs": 2,
    "recovering_epochs": 2, "pruning_step": 0.3, "pruning_stride": 1, "holdout_crops": 1, "refine": 0,
    "threads": 2, "device": "cpu", "proxy_steps": 3,
}  # fmt: skip


def call(entry: str, **values: object) -> int:
    known = SMALL if entry in ("prune", "main") else {}
    return main([entry, *(f"--{name}={value}" for name, value in (known | values).items())])


def runs(**tags: str) -> list[mlflow.entities.Run]:
    """Runs with these tags of ours, newest first."""
    rule = " and ".join(f"tags.`rnp.{name}` = '{value}'" for name, value in tags.items())
    return MlflowClient().search_runs(["0"], rule, order_by=["start_time DESC"])


def newest(entry: str) -> mlflow.entities.Run:
    return runs(entry=entry)[0]


def files(run: mlflow.entities.Run) -> Path:
    return Path(run.info.artifact_uri.removeprefix("file://"))


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store of its own for this file, with one finished small chain in it."""
    home, here = tmp_path_factory.mktemp("store"), Path.cwd()
    os.chdir(home)
    mlflow.set_tracking_uri(f"sqlite:///{home}/mlflow.db")
    assert call("prune") == 0
    yield home
    os.chdir(here)


@pytest.fixture(autouse=True)
def nothing_left_running(store: Path) -> Iterator[None]:
    yield
    left = MlflowClient().search_runs(["0"], "status = 'RUNNING'")
    assert not left
    assert mlflow.active_run() is None


def test_prune_on_an_empty_store_makes_the_chain_nested_in_it() -> None:
    prune = runs(entry="prune")[-1]
    children = runs(entry="attack")[-1], runs(entry="unlearn")[-1], runs(entry="recover")[-1]
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
        "prune": ["pruning_curve.csv", "pruning_curve.png", "pruning_curve.html", "summary.json", "pruned_neurons.csv",
                  "purified_model/model.safetensors", "purified_model/model.json"],
    }  # fmt: skip
    for entry, names in expected.items():
        folder = files(runs(entry=entry)[-1])
        assert all((folder / name).stat().st_size > 0 for name in names), entry
    spec = json.loads((files(newest("attack")) / "model/model.json").read_text())
    assert spec["architecture"] == "resnet18_narrow"
    assert spec["input_shape"] == [1, 16, 16]
    metrics = runs(entry="prune")[-1].data.metrics
    names = {"acc_before", "asr_before", "ra_before", "acc", "asr", "ra", "der"}
    assert names | {f"curve/{name}" for name in ("acc", "asr", "ra", "pruned")} <= metrics.keys()
    assert {"unlearn/loss", "unlearn/accuracy"} <= runs(entry="unlearn")[-1].data.metrics.keys()
    assert {"recover/loss", "recover/accuracy"} <= runs(entry="recover")[-1].data.metrics.keys()
    tags = runs(entry="prune")[-1].data.tags
    assert {"mlflow.source.git.commit", "rnp.dirty", "rnp.torch", "rnp.machine", "rnp.threads"} <= tags.keys()


def chosen_row(rows: list[dict[str, str]], norm: float, forgetting: float) -> int:
    """Rule of the docs: acc_ratio .95, min_acc_ratio .8, proxy_ratio .01, margin_ratio .975, benign_threshold .007."""
    acc, proxy = ([float(row[name]) for row in rows] for name in ("val_acc", "proxy_asr"))
    if proxy[0] == 0:
        return 0  # a proxy that turns nothing is no sign
    trade = [proxy[k] / proxy[0] + max(0, acc[0] - acc[k]) / acc[0] for k in range(len(rows))]
    if norm * min(trade) * (0.1 + forgetting) > 0.007:
        return 0
    allowed = [k for k in range(len(rows)) if min(acc[: k + 1]) >= 0.8 * acc[0]]
    k = next((k for k in allowed if proxy[k] <= 0.01 * proxy[0]), min(allowed, key=trade.__getitem__))
    limit = max(0.975 * acc[k], 0.8 * acc[0])
    return k and next((j - 1 for j in range(k, len(rows)) if acc[j] < limit), len(rows) - 1)


def test_curve_summary_and_purified_model_tell_the_same_story() -> None:
    run = runs(entry="prune")[-1]
    folder = files(run)
    rows = list(csv.DictReader((folder / "pruning_curve.csv").open()))
    assert list(rows[0]) == ["threshold", "pruned", "acc", "asr", "ra", "val_acc", "proxy_asr"]
    assert (rows[0]["threshold"], rows[0]["pruned"]) == ("", "0")
    assert [row["threshold"] for row in rows[1:]] == ["0.0", "0.3", "0.6", "0.9"]
    history = MlflowClient().get_metric_history(run.info.run_id, "curve/acc")
    assert [m.step for m in history] == [-1, 0, 300, 600, 900]
    assert [m.value for m in history] == [float(row["acc"]) for row in rows]

    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["points"]) == {"chosen", "fixed", "oracle"}
    chosen = summary["points"]["chosen"]
    assert chosen["pruned"] == int(
        rows[chosen_row(rows, summary["verdict"]["relative_norm"], summary["verdict"]["forgetting_rate"])]["pruned"]
    )
    unlearned = files(runs(entry="unlearn")[-1])
    assert Image.open(unlearned / "proxy.png").size[0] > 300
    verdict = json.loads((unlearned / "verdict.json").read_text())
    assert summary["verdict"]["target_share"] == verdict["target_share"]
    found = summary["verdict"]
    assert found["forgetting_rate"] == verdict["forgetting_rate"] == run.data.metrics["verdict/forgetting_rate"]
    score = found["relative_norm"] * found["removal_cost"] * (0.1 + found["forgetting_rate"])
    assert found["benign_score"] == score == run.data.metrics["verdict/benign_score"]
    assert found["backdoor_suspected"] is (score <= 0.007)
    assert summary["points"]["fixed"]["threshold"] == 0.7
    weights = load_file(folder / "purified_model/model.safetensors")
    zeros = sum(int((v == 0).sum()) for k, v in weights.items() if k.endswith("weight") and v.ndim == 1)
    assert zeros == chosen["pruned"]
    values = [
        float(row["value"]) for row in csv.DictReader((files(runs(entry="recover")[-1]) / "mask_values.csv").open())
    ]
    assert chosen["pruned"] == sum(
        v <= (chosen["threshold"] if chosen["threshold"] is not None else -1) for v in values
    )


def test_defend_in_python_gives_what_the_steps_gave() -> None:
    """Mask, curve and purified weights bit for bit, from the images that the unlearn run recorded."""
    from rnp_mlflow import EvalSet, defend

    attack, unlearn, recover, prune = (runs(entry=name)[-1] for name in ("attack", "unlearn", "recover", "prune"))
    suspect = subject.load(attack.info.run_id, make_plan("prune", {}), torch.device("cpu"))
    chosen = torch.tensor([int(line) for line in (files(unlearn) / "defence_index.txt").read_text().split()])
    clean, bad = suspect.data.train[chosen], suspect.triggered
    assert bad is not None
    assert suspect.data.test is not None
    test = EvalSet(suspect.data.test.images, suspect.data.test.labels, *vars(bad).values())
    machine = ("width", "train_size", "test_size", "training_epochs", "ratio", "threads", "device")
    settings = {name: value for name, value in SMALL.items() if name not in machine}
    torch.set_num_threads(2)
    feed = {"mean": suspect.spec.mean, "std": suspect.spec.std, "flip": suspect.data.flip}
    result = defend(suspect.model, clean.images, clean.labels, test=test, **feed, **settings)
    stored = csv.DictReader((files(recover) / "mask_values.csv").open())
    assert [float(row["value"]) for row in stored] == flatten(result.mask).tolist()
    curve = list(csv.DictReader((files(prune) / "pruning_curve.csv").open()))
    assert [(float(r["acc"]), float(r["asr"]), float(r["val_acc"])) for r in curve] == [
        (p.scores.acc, p.scores.asr, p.holdout_acc) for p in result.curve
    ]
    weights = load_file(files(prune) / "purified_model/model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in result.model.state_dict().items())


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
    assert call("prune", seed=11) == 0
    recover = newest("recover")
    (files(recover) / "mask_values.csv").unlink()
    assert call("prune", seed=11, recover_run_id=recover.info.run_id) == 2
    assert "mask_values.csv" in capsys.readouterr().err
    assert call("prune", seed=11) == 0
    assert newest("recover").info.run_id != recover.info.run_id


def test_steps_by_run_id_alone() -> None:
    recover = runs(entry="recover")[-1].info.run_id
    arguments = ("--pruning_by=number", "--pruning_step=20", "--pruning_max=60", "--pruning_stride=1",
                 "--pruning_number=7", "--select_by=number", "--bn_stats=keep")  # fmt: skip
    assert main(["prune", f"--recover_run_id={recover}", *arguments]) == 0
    folder = files(newest("prune"))
    rows = list(csv.DictReader((folder / "pruning_curve.csv").open()))
    assert [(row["number"], row["pruned"]) for row in rows] == [("", "0"), ("20", "20"), ("40", "40"), ("60", "60")]
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["selected"], summary["points"]["fixed"]["pruned"]) == ("fixed", 7)


def test_the_curve_of_a_part_of_the_test_images_and_a_summary_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    recover, told = runs(entry="recover")[-1].info.run_id, {}
    for count in (0, 7):
        sweep = ("--pruning_step=0.3", "--holdout_crops=1", "--select_by=number", f"--curve_eval_size={count}", "-v")
        assert main(["prune", f"--recover_run_id={recover}", *sweep]) == 0
        told[count] = json.loads((files(newest("prune")) / "summary.json").read_text()), capsys.readouterr().out
    (whole, all_said), (part, said) = told[0], told[7]
    assert part["before"] == whole["before"]
    assert part["points"]["fixed"] == whole["points"]["fixed"]
    assert "the curve: at most 7 of each" in said
    assert "the curve:" not in all_said
    rows = list(csv.DictReader((files(newest("prune")) / "pruning_curve.csv").open()))
    assert all(
        float(row[name]) * 7 == pytest.approx(round(float(row[name]) * 7)) for row in rows for name in ("acc", "asr")
    )


def test_epochs_are_tested_where_asked_for_and_the_mask_stays_the_same() -> None:
    """With a run that was made without: `eval_every` belongs to the step that is asked for."""
    unlearn = runs(entry="unlearn")[-1].info.run_id
    before = runs(entry="recover")[-1]
    assert (
        main(["recover", f"--unlearn_run_id={unlearn}", "--recovering_epochs=5", "--eval_every=2", "--threads=2"]) == 0
    )
    after = newest("recover")
    found = {
        name: MlflowClient().get_metric_history(after.info.run_id, f"recover/test_{name}") for name in ("acc", "asr")
    }
    assert {name: [m.step for m in history] for name, history in found.items()} == {"acc": [2, 4], "asr": [2, 4]}
    rows = list(csv.DictReader((files(after) / "history.csv").open()))
    assert [row["test_acc"] for row in rows] == ["", repr(found["acc"][0].value), "", repr(found["acc"][1].value), ""]
    assert all(0 <= float(rows[k]["test_ra"]) <= 1 for k in (1, 3))
    assert "recover/test_acc" not in before.data.metrics
    first = list(csv.DictReader((files(before) / "history.csv").open()))
    assert [row["loss"] for row in rows[:2]] == [row["loss"] for row in first]


def test_what_auto_precision_means_is_measured_once_for_the_same_model_and_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def measured(precision: str, *rest: object) -> str:
        asked.append(precision)
        return "bf16"

    class Run:
        said: ClassVar[list[object]] = []

        def tags(self, values: dict[str, object]) -> None:
            self.said.append(values)

    monkeypatch.setattr(subject, "resolve_precision", measured)
    monkeypatch.setattr(subject, "RESOLVED_PRECISION", {})
    attack, unlearn = (runs(entry=name)[-1].info.run_id for name in ("attack", "unlearn"))
    suspect = subject.load(attack, make_plan("prune", {}), torch.device("cpu"))
    clean = recorded(unlearn, suspect.data, torch.device("cpu"))
    for settings in (config.Unlearn(threads=2), config.Recover(threads=2), config.Prune(threads=1)):
        assert suspect.resolve_precision(Run(), settings, clean).precision == "bf16"  # type: ignore[arg-type]
    assert asked == ["auto", "auto"], "once for each number of threads"
    assert Run.said == 3 * [{"precision": "bf16"}]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's memory, Linux's figures of it")
def test_memory_is_kept_while_a_step_works_and_given_back_after_it_or_at_once_where_it_is_spared() -> None:
    """30 blocks of 16 MiB, the last still in use: it would hold the others, were they only trimmed from the end."""
    asked = (
        "import torch; from rnp_mlflow.config import Prune; from rnp_mlflow.steps import runtime\n"
        "def used(): return int(open('/proc/self/statm').read().split()[1]) * 4 // 1024\n"
        "def left():\n"
        "    blocks = [torch.ones(4 << 20) for _ in range(30)]; last = blocks.pop(); del blocks\n"
        "    return used() - before\n"
        "runtime.prepare(Prune()); before = used()\n"
        "with runtime.low_memory_malloc(): spared = left()\n"
        "with runtime.progress('epochs', 1) as advance: held = left(); advance(); advanced = used() - before\n"
        "kept = left(); runtime.release_memory(); print(spared, held, advanced, kept, used() - before)"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True, cwd=ROOT)
    spared, held, advanced, kept, left = map(int, done.stdout.split())
    assert spared < 100
    assert held > 400
    assert advanced < 100
    assert kept > 400
    assert left < 100


def test_the_masks_picture_shows_beside_each_layers_name_where_its_values_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, savefig, heights = [], Figure.savefig, []
    monkeypatch.setattr(Figure, "savefig", lambda own, *to, **how: (drawn.append(own), savefig(own, *to, **how))[1])
    for layers in (1, 121):
        mask = {f"layer{k}": torch.tensor(3 * [0.9 * k / layers] + [1.0]) for k in range(layers)}
        figures.mask_histograms(tmp_path / "mask.png", mask)
        heights.append(Image.open(tmp_path / "mask.png").height)
        ax = drawn[-1].axes[0]
        counts, (left, right, bottom, top) = ax.images[0].get_array().filled(0), ax.images[0].get_extent()
        assert [label.get_text() for label in ax.get_yticklabels()] == list(mask)
        for tick, (name, values) in zip(ax.get_yticks(), mask.items(), strict=True):
            row = counts[int((tick - top) / (bottom - top) * layers)]
            lies = left + (right - left) * (np.nonzero(row)[0] + 0.5) / len(row)
            assert row[row > 0].tolist() == [3, 1], name
            assert lies == pytest.approx([float(values[0]), 1.0], abs=1 / len(row)), name
    assert 120 * 18 < heights[1] - heights[0] < 120 * 30, "a row has room for its name, whatever the number of layers"


def test_a_step_on_the_cpu_does_without_triton() -> None:
    asked = (
        "import torch; from rnp_mlflow.config import Prune; from rnp_mlflow.steps import runtime\n"
        "runtime.prepare(Prune(device='cpu'))\n"
        "ones = torch.ones(2, 2); print(torch.export.export(torch.nn.Linear(2, 2), (ones,)).module()(ones).shape)\n"
        "import sys; print([name for name in sys.modules if name.startswith('triton.')])"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True, cwd=ROOT)
    assert (done.stdout.splitlines(), done.stderr) == (["torch.Size([2, 2])", "[]"], "")


def test_memory_is_spared_while_a_model_unlearns(monkeypatch: pytest.MonkeyPatch) -> None:
    told, unlearn_model = [], unlearn.unlearn_model

    @contextmanager
    def sparing() -> Iterator[None]:
        told.append("spared")
        yield
        told.append("kept")

    monkeypatch.setattr(runtime, "low_memory_malloc", sparing)

    def remembered(*given: Any, **named: Any) -> UnlearningResult:
        told.append("unlearn")
        return unlearn_model(*given, **named)

    monkeypatch.setattr(unlearn, "unlearn_model", remembered)
    attack = runs(entry="attack")[-1].info.run_id
    assert call("unlearn", model_run_id=attack, ratio=0.2, unlearning_epochs=1, proxy_steps=0, threads=2) == 0
    assert told == ["spared", "unlearn", "kept"]


def test_the_suspect_becomes_the_purified_model_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, logged, load, log = [], [], subject.load, models.log
    monkeypatch.setattr(subject, "load", lambda *given: (loaded.append(load(*given)), loaded[-1])[1])
    monkeypatch.setattr(models, "log", lambda model, *given: (logged.append(model), log(model, *given))[1])
    recover = runs(entry="recover")[-1].info.run_id
    number = {"pruning_by": "number", "pruning_max": 0.2, "pruning_step": 0.1, "pruning_number": 0.1}
    assert call("prune", recover_run_id=recover, select_by="number", **number) == 0
    assert newest("prune").data.metrics["pruned"] > 0
    assert logged == [loaded[-1].model]


def test_a_mask_file_takes_the_place_of_recovery() -> None:
    recover = runs(entry="recover")[-1]
    model = recover.data.tags["rnp.model_run_id"]
    for name in ("mask_values.csv", "mask_values.txt"):
        mask = files(recover) / name
        assert (
            main(["prune", f"--mask_file={mask}", f"--model_run_id={model}", "--ratio=0.2", "--pruning_step=0.3"]) == 0
        )
        assert newest("prune").data.tags["rnp.model_run_id"] == model
        assert "rnp.recover_run_id" not in newest("prune").data.tags


def test_a_clean_model_has_no_asr_and_the_chain_still_works() -> None:
    assert call("prune", attack="none") == 0
    run = newest("prune")
    assert "asr" not in run.data.metrics
    assert "acc" in run.data.metrics
    summary = json.loads((files(run) / "summary.json").read_text())
    assert summary["points"]["chosen"]["asr"] is None
    assert "oracle" not in summary["points"]


def test_main_is_one_parent_with_four_children_and_reruns_identically(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("main", attack="blended") == 0
    parent = newest("main")
    children = MlflowClient().search_runs(["0"], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert sorted(c.data.tags["rnp.entry"] for c in children) == ["attack", "prune", "recover", "unlearn"]
    assert {"acc_before", "asr_before", "acc", "asr", "ra", "der"} <= parent.data.metrics.keys()
    assert (files(parent) / "pruning_curve.png").is_file()
    capsys.readouterr()
    assert main(["rerun", f"--run_id={parent.info.run_id}"]) == 0
    told = capsys.readouterr().out.strip().splitlines()
    assert told[-1] == "identical"
    assert sum(line.endswith(": identical") for line in told) == 5
    again = newest("rerun")
    assert again.data.tags["rnp.rerun_of"] == parent.info.run_id
    assert again.data.tags["rnp.identical"] == "True"
    new = MlflowClient().get_run(again.data.tags["rnp.repeated_run_id"])
    assert new.data.tags["rnp.threads"] == parent.data.tags["rnp.threads"] == "2"
    old_curve = (files(parent) / "pruning_curve.csv").read_bytes()
    assert (files(new) / "pruning_curve.csv").read_bytes() == old_curve


def test_rerun_of_prune_remakes_what_auto_made_and_another_seed_differs(capsys: pytest.CaptureFixture[str]) -> None:
    prune = runs(entry="prune")[-1].info.run_id
    assert main(["rerun", f"--run_id={prune}"]) == 0
    assert capsys.readouterr().out.count(": identical") == 4
    assert main(["rerun", f"--run_id={prune}", "--seed=5"]) == 1
    told = capsys.readouterr().out
    assert told.strip().endswith("different")
    assert "parameter seed was 0, is 5" in told
    assert "mask_values.csv" in told
    assert "tensors differ, by up to" in told
    assert main(["rerun", f"--run_id={newest('rerun').info.run_id}"]) == 2


def test_rerun_of_a_run_with_a_parameter_that_is_no_more_says_which_code_to_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prune = runs(entry="prune")[-1]
    record = rerun.lineage.settings_of(prune.info.run_id)
    record["settings"]["prune"]["suspicion"] = 0.5
    monkeypatch.setattr(rerun.lineage, "settings_of", lambda run_id: record)
    assert main(["rerun", f"--run_id={prune.info.run_id}"]) == 2
    said = capsys.readouterr().err
    assert "suspicion" in said
    assert prune.data.tags["mlflow.source.git.commit"] in said


def test_without_a_proxy_there_is_no_verdict_and_accuracy_decides(capsys: pytest.CaptureFixture[str]) -> None:
    known = runs(entry="attack")[-1].info.run_id
    assert call("prune", model_run_id=known, proxy_steps=0, clean_threshold=0.99) == 0
    run = newest("prune")
    assert "rnp.backdoor_suspected" not in run.data.tags
    assert not {f"verdict/{name}" for name in ("relative_norm", "removal_cost", "forgetting_rate", "benign_score")} & (
        run.data.metrics.keys()
    )
    assert "verdict: none without a proxy" in capsys.readouterr().out


def test_rerun_of_a_step_alone_starts_from_the_run_it_was_given() -> None:
    recover = runs(entry="recover")[-1]
    before = len(runs(entry="unlearn"))
    assert main(["rerun", f"--run_id={recover.info.run_id}"]) == 0
    assert len(runs(entry="unlearn")) == before
    assert newest("recover").data.tags["rnp.unlearn_run_id"] == recover.data.tags["rnp.unlearn_run_id"]


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    """Four classes of 8 × 8 grey images, told apart by which quarter is bright; one odd path."""
    rng = np.random.default_rng(0)
    parts = {}
    for part, count in (("train", 200), ("test", 80)):
        labels = np.arange(count) % 4
        images = rng.integers(0, 90, (count, 8, 8, 1))
        for k, label in enumerate(labels):
            images[k, label // 2 * 4 :, label % 2 * 4 :] += 120
        parts |= {f"x_{part}": images.astype(np.uint8), f"y_{part}": labels}
    file = tmp_path / "odd name, ü" / "set 1.npz"
    file.parent.mkdir()
    np.savez(file, **parts)
    return file


def test_changed_data_are_refused_by_a_step_and_told_by_a_rerun(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = {"dataset": "npz", "data_dir": npz, "train_size": "auto", "test_size": "auto"}
    assert call("prune", **own) == 0
    prune, recover = newest("prune").info.run_id, newest("recover").info.run_id
    arrays = dict(np.load(npz))
    arrays["x_train"][0, 0, 0] ^= 1
    np.savez(npz, **arrays)
    _forget_loaded_data()
    assert main(["prune", f"--recover_run_id={recover}"]) == 2
    assert "not those that run" in capsys.readouterr().err
    assert main(["rerun", f"--run_id={prune}"]) == 1
    assert "data was" in capsys.readouterr().out


def _forget_loaded_data() -> None:
    from rnp_mlflow.steps import subject

    subject.load_data.cache_clear()


def bad_inputs(tmp: Path) -> dict[str, tuple[list[str], str]]:
    """name → (arguments, a word the one line must hold)."""
    chain = [f"--{name}={value}" for name, value in SMALL.items()]
    indexed = [word for word in chain if not word.startswith("--ratio=")]
    recover, attack = runs(entry="recover")[-1], runs(entry="attack")[-1]
    mask = (files(recover) / "mask_values.csv").read_text().splitlines()

    def write(name: str, lines: list[str]) -> Path:
        (tmp / name).write_text("\n".join(lines) + "\n")
        return tmp / name

    def masked(name: str, lines: list[str]) -> list[str]:
        return ["prune", f"--model_run_id={attack.info.run_id}", f"--mask_file={write(name, lines)}", "--ratio=0.2"]

    (tmp / "folder/train/a").mkdir(parents=True)
    (tmp / "folder/test/a").mkdir(parents=True)
    first = mask[1].rsplit(",", 1)[0]
    return {
        "dataset": (["attack", "--dataset=cifar11"], "cifar11"),
        "model": (["prune", "--model=resnet19"], "resnet19"),
        "no norm": (["prune", "--model=squeezenet1_1", "--dataset=npz", f"--data_dir={tmp}/rgb.npz"], "BatchNorm"),
        "attack": (["prune", "--attack=badnet"], "badnet"),
        "target": (["attack", "--target=10"], "target=10"),
        "no data_dir": (["attack", "--dataset=folder"], "data_dir"),
        "missing folder": (["attack", "--dataset=folder", f"--data_dir={tmp}/none"], "does not exist"),
        "empty class": (["attack", "--dataset=folder", f"--data_dir={tmp}/folder"], "'a' is empty"),
        "ratio 0": ([*["prune", *chain], "--ratio=0"], "ratio=0"),
        "ratio over 1": ([*["prune", *chain], "--ratio=1.01"], "ratio=1.01"),
        "ratio too small": ([*["prune", *chain], "--ratio=0.02"], "fewer than two"),
        "index range": (["prune", *indexed, f"--index={write('i1', ['1', '600'])}"], "0 to 599"),
        "index words": (["prune", *indexed, f"--index={write('i2', ['1', 'two'])}"], "integer"),
        "index missing": (["prune", *indexed, f"--index={tmp}/i3"], "i3"),
        "mask missing": (["prune", f"--mask_file={tmp}/m0"], "m0"),
        "mask foreign": (masked("m1", [*mask[:-1], "other.bn,0,1.0"]), "other.bn"),
        "mask short": (masked("m2", mask[:-1]), "lacks 1"),
        "mask repeated": (masked("m3", [*mask, mask[1]]), "twice"),
        "mask NaN": (masked("m4", [mask[0], f"{first},nan", *mask[2:]]), "nan"),
        "mask range": (masked("m5", [mask[0], f"{first},1.2", *mask[2:]]), "1.2"),
        "mask words": (masked("m6", ["hello", "world"]), "not a mask row"),
        "both": (["prune", f"--mask_file={tmp}/m1", f"--recover_run_id={recover.info.run_id}"], "not both"),
        "unknown run": (["prune", f"--recover_run_id={'0' * 32}"], "no run"),
        "malformed run": (["prune", "--recover_run_id=../../etc"], "no run"),
        "other kind": (["prune", f"--recover_run_id={attack.info.run_id}"], "kind 'attack'"),
        "other settings": (["prune", f"--recover_run_id={recover.info.run_id}", "--attack=blended"], "badnets"),
        "cuda": ([*["prune", *chain], "--device=cuda:7"], "cuda:7"),
        "device": ([*["prune", *chain], "--device=gpu"], "gpu"),
        "rerun": (["rerun", f"--run_id={'0' * 32}"], "no run"),
    }


def test_bad_input_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    colour = np.zeros((40, 32, 32, 3), np.uint8)
    y = np.arange(40) % 4
    np.savez(tmp_path / "rgb.npz", x_train=colour, y_train=y, x_test=colour, y_test=y)
    for name, (arguments, word) in bad_inputs(tmp_path).items():
        capsys.readouterr()
        assert main(arguments) == 2, name
        errors = [line for line in capsys.readouterr().err.strip().splitlines() if not line.startswith("20")]
        last = errors[-1]
        assert last.startswith("error: "), name
        assert word in last, (name, last)
        assert not any("Traceback" in line for line in errors), name


def test_an_unfinished_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    client = MlflowClient()
    run = client.create_run("0", tags={"rnp.entry": "recover"})
    try:
        assert main(["prune", f"--recover_run_id={run.info.run_id}"]) == 2
        assert "RUNNING, not FINISHED" in capsys.readouterr().err
    finally:
        client.set_terminated(run.info.run_id, "FAILED")
    foreign = client.create_run("0")
    client.set_terminated(foreign.info.run_id)
    assert main(["prune", f"--recover_run_id={foreign.info.run_id}"]) == 2
    assert "not a run of this project" in capsys.readouterr().err


def test_hostile_npz_is_refused_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "made"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (made,))

    np.savez(tmp_path / "evil.npz", x_train=np.array([Evil()], dtype=object), y_train=np.array([0]))
    assert main(["attack", "--dataset=npz", f"--data_dir={tmp_path}/evil.npz"]) == 2
    assert "pickle" in capsys.readouterr().err
    assert not made.exists()


def test_sigterm_leaves_runs_killed_and_no_half_result(store: Path) -> None:
    arguments = [sys.executable, "-m", "rnp_mlflow", "attack", "--training_epochs=500", "--seed=77"]
    env = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(arguments, cwd=store, env=env, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "attack: run" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert process.stderr.read().strip().splitlines()[-1] == "error: stopped by SIGTERM"
    killed = newest("attack")
    assert killed.info.status == "KILLED"
    assert not (files(killed) / "model").exists()


def test_a_defect_is_one_line_and_its_traceback_an_artifact(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rnp_mlflow.steps import attack

    def broken(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr(attack.store, "save", broken)
    assert main(["attack", *(f"--{k}={SMALL[k]}" for k in ("width", "train_size", "training_epochs"))]) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1] == "error: No space left on device: model.safetensors"
    failed = newest("attack")
    assert failed.info.status == "FAILED"
    assert "Traceback" in (files(failed) / "error.txt").read_text()
    assert not (files(failed) / "model").exists()
    shutil.rmtree(files(failed))
