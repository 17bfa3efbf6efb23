"""What is printed, drawn and tagged is what was measured."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import mlflow
import outside_files as files
import pytest
import torch
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient
from pictured import Wrong, columns, shades, texts
from safetensors.torch import load_file
from stores import artifacts, enter, newest
from summaries import summary
from torch import Tensor, nn

import rnp_mlflow
from rnp_mlflow.cli import main
from rnp_mlflow.config import Prune, Recover, Unlearn
from rnp_mlflow.core.curve import CurvePoint
from rnp_mlflow.core.evaluate import Scores, predict
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.params import SelectBy, SweepParams
from rnp_mlflow.core.proxy import ProxyTrigger
from rnp_mlflow.core.pruning_curve import PruningCurve
from rnp_mlflow.core.selectors import SELECTORS, best_der_point, select_point
from rnp_mlflow.core.unlearn import UnlearningResult
from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.data.triggered import Triggered
from rnp_mlflow.models.store import load
from rnp_mlflow.pipeline import holdout_views
from rnp_mlflow.steps import attack, notes, printed, prune, recover, registering, stored, subject, unlearn
from rnp_mlflow.steps.clean import CleanImages, recorded
from rnp_mlflow.steps.plan import make_plan
from rnp_mlflow.tracking import models, runs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
QUICK = ("--unlearning_epochs=1", "--recovering_epochs=1", "--holdout_crops=0", "--refine=0", "--threads=1",
         "--proxy_steps=2", "--pruning_by=number")  # fmt: skip


def der(before: Scores, after: Scores) -> float:
    """BackdoorBench's formula, again."""
    assert before.asr is not None
    assert after.asr is not None
    return (max(0.0, before.asr - after.asr) + 1.0 - max(0.0, before.acc - after.acc)) / 2


def points(*rows: tuple[int, float, float]) -> list[CurvePoint]:
    """(neurons, ACC, ASR) → points; the first is the unpruned model; on held-out images accuracy is ACC."""
    return [CurvePoint(n or None, n, Scores(acc, asr, 0.0), acc) for n, acc, asr in rows]


# The case: the sweep by 20 neurons leaves 30 out, which is better than all of its points.
SWEEP = points((0, 0.98, 1.0), (20, 0.98, 0.4), (40, 0.97, 0.01), (60, 0.90, 0.0))
FIXED = points((30, 0.98, 0.01))[0]
WAYS: tuple[SelectBy, ...] = ("proxy", "clean_acc", "number", "asr")


def test_the_oracle_is_the_best_of_every_point_that_was_looked_at() -> None:
    for way in WAYS:
        params = SweepParams(select_by=way, pruning_by="number", pruning_number=30)
        found = prune.summary_points(params, PruningCurve(SWEEP, FIXED))
        assert found["oracle"].num_pruned == 30
        assert found["oracle"].der == max(der(SWEEP[0].scores, p.scores) for p in [*SWEEP, FIXED])
        assert found["fixed"] == found["oracle"]
    assert select_point(PruningCurve(SWEEP, FIXED), SweepParams(select_by="asr")) == FIXED
    worse = replace(FIXED, scores=Scores(0.97, 0.02, 0.0))
    assert select_point(PruningCurve(SWEEP, worse), SweepParams(select_by="asr")) == SWEEP[2]


def test_on_a_part_of_the_test_images_the_oracle_is_still_never_below_the_chosen_or_the_fixed_point() -> None:
    """Every assignment of figures on all test images to the points, in turn; those of the part stay."""
    sweep = [
        *SWEEP[:3],
        CurvePoint(60, 60, Scores(0.98, 0.0, 0.0), 0.90),
    ]  # the part's best; too far for held-out accuracy
    figures_on_all = [Scores(0.98, 0.9), Scores(0.98, 0.5), Scores(0.90, 0.02), Scores(0.95, 0.1), Scores(0.7, 0.0)]
    best = set()
    for order in itertools.permutations(figures_on_all):
        on_all = dict(zip((0, 20, 40, 60, 30), order, strict=True))

        def full(point: CurvePoint, known: dict[int, Scores] = on_all) -> CurvePoint:
            return replace(point, scores=known[point.num_pruned])

        drawn = PruningCurve(sweep, FIXED, on_full_test_set=full)
        for way in WAYS:
            params = SweepParams(select_by=way, curve_eval_size=50)
            rows = prune.summary_points(params, drawn)
            ratings = [rows[name].der for name in ("chosen", "fixed", "oracle")]
            assert ratings[2] == max(0.5, *(rating for rating in ratings if rating is not None))
            assert ratings[2] == der(on_all[0], on_all[rows["oracle"].num_pruned])
            selected = {"number": "fixed", "asr": "oracle"}.get(way, "chosen")
            assert SELECTORS[way].row == selected
            assert select_point(drawn, params).num_pruned == rows[selected].num_pruned
            best.add(rows["oracle"].num_pruned)
    assert best == {0, 30, 40, 60}, "20 is neither chosen (40) nor fixed (30) nor the part's best (60)"


