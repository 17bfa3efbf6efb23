"""Every parameter of every entry point refuses what is out of its bounds: one line, exit 2, and nothing is begun."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import annotated_types
import pytest
from pydantic.fields import FieldInfo
from stores import enter

from rnp_mlflow import config
from rnp_mlflow.cli import ENTRIES, main


def numbers(annotation: Any) -> set[type]:
    """Return which of int and float a field takes."""
    parts = {annotation, *get_args(annotation), *(inner for part in get_args(annotation) for inner in get_args(part))}
    return {int, float} & parts if bool not in parts else set()


def bounds(field: FieldInfo) -> Iterator[str]:
    """Yield a value beyond each bound of a field."""
    found = list(field.metadata)
    for part in get_args(field.annotation):
        found += [inner for meta in getattr(part, "__metadata__", ()) for inner in getattr(meta, "metadata", [meta])]
    for bound in found:
        match bound:
            case annotated_types.Gt(gt):
                yield str(gt)
            case annotated_types.Ge(ge):
                yield str(int(ge) - 1)  # type: ignore[call-overload]
            case annotated_types.Lt(lt):
                yield str(lt)
            case annotated_types.Le(le):
                yield str(le * 2)  # type: ignore[operator]


def bad_values() -> list[tuple[str, str, str]]:
    """Return (entry point, parameter, value that it must refuse)."""
    found = []
    for entry in ENTRIES:
        for name, field in config.parameters(entry).items():
            kinds = numbers(field.annotation)
            values = [*bounds(field), "x"] if kinds else []
            values += ["inf", "nan", "-inf", "1e400"] if float in kinds else []
            values += ["1.5", "1e3000", "0x10"] if int in kinds and float not in kinds else []
            values += ["x"] if config.choices(field) else []
            found += [(entry, name, value) for value in dict.fromkeys(values)]
    return found


def test_there_are_many_cases_of_every_entry_point() -> None:
    cases = bad_values()
    assert len(cases) >= 300
    assert {entry for entry, _, _ in cases} == set(ENTRIES) - {"report", "upload"}, "these take names alone"
    assert ("attack", "width", "8192") in cases
    assert ("prune", "min_acc_ratio", "nan") in cases


@pytest.mark.parametrize("entry", sorted({entry for entry, _, _ in bad_values()}))
def test_what_is_out_of_bounds_is_one_line_and_exit_2(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enter(tmp_path, monkeypatch)
    needed = {name: "x" for name, field in config.parameters(entry).items() if field.is_required()}
    for _, name, value in [case for case in bad_values() if case[0] == entry]:
        given = needed | {name: value}
        assert main([entry, *(f"--{key}={text}" for key, text in given.items())]) == 2, (name, value)
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, (name, value, lines)
        assert lines[0].startswith(f"error: {name}={value}") or f"{name}=" in lines[0], (name, value, lines)
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (["prune", "--pruning_step=1e-7"], "more than 10,000 points"),
        (["prune", "--pruning_by=threshold", "--pruning_max=1.5"], "above 1"),
        (["attack", "--width=100000000"], "width=100000000"),
        (["attack", "--threads=1000000"], "threads=1000000"),
        (["unlearn", "--unlearning_lr=1e40"], "unlearning_lr=1e40"),
    ],
)
def test_what_would_never_end_is_refused(given: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(given) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert word in line


@pytest.mark.parametrize("name", ["click", "typing", "torch", "mlflow", "pydantic"])
def test_a_module_in_the_working_folder_is_not_imported(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("open('executed', 'w').close()\nraise SystemExit('hostile')\n")
    words = [sys.executable, "-m", "rnp_mlflow", "--version"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "rnp_mlflow" in done.stdout
    assert not (tmp_path / "executed").exists()
