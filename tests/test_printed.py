"""What is printed, drawn and tagged is what was measured."""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib.text
import pytest
import torch
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient
from torch import Tensor, nn

import rnp_mlflow
from rnp_mlflow import method
from rnp_mlflow.config import Prune
from rnp_mlflow.core.curve import Point
from rnp_mlflow.core.evaluate import Scores, predict
from rnp_mlflow.core.proxy import Proxy
from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.steps import curve, prune, subject, unlearn
from rnp_mlflow.tracking import figures, runs

ROOT = Path(__file__).parents[1]
QUICK = ("--unlearning_epochs=1", "--recovering_epochs=1", "--clean_views=0", "--refine=0", "--threads=1",
         "--proxy_steps=2", "--pruning_by=number")  # fmt: skip


def der(before: Scores, after: Scores) -> float:
    """BackdoorBench's formula, again."""
    assert before.asr is not None
    assert after.asr is not None
    return (max(0.0, before.asr - after.asr) + 1.0 - max(0.0, before.acc - after.acc)) / 2


def points(*rows: tuple[int, float, float]) -> list[Point]:
    """(neurons, ACC, ASR) → points; the first is the unpruned model; on held-out images accuracy is ACC."""
    return [Point(n or None, n, Scores(acc, asr, 0.0), acc) for n, acc, asr in rows]


# The case: the sweep by 20 neurons leaves 30 out, which is better than all of its points.
SWEEP = points((0, 0.98, 1.0), (20, 0.98, 0.4), (40, 0.97, 0.01), (60, 0.90, 0.0))
FIXED = points((30, 0.98, 0.01))[0]


def test_the_oracle_is_the_best_of_every_point_that_was_looked_at() -> None:
    traced = method.Traced(SWEEP, FIXED, None)
    for way in ("proxy", "clean_acc", "number", "asr"):
        summary = prune.summarise(Prune(select_by=way, pruning_by="number", pruning_number=30), traced)
        assert summary["points"]["oracle"]["pruned"] == 30
        assert summary["points"]["oracle"]["der"] == max(der(SWEEP[0].scores, p.scores) for p in [*SWEEP, FIXED])
        assert summary["points"]["fixed"] == summary["points"]["oracle"]
    assert method.choose(traced, Prune(select_by="asr")) == FIXED
    worse = replace(FIXED, scores=Scores(0.97, 0.02, 0.0))
    assert method.choose(method.Traced(SWEEP, worse, None), Prune(select_by="asr")) == SWEEP[2]


def test_on_a_part_of_the_test_images_the_oracle_is_still_never_below_the_chosen_or_the_fixed_point() -> None:
    """Every assignment of figures on all test images to the points, in turn; those of the part stay."""
    sweep = [*SWEEP[:3], Point(60, 60, Scores(0.98, 0.0, 0.0), 0.90)]  # the part's best; too far for held-out accuracy
    figures_on_all = [Scores(0.98, 0.9), Scores(0.98, 0.5), Scores(0.90, 0.02), Scores(0.95, 0.1), Scores(0.7, 0.0)]
    best = set()
    for order in itertools.permutations(figures_on_all):
        on_all = dict(zip((0, 20, 40, 60, 30), order, strict=True))
        traced = method.Traced(sweep, FIXED, None, whole=lambda p, known=on_all: replace(p, scores=known[p.pruned]))
        for way in ("proxy", "clean_acc", "number", "asr"):
            settings = Prune(select_by=way, curve_images=50)
            found = prune.summarise(settings, traced)
            rows = found["points"]
            assert rows["oracle"]["der"] >= max(0.5, rows["chosen"]["der"], rows["fixed"]["der"])
            assert rows["oracle"]["der"] == der(on_all[0], on_all[rows["oracle"]["pruned"]])
            pruned_at = method.choose(traced, settings).pruned
            assert pruned_at == rows[found["selected"]]["pruned"]
            assert found["selected"] == {"number": "fixed", "asr": "oracle"}.get(way, "chosen")
            best.add(rows["oracle"]["pruned"])
    assert best == {0, 30, 40, 60}, "20 is neither chosen (40) nor fixed (30) nor the part's best (60)"