def test_without_triggered_images_there_is_no_oracle() -> None:
    rows = [replace(point, scores=Scores(point.scores.acc)) for point in SWEEP]
    without = PruningCurve(rows, rows[1])
    assert set(prune.summary_points(SweepParams(), without)) == {"chosen", "fixed"}
    assert best_der_point(without, SweepParams()) is None


@pytest.mark.parametrize("name", ["pruning_number", "acc_ratio", "proxy_ratio", "min_acc_ratio", "margin_ratio"])
def test_a_parameter_that_was_given_and_does_not_decide_is_told_of_in_one_line(name: str) -> None:
    for way in ("proxy", "clean_acc", "number", "asr"):
        settings = Prune(**{"select_by": way, name: 0.5})
        lines = prune.advice({name, "pruning_by", "seed"}, settings)
        decides = {"pruning_number": "number", "acc_ratio": "clean_acc"}.get(name, "proxy")
        assert len(lines) == (way != decides)
        assert prune.advice(frozenset(), settings) == []
        for line in lines:
            assert "\n" not in line
            assert f"{name}=0.5" in line
            assert f"select_by={way} prunes" in line
            assert f"add select_by={decides}" in line


def test_a_mask_file_has_no_proxy_and_the_advice_says_what_decides() -> None:
    (line,) = prune.advice(frozenset(), Prune(mask_file="mask.csv"))
    assert line == "  warning: with mask_file there is no proxy and no verdict, so acc_ratio decides where to prune"
    for way in ("clean_acc", "number"):
        assert prune.advice(frozenset(), Prune.model_validate({"mask_file": "mask.csv", "select_by": way})) == []


def test_the_plan_of_a_call_brings_the_advice_to_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Given:
        given = frozenset({"pruning_by", "pruning_number"})

        def __getitem__(self, step: str) -> Prune:
            return Prune.model_validate({"pruning_by": "number", "pruning_number": 12})

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subject, "load", stop)
    with pytest.raises(KeyboardInterrupt):
        prune.execute(None, Given(), {"attack": ""}, torch.device("cpu"))  # type: ignore[arg-type]
    (line,) = capsys.readouterr().err.splitlines()
    assert "pruning_number=12" in line
    assert "add select_by=number" in line


def test_the_docs_prune_the_number_that_they_name() -> None:
    lines = (ROOT / "docs" / "getting-started.md").read_text().replace("\\\n", "").splitlines()
    calls = [line for line in lines if "-P pruning_number" in line]
    assert calls
    assert all("-P select_by=number" in line for line in calls)


def test_held_out_accuracy_says_how_its_images_were_looked_at() -> None:
    def told(**views: int) -> str:
        return next(line for line in printed.footnotes(summary(views=views)) if "held-out ACC:" in line)

    assert told() == "  held-out ACC: 100 of 500 clean images, each 5 times, cropped at random"
    assert told(mirrored=1).endswith("100 of 500 clean images, each 5 times, cropped and mirrored at random")
    assert told(mirrored=1, cropped=0).endswith("each 5 times, mirrored at random")
    assert told(cropped=0).endswith("100 of 500 clean images, as they are")
    assert told(each=0).endswith("100 of 500 clean images, as they are")
    assert told(images=40, each=1).endswith("40 of the 100 of 500 clean images, each once, cropped at random")


@pytest.mark.parametrize(("views", "count", "side", "flip"), [(0, 12, 8, True), (5, 12, 8, False), (5, 1200, 8, True),
                                                              (2, 12, 4, False)])  # fmt: skip
