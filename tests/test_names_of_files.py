"""Names that come from files: nothing in them controls a terminal, is taken for markup, or has no end."""

import io
import re
from pathlib import Path

import outside_files as files
import pytest
import torch
from stores import assert_none_running, enter, newest

from rnp_mlflow.cli import main
from rnp_mlflow.errors import DataError, ModelError
from rnp_mlflow.models import store
from rnp_mlflow.report.confusion import ClassAnswers, draw_confusion
from rnp_mlflow.report.style import Caption, short
from rnp_mlflow.shown import LONGEST, printable
from rnp_mlflow.steps import output

HOSTILE = ("\x1b[31mred\x1b]0;title\x07", "[/a]", "$bad{$", "\u202egnp.exe" + "x" * 200)


def test_controls_are_escaped_and_the_rest_stays() -> None:
    assert printable("\x1b[2J\x07\r\u202e\u200b\x9b") == r"\x1b[2J\x07\r\u202e\u200b\x9b"
    for text in ("größer → ◀ ≤ 1\xa0000 你好", "two\nlines", "[/a] $bad{$"):
        assert printable(text) == text
    assert len(printable("a" * 10**6)) <= LONGEST + 3
    assert printable("a" * 5000 + "end").endswith("aend")


def test_errors_and_printed_lines_are_cut_and_escaped() -> None:
    assert str(DataError("class '\x1b[2J' of " + "b" * 10**6)).startswith(r"class '\x1b[2J' of bbb")
    assert len(str(DataError("b" * 10**6))) < 2100
    stream = io.StringIO()
    output.write(["\x1b[2J" + "c" * 10**6], stream)
    assert stream.getvalue().startswith(r"\x1b[2J")
    assert len(stream.getvalue()) < 20_100


def test_pictures_take_any_name(tmp_path: Path) -> None:
    answers = ClassAnswers(torch.arange(4), torch.arange(4), torch.arange(4))
    caption = Caption("net", HOSTILE[0], "none", None, 0, "0" * 32)
    draw_confusion(tmp_path / "c.png", answers, HOSTILE, caption)
    drawn = (tmp_path / "c.svg").read_text()
    assert r"\x1b[31" in drawn
    assert "$bad{$" in drawn
    assert not re.search("[\x00-\x08\x0b-\x1f]", drawn)
    assert len(short("a" * 10**6, 14)) < 40


@pytest.mark.parametrize(
    ("former", "now", "words"),
    [
        ('"0"', '"' + "a" * 100_000 + '"', "longer than 255 characters"),
        ('"preactresnet18"', '"\\u001b[2J"', r"unknown model '\\x1b\[2J'|\\x1b\[2J"),
        ("[\n    3,", "[\n    3000000,", "does not describe a model"),
        ("8\n", "100000\n", "does not describe a model"),
        ("4,\n", "100000000,\n", "does not describe a model"),
    ],
)
def test_a_description_of_a_model_is_bounded(former: str, now: str, words: str, tmp_path: Path) -> None:
    store.save(tmp_path, files.network(), files.spec())
    spec = (tmp_path / "model.json").read_text()
    assert former in spec
    (tmp_path / "model.json").write_text(spec.replace(former, now, 1))
    with pytest.raises(ModelError, match=words) as refused:
        store.load(tmp_path)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 2100


@pytest.mark.slow
def test_a_chain_ends_whatever_its_classes_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    images = files.image_folder(
        tmp_path / "images", names=[f"{k} {name}".replace("/", "|") for k, name in enumerate(HOSTILE)]
    )
    torch.save(files.suspect().state_dict(), tmp_path / "w.pt")
    enter(tmp_path, monkeypatch)
    known = ["--model=preactresnet18", "--dataset=cifar10", "--device=cpu", "--threads=1"]
    assert main(["import", f"--checkpoint={tmp_path}/w.pt", f"--data={images}", *known]) == 0
    quick = ["--ratio=1", "--unlearning_epochs=2", "--recovering_epochs=1", "--pruning_step=0.3", "--proxy_steps=3"]
    quick += ["--refine=0", "--holdout_crops=0", "--threads=1", "--device=cpu", "--verbose"]
    assert main(["prune", f"--model_run_id={newest('import').info.run_id}", *quick]) == 0
    for printed in capfd.readouterr():
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", printed), printed
    assert newest("prune").info.status == "FINISHED"
    assert_none_running()