def test_without_triggered_images_there_is_no_oracle() -> None:
    rows = [replace(point, scores=Scores(point.scores.acc)) for point in SWEEP]
    traced = method.Traced(rows, rows[1], None)
    assert set(prune.summarise(Prune(), traced)["points"]) == {"chosen", "fixed"}
    assert method.oracle(traced, Prune()) is None


@pytest.mark.parametrize("name", prune.DECIDES)
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


def test_the_plan_of_a_call_brings_the_advice_to_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Given:
        given = frozenset({"pruning_by", "pruning_number"})

        def __getitem__(self, step: str) -> Prune:
            return Prune(pruning_by="number", pruning_number=12)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subject, "load", stop)
    with pytest.raises(KeyboardInterrupt):
        prune.make(None, Given(), {"attack": ""}, torch.device("cpu"))  # type: ignore[arg-type]
    (line,) = capsys.readouterr().err.splitlines()
    assert "pruning_number=12" in line
    assert "add select_by=number" in line


def test_the_readme_prunes_the_number_that_it_names() -> None:
    lines = (ROOT / "README.md").read_text().replace("\\\n", "").splitlines()
    calls = [line for line in lines if "-P pruning_number" in line]
    assert calls
    assert all("-P select_by=number" in line for line in calls)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved while the test runs."""
    found, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda own, *to, **how: (found.append(own), savefig(own, *to, **how))[1])
    return found


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


@pytest.mark.parametrize(
    ("selected", "words"),
    [
        ("chosen", "chosen: 40 neurons"),
        ("fixed", "fixed: 40 neurons"),
        ("oracle", "oracle (sees the trigger): 40 neurons"),
    ],
)
def test_a_curve_says_how_its_point_was_selected(
    selected: str, words: str, tmp_path: Path, drawn: list[Figure]
) -> None:
    rows = [curve.values(point, "number") for point in SWEEP]
    for at in (None, 40, 60):
        marked = {"selected": selected, "at": at, "pruned": 40}
        figures.curve_png(tmp_path / "c.png", rows, "number", marked, "a $title")
        assert sorted(text for text in texts(drawn[-1]) if "neurons" in text) == sorted(["neurons pruned", words])
        (label,) = (t for t in drawn[-1].findobj(matplotlib.text.Text) if t.get_text() == words)
        box, picture = label.get_window_extent(), drawn[-1].bbox
        assert picture.x0 <= box.x0 < box.x1 <= picture.x1
        (legend,) = drawn[-1].legends
        assert not box.overlaps(legend.get_window_extent())
    figures.curve_html(tmp_path / "c.html", rows, "number", marked, "a title")
    page = (tmp_path / "c.html").read_text()
    assert [word for word in ("chosen", "fixed", "oracle (sees the trigger)") if f'"{word}: 40 neurons' in page] == [
        words.partition(":")[0]
    ]


class Wrong(nn.Module):
    """Answers by how bright an image (N, 1, H, W) is and not by its class: 3 if dark, else 5; 1 if a corner shines."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        answers = torch.where(x.mean((1, 2, 3)) < 0.3, 3, 5)
        answers = torch.where(x[:, 0, 0, 0] > 0.99, 1, answers)
        return nn.functional.one_hot(answers, 6).float()


CLASSES = ("plane", "car", "a $bird$", "a class with a name as long as those of ImageNet, lion", "deer", "dog")


def shades() -> ImageSet:
    """Two images a class, in class k of brightness 40 k + 10."""
    labels = torch.arange(12) % 6
    return ImageSet((40 * labels + 10).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous(), labels)


def columns(figure: Figure, count: int) -> list[list[str]]:
    """The title of each column, then what stands under each of its images, line breaks out."""
    axes = figure.axes
    found = [[axes[k].get_title(), *(ax.get_xlabel() for ax in axes[k::count])] for k in range(count)]
    return [[word.replace("\n", " ") for word in column] for column in found]