def test_the_words_on_held_out_images_are_those_of_what_is_looked_at(
    views: int, count: int, side: int, flip: bool
) -> None:
    pictures = torch.arange(count).view(-1, 1, 1, 1).expand(-1, 1, side, side).to(torch.uint8)
    held = LabeledImages(pictures, torch.arange(count))
    feed = Preprocess.for_image_size(side, (0.0,), (1.0,), flip)
    clean = CleanImages(torch.arange(2 * count), torch.arange(count), ImageSet(*held), ImageSet(*held))
    data = SimpleNamespace(test=None)
    of = subject.Suspect("", Wrong(), None, data, "", "", None, feed)  # type: ignore[arg-type]
    said = prune.holdout_views(SweepParams(holdout_crops=views), of, clean)
    _, labels = holdout_views(held, feed, SweepParams(holdout_crops=views))
    assert said.images == len(labels.unique())
    assert said.each in (views, len(labels) // len(labels.unique()))
    assert (said.each == 0) is (views == 0)
    assert (said.cropped, said.mirrored) == (int(side >= 8), int(flip))


def test_accuracy_says_on_which_images_and_the_curve_on_how_many() -> None:
    none = {"test": 0, "triggered": 0}
    for changes, table in (
        ({}, "  ACC: 400 test images; ASR, RA: 300 triggered ones"),
        ({"curve_eval_size": 350}, "; the curve: at most 350 of each"),
        ({"curve_eval_size": 0}, "; ASR, RA: 300 triggered ones"),
        ({"images": none}, "  ACC: the same 100 as they are; there is no test part"),
        ({"images": none, "curve_eval_size": 30}, "as they are; there is no test part; the curve: at most 30 of each"),
        ({"images": none | {"held_out": 2000}}, "  ACC: all 2000 as they are; there is no test part"),
    ):
        found = summary(**changes)
        (line,) = (line for line in printed.footnotes(found) if line.startswith("  ACC:"))
        assert table in line
        assert ("at most" in line) is ("at most" in table or "2000" in table)


def test_the_proxy_and_the_verdict_say_what_was_measured() -> None:
    lines = printed.footnotes(summary())
    assert (
        "  proxy: share of the other classes' held-out images that a stand-in for the trigger turns to 'cat'" in lines
    )
    assert printed.verdict_line(summary()) == "verdict: a backdoor to 'cat' is suspected"
    assert lines[0] == (
        "  benign score: 0.0003 ≤ clear_threshold=0.004; relative norm of the proxy 0.100 × removal cost 0.01 × "
        "(0.1 + forgetting rate 0.20)"
    )
    assert lines[1] == "  fewer than 0.1 % of clean models score as low (estimated)"
    open_verdict = summary(verdict={"confidence": "borderline", "benign_score": 0.0051, "false_alarm_rate": 0.0231})
    assert printed.verdict_line(open_verdict) == "verdict: borderline; there may be a backdoor to 'cat'"
    assert printed.footnotes(open_verdict)[0].startswith(
        "  benign score: clear_threshold=0.004 < 0.0051 ≤ benign_threshold=0.007; "
    )
    assert printed.footnotes(open_verdict)[1] == "  about 2.3 % of clean models score as low (estimated)"
    nothing = {
        "backdoor_suspected": False,
        "confidence": "no sign",
        "relative_norm": 1.0,
        "removal_cost": 1.0,
        "benign_score": 0.3,
    }
    found = summary(before={"proxy_asr": 0.0}, verdict=nothing)
    assert printed.verdict_line(found) == "verdict: no sign of a backdoor, so nothing is pruned"
    turned = printed.footnotes(found)[0]
    assert turned.startswith("  benign score: 0.3000 > benign_threshold=0.007; the proxy flips no held-out image")
    assert "norm of the proxy" not in turned, "a norm of 1 is what counts then, not what was measured"
    by_accuracy = summary(before={"proxy_asr": 0.0}, verdict=nothing, select_by="clean_acc")
    assert printed.verdict_line(by_accuracy) == "verdict: no sign of a backdoor"
    without = summary(before={"proxy_asr": None}, verdict={"benign_score": None, "backdoor_suspected": None})
    assert not [line for line in printed.footnotes(without) if line.startswith("  proxy:")]
    assert "its target is 'cat'" in printed.verdict_line(without)
    assert "no target class" in printed.verdict_line(summary(verdict=None))


def test_a_registered_version_has_no_tag_for_an_unknown_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, object] = {}
    monkeypatch.setattr(models, "register", lambda model_id, name, tags, card: found.update(tags) or "1")
    monkeypatch.setattr(notes, "pruning", lambda summary, runs: "card")
    run = cast(runs.StepRun, SimpleNamespace(run_id="p", tags=lambda tags: None))
    unknown = summary(before={"asr": None, "ra": None})
    unknown = replace(unknown, points={"chosen": replace(unknown.picked, asr=None, ra=None, der=None)})
    registering.register(run, Prune(register_as="name"), unknown, "m", {"attack": "a"})
    assert found.keys() == {"prune_run_id", "model_run_id", "acc"}


