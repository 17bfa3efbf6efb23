"""config/ is the one source of parameters: MLproject and CLI follow it. Rooms import one way."""

import ast
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from rnp_mlflow import config
from rnp_mlflow.cli import ENTRIES, FLAGS, command, main
from rnp_mlflow.data import sources
from rnp_mlflow.errors import ConfigError

ROOT = Path(__file__).parents[1]
MLPROJECT = yaml.safe_load((ROOT / "MLproject").read_text())

# RNP.md's table: names and defaults that people who know the references rely on (recovery: 20 epochs of batches
# of 128 there, 10 of batches of 32 here, which are more steps).
REFERENCE = {
    "alpha": 0.2, "clean_threshold": 0.2, "unlearning_lr": 0.01, "recovering_lr": 0.2, "unlearning_epochs": 20,
    "recovering_epochs": 10, "schedule": (10, 20), "ratio": 0.1, "index": None, "mask_file": None,
    "pruning_by": "threshold", "pruning_max": 0.9, "pruning_step": 0.05, "pruning_number": 0.7, "acc_ratio": 0.95,
}  # fmt: skip


def test_reference_names_and_defaults() -> None:
    found = config.parameters("main")
    assert {name: found[name].default for name in REFERENCE} == REFERENCE


@pytest.mark.parametrize("entry", ENTRIES)
def test_mlproject_declares_what_is_auto_and_names_the_rest_with_its_default(entry: str) -> None:
    """A declared default would travel as if it had been given; `auto` is the word for "not given"."""
    known = config.parameters(entry)
    project = MLPROJECT["entry_points"][entry]
    for name, declared in project["parameters"].items():
        wanted = {"type": "string"} if known[name].is_required() else {"type": "string", "default": "auto"}
        assert declared == wanted, name
        assert known[name].is_required() or known[name].default is None, name
    passed = re.findall(r"--(\w+) \{(\w+)\}", project["command"])
    assert [a for a, _ in passed] == [b for _, b in passed] == list(project["parameters"])
    section = (ROOT / "MLproject").read_text().split(f"\n  {entry}:\n")[1].split("parameters:")[0]
    for name, value in re.findall(r"(\w+)=(\S+)", section):
        assert config.text(known[name].default) == value, name