def test_under_every_sample_stands_what_the_model_answers_to_it(tmp_path: Path, drawn: list[Figure]) -> None:
    """A model that is wrong of most clean images, and answers another class than the target to triggered ones."""
    from rnp_mlflow.steps import samples

    test, feed, model = shades(), Preprocess((0.0,), (1.0,)), Wrong()
    bad = test.images.clone()
    bad[:, 0, 0, 0] = 255
    bad[test.labels == 4, 0, 0, 0] = 0  # to this one it answers as without
    kept = test.labels != 0
    triggered = subject.Triggered(bad[kept], test.labels[kept], torch.zeros(int(kept.sum()), dtype=torch.int64))
    answer = samples.answering(model, feed, "fp32", CLASSES)
    samples.draw(tmp_path / "s.png", triggered, CLASSES, answer, test)
    name = [figures.short(word).replace("\n", " ") for word in CLASSES]
    said = columns(drawn[-1], 5)
    for k, column in enumerate(said, start=1):
        clean, with_trigger = (int(predict(model, images[[k]], feed)) for images in (test.images, bad))
        arrows = [figures.short(f"→ {CLASSES[answered]}").replace("\n", " ") for answered in (clean, with_trigger)]
        assert column == [name[k], *arrows, ""]
    assert {column[2] for column in said} == {"→ car", "→ dog"}
    assert not any("plane" in text for text in texts(drawn[-1])), "the target, which the model never answers"
    samples.draw(tmp_path / "s.png", triggered, CLASSES, answer)
    assert [column[1:] for column in columns(drawn[-1], 5)] == [[column[2]] for column in said]


def test_under_an_image_with_the_proxy_stands_what_the_suspect_answers_to_that(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    held, feed, model = shades(), Preprocess((0.0,), (1.0,)), Wrong()
    change = torch.full((1, 8, 8), 0.2)
    proxy = Proxy(4, change, torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    spec = subject.store.ModelSpec("none", None, CLASSES, (1, 8, 8), (0.0,), (1.0,))
    suspect = subject.Subject("", model, spec, None, "", "", None, feed)  # type: ignore[arg-type]
    unlearn.draw_proxy(tmp_path / "p.png", proxy, suspect, held, "fp32")
    inputs = feed(held.images, None)
    plain, proxied = (model(x).argmax(1).tolist() for x in (inputs, (inputs + change).clamp(0, 1)))
    said = columns(drawn[-1], 5)
    for k, column in zip((0, 1, 2, 3, 5), said, strict=True):
        answers = (figures.short(f"→ {CLASSES[found[k]]}").replace("\n", " ") for found in (plain, proxied))
        assert column == [figures.short(CLASSES[k]).replace("\n", " "), *answers, ""]
    assert plain != proxied
    assert 4 not in proxied


def test_a_class_name_is_cut_to_two_lines_and_keeps_both_ends() -> None:
    for name in (*CLASSES, "x" * 99, "word " * 20, "a-b-c-d-" * 6, "", " "):
        lines = figures.short(name).split("\n")
        assert len(lines) <= 2
        assert all(len(line) <= figures.LINE for line in lines)
        if len(name) <= figures.LINE and name.strip():
            assert lines == [name]
    assert "lion" in figures.short(CLASSES[3])
    assert "a class" in figures.short(CLASSES[3])


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


SMALL = ("--width=4", "--train_size=600", "--test_size=100", "--training_epochs=1", "--ratio=0.2", "--threads=1",
         "--device=cpu")  # fmt: skip


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
    assert runs.machine()["dirty"] == "unknown"
    repository(home)
    runs._is_repository.cache_clear()
    assert runs.git("rev-parse", "HEAD") is None, "at the top, but not tracked"
    git(home, "add", runs.TRACKED)
    git(home, "commit", "-m", "the package")
    runs._is_repository.cache_clear()
    assert runs.git("rev-parse", "HEAD") == git(home, "rev-parse", "HEAD") != foreign
    assert runs.machine()["dirty"] is False
    (home / "new").write_text("")
    assert runs.machine()["dirty"] is True


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