def test_the_chosen_point_says_what_chose_it() -> None:
    for changes, words in (
        ({}, "where the proxy fails, without the trigger"),
        ({"select_by": "asr", "selected": "oracle"}, "where the proxy fails, without the trigger"),
        ({"select_by": "clean_acc"}, "as far as held-out accuracy allows, without the trigger"),
        ({"verdict": {"confidence": "borderline"}}, "as far as borderline_acc_ratio allows, because the verdict is "
         "borderline; without the trigger"),
        ({"verdict": {"backdoor_suspected": False}}, "no neurons, because there is no sign of a backdoor"),
        ({"verdict": None, "before": {"proxy_asr": None}},
         "as far as held-out accuracy allows, without the trigger (there is no proxy)"),
    ):  # fmt: skip
        assert printed.rule(summary(**changes)) == words


def test_accuracy_while_training_is_said_to_be_that() -> None:
    said = recover.regained(Recover(), 0.5, proxy=True)
    assert said == (
        "training accuracy in the last epoch 0.5000 (of the unlearned model and the suspect; "
        "50% of the other classes' images carried the proxy)"
    )
    for settings, proxy in ((Recover(), False), (Recover.model_validate({"proxy_share": 0}), True)):
        assert recover.regained(settings, 0.5, proxy) == (
            "training accuracy in the last epoch 0.5000 (of the unlearned model)"
        )
    assert "suspect" not in recover.regained(Recover.model_validate({"suspect_steps": 0}), 0.5, proxy=True)
    found = UnlearningResult(nn.Identity(), 0.2, True, [])
    assert unlearn.remaining_accuracy(Unlearn(), found, 40) == "clean accuracy 0.2000 on 40 images after 0 steps"
    assert unlearn.remaining_accuracy(Unlearn.model_validate({"unlearning_stop": "epoch"}), found, 40) == (
        "training accuracy in the last epoch 0.2000 after 0 steps"
    )


