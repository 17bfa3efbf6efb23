"""What a person or a program reads on the terminal: the result at every length, bars, and the help."""

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import small
from summaries import summary

import rnp_mlflow
from rnp_mlflow import config
from rnp_mlflow.artifacts import table
from rnp_mlflow.cli import ENTRIES, FLAGS, command, main
from rnp_mlflow.config import HEADINGS
from rnp_mlflow.core.batches import EpochRecord
from rnp_mlflow.steps import epochs, output, printed, progress, rerun
from rnp_mlflow.steps.output import Result, write
from rnp_mlflow.steps.summary import PruneSummary

ROOT = Path(__file__).parents[1]


def widest() -> PruneSummary:
    """Counts of six digits, a threshold that bisection found, and names as long as those of ImageNet."""
    point = {"threshold": 0.123456789, "pruned": 123456, "val_acc": 1.0, "proxy_asr": 1.0, "acc": 1.0, "asr": 1.0,
             "ra": 1.0, "der": 1.0}  # fmt: skip
    return summary(
        points={"chosen": point, "fixed": point, "oracle": point},
        verdict={"target": "a class with a name as long as those of ImageNet, " * 3 + "lion"},
        layers={f"features.denseblock{k}.denselayer{k}.norm1": (123456, 654321) for k in range(50)},
        images={"clean": 123456, "held_out": 23456, "test": 345678, "triggered": 345678},
    )


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("verbose", [False, True])
def test_a_report_is_no_wider_than_the_terminal(columns: int, verbose: bool) -> None:
    lines = printed.report(widest(), columns, verbose)
    assert all(len(line) <= columns for line in lines)
    assert any("oracle" in line and "123456" in line for line in lines)
    assert any("denselayer49" in line for line in lines) is verbose
    assert max(map(len, lines)) > columns - 20, "the width that there is, is used"
    unknown = summary(before={"asr": None, "ra": None, "proxy_asr": None}, images={"triggered": 0})
    assert all(len(line) <= columns for line in printed.report(unknown, columns, verbose))


def test_the_table_has_the_figures_under_their_heads_and_marks_the_purified_row() -> None:
    rows = [line.split() for line in printed.table(summary(selected="fixed"))]
    assert rows[0] == ["point", "threshold", "neurons", "held-out", "proxy", "ACC", "ASR", "RA", "DER"]
    assert rows[2] == ["before", "0", "0.900", "0.800", "0.900", "1.000", "0.000"]
    assert rows[3] == ["chosen", "0.5", "7", "0.900", "0.000", "0.900", "0.000", "0.900", "1.000"]
    assert rows[4] == ["fixed", "◀", *rows[3][1:]]
    lines = printed.table(widest())
    for head in ("threshold", "neurons", "proxy", "DER"):
        end = lines[0].index(head) + len(head)
        assert all(line[end : end + 1].strip() == "" and line[end - 1].strip() for line in lines[3:])


def test_a_short_report_keeps_the_verdict_the_mark_and_the_numbers_of_images() -> None:
    text = "\n".join(printed.report(summary(), 80, False))
    for words in ("verdict: a backdoor to 'cat' is suspected", "◀: the purified model", "held-out 100 images",
                  "ACC 400 test images", "ASR and RA 300 triggered images"):  # fmt: skip
        assert words in text
    assert not re.search("benign score|neurons pruned|crop", text)
    alone = {"test": 0, "triggered": 0}
    assert "ACC the same 100; ASR and RA unknown" in "\n".join(printed.report(summary(images=alone), 80, False))
    many = summary(images=alone | {"held_out": 2000}, views={"images": 1000})
    assert "held-out 1000 images; ACC all 2000 held-out images" in "\n".join(printed.report(many, 80, False))