def test_mlproject_is_readable_and_names_every_documented_parameter() -> None:
    text = (ROOT / "MLproject").read_text()
    assert len(text.splitlines()) <= 150
    assert all(f"{name}=" in text or f"{name}:" in text for name in REFERENCE)


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_command_line_takes_every_parameter_and_hands_on_what_was_given_alone(
    entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = config.parameters(entry)
    options = {option.name: option for option in command(entry).params}
    assert list(options) == [*known, *FLAGS, "help_all"]
    assert not known.keys() & {word.lstrip("-") for words, _ in FLAGS.values() for word in words}
    assert all(option.help for option in options.values())
    told: list[dict[str, object]] = []

    def note(entry: str, values: dict[str, object]) -> int:
        told.append(values)
        return 0

    monkeypatch.setattr("rnp_mlflow.cli.run", note)
    given = {name: "x" if field.is_required() else config.text(field.default) for name, field in known.items()}
    needed = {name: "x" for name, field in known.items() if field.is_required()}
    assert main([entry, *(f"--{name}={value}" for name, value in given.items())]) == 0
    assert main([entry, *(f"--{name}={value}" for name, value in needed.items())]) == 0
    assert told == [given, needed]


def test_mlproject_has_no_other_entry_points() -> None:
    assert (
        set(MLPROJECT["entry_points"])
        == set(ENTRIES)
        == {"attack", "import", "unlearn", "recover", "prune", "main", "grid", "report", "rerun", "upload"}
    )
    assert MLPROJECT["conda_env"] == "conda.yaml"


def test_no_default_needs_quoting_in_a_shell() -> None:
    for entry in ENTRIES:
        for name, parameter in MLPROJECT["entry_points"][entry]["parameters"].items():
            assert re.fullmatch(r"[\w.,-]+", parameter.get("default", "x")), name


def test_every_default_survives_being_written_and_read() -> None:
    for settings in config.STEPS.values():
        plain = settings()
        texts = {name: config.text(getattr(plain, name)) for name in settings.model_fields}
        assert config.parse(settings, texts) == plain


def test_every_dataset_has_one_list_of_names() -> None:
    assert set(config.DATASETS) == set(sources.NAMES)
    assert len(config.DATASETS) == len(sources.NAMES)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ratio": "0"}, "ratio=0"),
        ({"ratio": "1.5"}, "ratio=1.5"),
        ({"ratio": "a tenth"}, "ratio=a tenth"),
        ({"schedule": "10,x"}, "schedule"),
        ({"unlearning_stop": "never"}, "'step' or 'epoch'"),
        ({"seed": "-1"}, "seed=-1"),
    ],
)
def test_bad_values_name_the_parameter(values: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.parse(config.Unlearn, values)


def test_help_is_quick_and_names_every_option() -> None:
    started = time.monotonic()
    asked = [sys.executable, "-m", "rnp_mlflow", "prune"]
    done = subprocess.run([*asked, "--help"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert time.monotonic() - started < 10  # a second on an idle machine; torch and mlflow would cost more
    common = {name for name, field in config.parameters("prune").items() if config.is_common(field)}
    assert set(re.findall(r"^  --(\w+) ", done.stdout, re.M)) - {"json"} == common
    assert set(REFERENCE) | set(config.RUN_ID.values()) | {"dataset", "data_dir", "model", "attack", "seed"} <= common
    assert "--help-all" in done.stdout
    done = subprocess.run([*asked, "--help-all"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(re.findall(r"^  --(\w+) ", done.stdout, re.M)) - {"json"} == set(config.parameters("prune"))
    lazy = "import sys, rnp_mlflow.cli; print([m for m in ('torch', 'mlflow', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", lazy], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("words", [["prnue"], ["prune", "--alhpa", "1"], ["rerun"]])
def test_a_wrong_command_line_is_one_line_and_exit_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


# Which room may import which. The arrows point one way: a room is absent from the lists of those before it.
ALLOWED = {
    "shown": set(),
    "errors": {"shown"},
    "core": {"errors"},
    "config": {"errors", "core", "attacks"},  # `core.params` and `attacks.NAMES` alone, which import no torch
    "loading": {"errors"},
    "data": {"errors", "loading"},
    "attacks": {"errors", "data", "core"},
    "models": {"errors", "core", "loading"},
    "interop": {"errors", "loading", "core", "data"},
    "artifacts": {"errors", "core", "data", "attacks", "interop"},
    "tracking": {"errors", "artifacts", "loading", "models"},
    "pipeline": {"core", "data"},
    "report": {"shown"},
    "grid": {"errors", "config"},
    "inputs": {"errors", "core", "data"},
    "defence": {"errors", "config", "core", "data", "pipeline", "inputs"},
    "steps": {
        "shown",
        "errors",
        "artifacts",
        "config",
        "loading",
        "core",
        "data",
        "attacks",
        "models",
        "interop",
        "tracking",
        "pipeline",
        "report",
        "grid",
    },
    "cli": {"errors", "config", "steps"},
}
OUTSIDE = {
    "core": {"torch"},
    "pipeline": {"torch"},
    "report": {"torch", "matplotlib", "jinja2", "pandas"},
    "grid": {"ray"},
    "defence": {"torch"},
    "inputs": {"torch"},
    "attacks": {"torch"},
    "config": {"pydantic"},
    "errors": set(),
    "shown": set(),
}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_what_they_may(room: str) -> None:
    place = ROOT / "rnp_mlflow" / room
    for file in place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]:
        names = imports(file)
        ours = {n.split(".")[1] for n in names if n.startswith("rnp_mlflow.")}
        assert ours <= ALLOWED[room] | {room}, file
        others = {n.split(".")[0] for n in names} - {"rnp_mlflow"} - set(sys.stdlib_module_names)
        assert room in ("tracking", "steps") or "mlflow" not in others, file
        known = {"pydantic"} if file.name == "params.py" else OUTSIDE.get(room, others)
        assert others <= known, file


def test_config_knows_of_core_the_parameters_and_of_attacks_the_names_which_need_no_torch() -> None:
    assert {name.split(".")[0] for name in imports(ROOT / "rnp_mlflow/core/params.py")} == {
        "dataclasses", "typing", "pydantic",
    }  # fmt: skip
    names = set().union(*(imports(file) for file in (ROOT / "rnp_mlflow/config").glob("*.py")))
    of_core = [name for name in names if name.startswith("rnp_mlflow.core")]
    assert of_core
    assert all(name.startswith("rnp_mlflow.core.params.") for name in of_core)
    assert [name for name in names if name.startswith("rnp_mlflow.attacks")] == ["rnp_mlflow.attacks.NAMES"]
    assert not imports(ROOT / "rnp_mlflow/attacks/__init__.py")


def test_artifacts_are_named_in_their_table_alone() -> None:
    names = {
        value
        for node in ast.parse((ROOT / "rnp_mlflow/artifacts/table.py").read_text()).body
        if isinstance(node, ast.Assign)
        for value in (part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant))
        if isinstance(value, str)
    } - {"model", "attack", "import", "unlearn", "recover", "prune", "main"}  # words of their own, too
    assert len(names) > 25
    for file in (ROOT / "rnp_mlflow").rglob("*.py"):
        if file.name != "table.py":
            said = {node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)}
            assert not said & names, file


def test_no_step_imports_another_step() -> None:
    steps = {"attack", "importing", "unlearn", "recover", "prune", "main", "report", "rerun"}
    for step in steps - {"main", "rerun"}:
        names = imports(ROOT / "rnp_mlflow/steps" / f"{step}.py")
        assert not {f"rnp_mlflow.steps.{other}" for other in steps} & {
            ".".join(name.split(".")[:3]) for name in names
        }, step


def test_arrows_form_no_circle_and_every_room_is_listed() -> None:
    places = (ROOT / "rnp_mlflow").iterdir()
    rooms = {p.stem for p in places if not p.stem.startswith("__") and p.name != "py.typed"}
    assert rooms == set(ALLOWED)
    placed: set[str] = set()
    while ready := {room for room, needs in ALLOWED.items() if room not in placed and needs <= placed}:
        placed |= ready
    assert placed == rooms


def test_nothing_unpickles() -> None:
    for file in (ROOT / "rnp_mlflow").rglob("*.py"):
        text = file.read_text()
        assert not re.search(
            r"\bpickle\.\w|(import|from) pickle|torch\.load|joblib|cloudpickle|export\.load|load_model\(|yaml\.load",
            text,
        ), file
        loads = re.findall(r"np\.load\(.*", text)
        assert not loads or file.parent.name == "loading", file
        assert all("allow_pickle=False" in call for call in loads), file