@pytest.mark.parametrize(
    ("asr", "already", "planted", "said"),
    [(0.9, 0.1, True, ""), (0.5, 0.49, True, ""), (0.4, 0.1, False, "did not plant"), (1.0, 0.5, False, "50% of these"),
     (0.3, 0.6, False, "60% of these")],
)  # fmt: skip
def test_an_attack_planted_only_if_the_trigger_makes_the_answer(
    asr: float, already: float, planted: bool, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tags: dict[str, object] = {}
    attack.report(SimpleNamespace(tags=tags.update), Scores(0.2, asr, 0.0), already)  # type: ignore[arg-type]
    assert tags == {"planted": planted, "asr_without_trigger": already}
    first, *warned = capsys.readouterr().err.splitlines()
    assert "ASR" in first
    assert len(warned) == bool(said)
    assert said in " ".join(warned)


@pytest.mark.parametrize("mode", ["all_to_one", "all_to_all"])
def test_the_answers_without_the_trigger_are_those_to_the_same_images(mode: str) -> None:
    test, feed, model = shades(), Preprocess((0.0,), (1.0,)), Wrong()
    targets = torch.full((12,), 5) if mode == "all_to_one" else (test.labels + 1) % 6
    kept = test.labels != targets
    bad = Triggered(torch.zeros(int(kept.sum()), 1, 8, 8, dtype=torch.uint8), test.labels[kept], targets[kept])
    wanted = predict(model, test.images, feed)[kept] == targets[kept]
    assert 0 < wanted.double().mean() < 1
    assert attack.without_trigger(model, test, bad, feed, "fp32") == float(wanted.double().mean())


SMALL = ("--width=4", "--train_size=600", "--test_size=100", "--training_epochs=1", "--ratio=0.2", "--threads=1",
         "--device=cpu", "--precision=fp32")  # fmt: skip


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    enter(tmp_path, monkeypatch)
    return tmp_path


def answers(model_run: mlflow.entities.Run, images: Tensor, proxy: ProxyTrigger | None = None) -> list[str]:
    """What the stored model of a run says, its own normalisation before it; the proxy between, if any."""
    model, spec = load(artifacts(model_run) / "model")
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
    inputs = (images.float() / 255 - mean) / std
    with torch.no_grad():
        found = model.eval()(proxy(inputs) if proxy else inputs).argmax(1)
    return [spec.classes[k] for k in found]


def answers_of(model_run: mlflow.entities.Run, purified: nn.Module, images: Tensor) -> tuple[str, str]:
    """What the stored model of a run says to one image, and what the purified one says."""
    _, spec = load(Path(model_run.info.artifact_uri) / "model")
    feed = Preprocess(spec.mean, spec.std)
    return answers(model_run, images)[0], spec.classes[int(predict(purified, images, feed))]


def test_the_chain_draws_its_models_answers_and_labels_the_oracle(
    store: Path, drawn: list[Figure], capsys: pytest.CaptureFixture[str]
) -> None:
    """After one epoch, or with a high rate, the model is wrong of some, and some triggered images miss the target."""
    sweep = (
        "--pruning_max=0.4",
        "--pruning_step=0.2",
        "--pruning_number=0.3",
        "--curve_eval_size=9",
        "--select_by=asr",
    )
    assert main(["prune", *SMALL, *QUICK, "--clean_threshold=0.99", *sweep, "--verbose"]) == 0
    samples_, proxied, after = (figure for figure in drawn if len(figure.axes) > 10)
    made = newest("attack")
    suspect = subject.load(made.info.run_id, make_plan("prune", {}), torch.device("cpu"))
    assert suspect.data.test is not None
    assert suspect.triggered is not None
    said = columns(samples_, 8)
    of = [int(column[0]) for column in said]
    assert of == list(range(1, 9))
    clean = torch.stack([suspect.data.test.images[suspect.data.test.labels == k][0] for k in of])
    bad = torch.stack([suspect.triggered.images[suspect.triggered.true_labels == k][0] for k in of])
    assert [column[1] for column in said] == answers(made, clean)
    assert [column[2] for column in said] == answers(made, bad)

    unlearned = newest("unlearn")
    proxy = stored.load_proxy(unlearned.info.run_id, torch.device("cpu"))
    assert proxy is not None
    said = columns(proxied, len(proxied.axes) // 3)
    held = recorded(unlearned.info.run_id, suspect.data, torch.device("cpu")).holdout
    shown = torch.stack([held.images[held.labels == int(column[0])][0] for column in said])
    assert [column[1] for column in said] == answers(made, shown)
    assert [column[2] for column in said] == answers(made, shown, proxy)

    found = json.loads((artifacts(newest("prune")) / "summary.json").read_text())
    out = capsys.readouterr().out
    assert (found["selected"], found["points"]["oracle"]["der"]) == (
        "oracle",
        max(p["der"] for p in found["points"].values()),
    )
    assert f"\noracle ◀  {found['points']['oracle']['pruned']:>7}" in out
    assert "  oracle: best DER in hindsight, with the trigger" in out
    assert (
        f"  held-out ACC: {found['images']['held_out']} of {found['images']['clean']} clean images, as they are" in out
    )
    label = f"oracle (sees the trigger): {found['points']['oracle']['pruned']} neurons (pruned here)"
    assert sum(label in texts(figure) for figure in drawn) == 2, "in the curve and in rnp.png"
    purified, _ = load(Path(newest("prune").info.artifact_uri) / "purified_model")
    under = [axes.get_xlabel() for axes in after.axes[8:16]]
    for k, words in enumerate(under):
        before, now = (
            f"{word}: {name}"
            for word, name in zip(("before", "after"), answers_of(made, purified, bad[[k]]), strict=True)
        )
        assert words.replace(" ✓", "") == f"{before}\n{now}"
    assert newest("prune").data.metrics["pruned"] == found["points"]["oracle"]["pruned"]
    assert newest("prune").data.metrics["der"] == found["points"]["oracle"]["der"]


def test_an_imported_models_samples_have_its_answers_under_them(store: Path, drawn: list[Figure]) -> None:
    files.attack_result(store)
    arguments = [f"--attack_result={store}/attack_result.pt", f"--data={files.clean_npz(store / 'clean.npz')}"]
    assert main(["import", *arguments, "--threads=1"]) == 0
    run = newest("import")
    bad = load_file(artifacts(run) / "triggered.safetensors")
    said = columns(drawn[-1], 3)
    first = [int((bad["true_labels"] == int(column[0])).nonzero()[0]) for column in said]
    assert [column[0] for column in said] == ["1", "2", "3"]
    assert [column[2] for column in said] == answers(run, bad["images"][first])


def git(folder: Path, *words: str) -> str:
    """A git command with nothing from outside the test."""
    known = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    who = ("-c", "user.name=someone", "-c", "user.email=someone@example.org", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", *who, *words], cwd=folder, env=known, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def repository(folder: Path, *names: str) -> str:
    """Make `folder` a repository with one commit of these of its files and one of its own; the commit."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "theirs.txt").write_text("theirs")
    git(folder, "init")
    git(folder, "remote", "add", "origin", "https://example.org/theirs.git")
    git(folder, "add", "theirs.txt", *names)
    git(folder, "commit", "-m", "theirs")
    return git(folder, "rev-parse", "HEAD")


def test_an_installed_copy_below_another_repository_does_not_log_that_ones_commit(tmp_path: Path) -> None:
    """In none of the tags of its runs and of the model that it logs."""
    theirs = repository(tmp_path)
    site = tmp_path / ".venv" / "site-packages"
    shutil.copytree(ROOT / "rnp_mlflow", site / "rnp_mlflow", ignore=shutil.ignore_patterns("__pycache__"))
    store = f"sqlite:///{tmp_path}/mlflow.db"
    env = os.environ | {"PYTHONPATH": str(site), "MLFLOW_TRACKING_URI": store, "GIT_DIR": str(tmp_path / ".git")}
    arguments = ["prune", *SMALL, *QUICK, "--pruning_max=0.2", "--pruning_step=0.1", "--select_by=number"]
    done = subprocess.run(
        [sys.executable, "-m", "rnp_mlflow", *arguments], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    client = MlflowClient(store)
    found = client.search_runs(["0"])
    assert {run.data.tags["rnp.entry"] for run in found} == {"attack", "unlearn", "recover", "prune"}
    (model,) = client.search_logged_models(["0"])
    for tags in (*(run.data.tags for run in found), model.tags):
        assert theirs not in tags.values()
        assert not [name for name in tags if name.startswith("mlflow.source.git.")]
    for run in found:
        assert run.data.tags["rnp.dirty"] == "unknown"
        assert run.data.tags["rnp.version"] == rnp_mlflow.__version__


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that holds the package, as `runs` sees it."""
    place = tmp_path / "outer" / "inner"
    (place / "rnp_mlflow").mkdir(parents=True)
    (place / runs.TRACKED).write_text("")
    monkeypatch.setattr(runs, "HOME", place)
    runs._is_repository.cache_clear()
    yield place
    runs._is_repository.cache_clear()


def test_only_a_repository_with_the_package_at_its_top_and_in_it_is_our_own(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = repository(home.parent, "inner/" + runs.TRACKED)
    monkeypatch.setenv("GIT_DIR", str(home.parent / ".git"))  # as in a hook of theirs
    assert runs.git("rev-parse", "HEAD") is None, "tracked, but below another repository's top"
    assert runs.machine_tags()["dirty"] == "unknown"
    repository(home)
    runs._is_repository.cache_clear()
    assert runs.git("rev-parse", "HEAD") is None, "at the top, but not tracked"
    git(home, "add", runs.TRACKED)
    git(home, "commit", "-m", "the package")
    runs._is_repository.cache_clear()
    assert runs.git("rev-parse", "HEAD") == git(home, "rev-parse", "HEAD") != foreign
    assert runs.machine_tags()["dirty"] is False
    (home / "new").write_text("")
    assert runs.machine_tags()["dirty"] is True


def test_mlflows_tags_of_the_source_are_our_own_repositorys_or_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    commit, branch, address = (f"mlflow.source.git.{name}" for name in ("commit", "branch", "repoURL"))
    said = {commit: "theirs", branch: "main", address: "https://example.org", "mlflow.user": "someone"}
    monkeypatch.setattr(runs, "git", lambda *_: None)
    assert runs.own_source(said) == ({}, [commit, branch, address])
    assert runs.own_source({"mlflow.user": "someone"}) == ({}, [])
    monkeypatch.setattr(runs, "git", lambda *_: "ours")
    assert runs.own_source(said) == ({commit: "ours"}, [branch, address])
    assert runs.own_source(said | {commit: "ours"}) == ({commit: "ours"}, [])
    assert runs.own_source({}) == ({commit: "ours"}, [])