def encoded(lines: list[str], encoding: str) -> str:
    """What these lines are as `write` writes them to a stream of this encoding."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    write(lines, stream)
    stream.seek(0)
    return stream.read()


def test_every_symbol_has_a_stand_in_for_streams_that_cannot_write_it() -> None:
    lines = printed.report(summary(), 80, True) + printed.brief(summary())
    assert not any("\\" in line for line in encoded(lines, "ascii").splitlines())
    assert "chosen <" in encoded(lines, "ascii")
    assert encoded(lines, "utf-8") == "".join(f"{line}\n" for line in lines)
    assert encoded(["a class 猫 ≤ 1  "], "latin-1") == "a class \\u732b <= 1\n"


def test_nothing_that_is_printed_ends_in_blanks_or_has_control_codes() -> None:
    text = encoded([*printed.report(widest(), 80, True), *printed.report(summary(), 80, True)], "utf-8")
    assert not re.search(r"[ \t]\n|\x1b|\r", text)


def test_a_reader_that_has_gone_is_no_error() -> None:
    asked = (
        "import sys; from rnp_mlflow.steps.output import write\n"
        "for _ in range(20): write(100 * ['x' * 100], sys.stdout)\nprint('end', file=sys.stderr)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", asked], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "end\n"
    assert process.wait(60) == 0
    write(["nobody"], None)  # as `sys.stdout` is if the shell closed it


def test_the_object_of_json_is_the_summary_with_the_figures_after_pruning() -> None:
    found = json.loads(json.dumps(printed.content(summary(selected="fixed"))))
    assert {name: found[name] for name in summary().to_json() if name != "selected"} == {
        name: value for name, value in json.loads(json.dumps(summary().to_json())).items() if name != "selected"
    }
    assert found["after"] == found["points"]["fixed"]


def results(**shown: bool) -> Callable[[pytest.CaptureFixture[str]], tuple[str, str]]:
    """Print a result in one of the ways, and return what went to standard output and standard error."""

    def printed_by(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
        output.keep(Result({"a": 1}, ["  brief"], lambda width, verbose: [f"{width} {verbose}"]).of_run("prune", "r", {
            "import": "m", "prune": "r"}))  # fmt: skip
        with output.amount(quiet=shown.get("quiet", False), verbose=shown.get("verbose", False)):
            output.log("a note")
        output.print_newest(**({"quiet": False, "verbose": False, "as_json": False} | shown))
        told = capsys.readouterr()
        return told.out, told.err

    return printed_by


def test_quiet_verbose_and_json_print_the_same_result_at_three_lengths(capsys: pytest.CaptureFixture[str]) -> None:
    assert results()(capsys) == ("80 False\n", "a note\n")
    assert results(verbose=True)(capsys) == ("80 True\n", "a note\n")
    assert results(quiet=True)(capsys) == ("prune run r\n  brief\n", "")
    out, err = results(as_json=True)(capsys)
    assert json.loads(out) == {"entry": "prune", "run_id": "r", "run_ids": {"model": "m", "prune": "r"}, "a": 1}
    assert err == "a note\n"


def test_a_rerun_adds_its_comparison_to_what_the_repeated_run_concludes() -> None:
    output.keep(Result({"entry": "prune"}, ["x"], lambda width, verbose: ["report"]))
    old, new = "0" * 32, "1" * 32
    found = rerun.result("9", old, {"recover": [], "prune": ["a difference " * 9]}, {"recover": (old, new), "prune": (
        old, new)})  # fmt: skip
    lines = found.lines(80, False)
    assert lines[:3] == ["report", "recover: identical", f"  runs {old} and {new}"]
    assert "prune: different" in lines
    assert all(len(line) <= 80 for line in lines)
    assert (found.brief, lines[-1], found.content["identical"]) == (["rerun run 9", "  different"], "different", False)
    assert found.content["result"] == {"entry": "prune"}


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"], *([entry, "-h"] for entry in ENTRIES)])
def test_help_is_printed_on_standard_output_within_80_columns(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert told.out.startswith("Usage: ")
    assert all(len(line) <= 80 for line in told.out.splitlines())


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split()[-1] == rnp_mlflow.__version__


def test_the_help_names_the_program_as_it_was_called() -> None:
    script = Path(sys.executable).with_name("rnp-mlflow")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    for call, name in (([sys.executable, "-m", "rnp_mlflow"], "python -m rnp_mlflow"), ([str(script)], "rnp-mlflow")):
        done = subprocess.run([*call, "attack", "--no"], capture_output=True, text=True, env=env, cwd=ROOT)
        assert done.returncode == 2
        assert done.stderr.strip().endswith(f"(see {name} attack --help)")


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_option_is_listed_under_its_heading_runs_and_files_first(
    entry: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([entry, "--help-all"]) == 0
    parts = re.split(r"^(\w[\w ]*):\n", capsys.readouterr().out, flags=re.M)
    listed = {name: set(re.findall(r"^  (?:-\w, )?--(\w+)", text, re.M)) for name, text in zip(parts[1::2], parts[2::2],
                                                                                             strict=True)}  # fmt: skip
    known = config.parameters(entry)
    order = [name for name in HEADINGS if name in listed]
    assert [name for name in listed if name != "Output"] == [name for name in order if name != "Output"]
    assert set().union(*listed.values()) == {*known, "quiet", "verbose", "json", "help"}
    assert {"quiet", "verbose", "json", "help"} <= listed["Output"]
    of = {name: heading for heading, names in listed.items() for name in names}
    wanted = {
        "Runs and files": "run_id recover_run_id mask_file index checkpoint model_uri triggered",
        "Method": "alpha seed preset select_by",
        "Model and attack": "model attack target training_lr weight_decay require_acc",
        "Data": "dataset data data_dir mean flip",
        "Machine": "device threads",
        "Output": "export register_as",
    }
    for heading, names in wanted.items():
        assert all(of[name] == heading for name in names.split() if name in known)


def test_the_flags_of_printing_reach_the_steps_and_are_no_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[dict[str, Any], dict[str, bool]]] = []

    def note(entry: str, values: dict[str, Any], **shown: bool) -> int:
        told.append((values, shown))
        return 0

    monkeypatch.setattr("rnp_mlflow.cli.run", note)
    assert main(["prune", "-q", "--json", "--seed=1"]) == 0
    assert main(["prune", "-v"]) == 0
    assert told == [({"seed": "1"}, {"quiet": True, "as_json": True}), ({}, {"verbose": True})]
    assert main(["prune", "-q", "-v"]) == 2
    assert len(told) == 2
    project = (ROOT / "MLproject").read_text()
    assert not [words for words, _ in FLAGS.values() for word in words if f" {word} " in project and word != "as_json"]


@pytest.mark.parametrize(
    ("shell", "script"), [("bash", "complete -o nosort -F"), ("zsh", "compdef"), ("fish", "complete --no-files")]
)
def test_the_documented_line_turns_completion_on(shell: str, script: str) -> None:
    page = (ROOT / "docs" / "faq.md").read_text()
    assert f"_RNP_MLFLOW_COMPLETE={shell}_source rnp-mlflow" in page
    program = str(Path(sys.executable).with_name("rnp-mlflow"))
    env = os.environ | {"PYTHONPATH": str(ROOT), "_RNP_MLFLOW_COMPLETE": f"{shell}_source"}
    done = subprocess.run([program], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert script in done.stdout
    if shell == "bash":
        for words, wanted in (("rnp-mlflow pr", "prune"), ("rnp-mlflow prune --select_by c", "clean_acc")):
            asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
            env |= {"_RNP_MLFLOW_COMPLETE": "bash_complete"} | asked
            offered = subprocess.run([program], env=env, capture_output=True, text=True).stdout
            assert f"plain,{wanted}" in offered


class Screen:
    """A terminal that keeps what is written to it."""

    def __init__(self) -> None:
        self.parent, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.stream = os.fdopen(child, "w")

    def read(self) -> list[str]:
        """Return what was written, control codes left out, a line for every state of a line."""
        self.stream.flush()
        os.set_blocking(self.parent, False)
        raw = b""
        while True:
            try:
                raw += os.read(self.parent, 65536)
            except BlockingIOError:
                break
        return [line.rstrip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", raw.decode()))]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setenv("TERM", "xterm")
    return Screen()


def test_a_bar_shows_its_figure_and_ends_full_if_the_work_ends_early(screen: Screen) -> None:
    with redirect_stderr(screen.stream), progress.bar("unlearn", 20, lambda: None) as bar:
        show = epochs.on_step(bar, 100, 32)
        for step in range(1, 4):
            show(EpochRecord(1, 2.0, 0.9 - step / 10, step))
        assert bar.done == 0.75
        bar.at(1, "accuracy 0.190")
    last = [line for line in screen.read() if line.startswith("unlearn")][-1]
    assert "1/1" in last
    assert "accuracy 0.190" in last
    assert len(last) <= 80
    with redirect_stderr(screen.stream), progress.bar("prune", 2, lambda: None) as bar:
        for k in range(4):
            bar(f"held-out ACC 0.123  proxy 0.{k}00")
    last = [line for line in screen.read() if line.startswith("prune")][-1]
    assert "4/4" in last
    assert "proxy 0.300" in last


def test_a_note_makes_way_for_a_bar_and_lines_are_wrapped(screen: Screen) -> None:
    with redirect_stderr(screen.stream):
        with (
            progress.note("loading digits"),
            progress.note("another"),
            progress.bar("outer", 2, lambda: None) as bar,
            progress.bar("inner", 2, lambda: None) as inner,
        ):
            bar()
            inner()
        output.log("  warning: " + "word " * 40)
    lines = screen.read()
    assert any("loading digits" in line for line in lines)
    assert any("outer" in line for line in lines)
    assert not any("inner" in line or "another" in line for line in lines), "one thing at a time"
    assert not any("outer" in line and "loading" in line for line in lines)
    warned = [line for line in lines if "word" in line]
    assert len(warned) == 3
    assert all(len(line) <= 80 for line in warned)


def test_without_a_terminal_bars_and_notes_write_nothing_and_lines_stay_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    called: list[int] = []
    with progress.note("loading"), progress.bar("attack", 2, lambda: called.append(1)) as bar:
        bar("accuracy 0.5")
        bar.at(2)
    assert called == [1]
    output.log("word " * 40)
    assert capsys.readouterr().err == ("word " * 40).rstrip() + "\n"


def test_every_entry_point_completes_words_and_files() -> None:
    prune = {option.name: option for option in command("prune").params}
    context = command("prune").make_context("prune", [], resilient_parsing=True)
    assert [item.value for item in prune["pruning_by"].shell_complete(context, "t")] == ["threshold"]
    assert [item.type for item in prune["mask_file"].shell_complete(context, "")] == ["file"]
    assert prune["alpha"].shell_complete(context, "") == []


@pytest.mark.slow
def test_a_run_prints_one_object_whose_figures_are_the_summarys_though_stdout_takes_ascii_alone(
    tmp_path: Path,
) -> None:
    call = [sys.executable, "-m", "rnp_mlflow"]
    out = small.prune(call, tmp_path, flags=("--json",), PYTHONPATH=str(ROOT))
    found = json.loads(out)
    (file,) = tmp_path.glob(f"mlruns/*/{found['run_id']}/artifacts/{table.SUMMARY}")
    stored = json.loads(file.read_text())
    assert {name: found[name] for name in stored} == stored
    assert found["after"] == stored["points"][stored["selected"]]
    assert set(found["run_ids"]) == {"model", "unlearn", "recover", "prune"}
    assert found["run_ids"]["prune"] == found["run_id"]
    names = small.names(tmp_path, "params", "prune")
    assert "seed" in names
    assert not names & {"quiet", "verbose", "json", "as_json"}
    again = small.prune(call, tmp_path, flags=("--quiet",), PYTHONPATH=str(ROOT), PYTHONIOENCODING="ascii")
    assert len(again.splitlines()) == 3
    assert "ACC" in again
    assert "->" in again
