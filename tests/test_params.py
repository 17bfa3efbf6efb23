"""Every default is stated once, and every public signature shows what it takes."""

import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import rnp_mlflow
from rnp_mlflow import config, defence
from rnp_mlflow.cli import main
from rnp_mlflow.core import params
from rnp_mlflow.errors import ConfigError
from rnp_mlflow.steps.plan import make_plan

ROOT = Path(__file__).parents[1]
HOLDERS: list[tuple[type[params.CommonParams], type[config.Settings]]] = [
    (params.UnlearnParams, config.Unlearn),
    (params.DetectParams, config.Unlearn),
    (params.RecoverParams, config.Recover),
    (params.SweepParams, config.Prune),
    (params.RepairParams, config.Prune),
]


@pytest.mark.parametrize(("kind", "settings"), HOLDERS)
def test_configs_defaults_and_words_are_those_of_the_parameter_objects(
    kind: type[params.CommonParams], settings: type[config.Settings]
) -> None:
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        known = settings.model_fields[field.name]
        assert known.default == field.default, field.name
        if hints[field.name] is not bool and config.choices(known):
            assert config.choices(known) == get_args(hints[field.name]), field.name
    assert config.params_of(kind, settings()) == kind()


def test_config_states_no_parameter_of_the_method_again() -> None:
    for kind, settings in HOLDERS:
        groups = [group for group in settings.__mro__ if group.__module__.startswith("rnp_mlflow.config")]
        own = {name for group in groups for name in group.__annotations__}
        assert "device" in own
        assert not own & {field.name for field in dataclasses.fields(kind)}


def test_params_take_given_values_and_are_immutable() -> None:
    settings = config.parse(config.Unlearn, {"unlearning_lr": "0.5", "unlearning_augment": "yes", "schedule": "3,4"})
    found = config.params_of(params.UnlearnParams, settings)
    assert (found.unlearning_lr, found.unlearning_augment, found.schedule) == (0.5, True, (3, 4))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.unlearning_lr = 1.0  # type: ignore[misc]


def test_defend_shows_every_parameter_to_editors_with_its_type() -> None:
    shown = get_type_hints(rnp_mlflow.DefenseSettings)
    wanted: dict[str, Any] = {"preset": str}
    for kind, _ in HOLDERS:
        wanted |= get_type_hints(kind)
    assert shown == wanted
    assert "help(rnp_mlflow.DefenseSettings)" in (inspect.getdoc(rnp_mlflow.defend) or "")
    text = inspect.getdoc(rnp_mlflow.DefenseSettings) or ""
    assert "\nalpha = 0.2: weight of the cross-entropy" in text
    assert all(f"\n{name} = " in text for name in shown.keys() - {"preset"})


def test_the_public_names_are_there_and_torch_is_imported_for_those_alone_that_need_it() -> None:
    for name in rnp_mlflow.__all__:
        assert getattr(rnp_mlflow, name) is not None
    assert {"defend", "DefenseResult", "EvalSet", "UnlearnParams", "errors"} <= set(rnp_mlflow.__all__)
    assert set(rnp_mlflow.__all__) <= set(dir(rnp_mlflow))
    assert set(rnp_mlflow._MODULES) == set(rnp_mlflow.__all__) - {"errors"}
    with pytest.raises(AttributeError, match="now called EvalSet"):
        rnp_mlflow.TestSet  # type: ignore[attr-defined] # noqa: B018
    asked = "import sys, rnp_mlflow; rnp_mlflow.UnlearnParams(), rnp_mlflow.errors; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_a_type_checker_sees_the_public_names(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "use.py").write_text(
        "from torch import Tensor, nn\n"
        "import rnp_mlflow\n"
        "from rnp_mlflow import DefenseResult, EvalSet, UnlearnParams, defend, errors\n"
        "def use(model: nn.Module, x: Tensor, y: Tensor) -> DefenseResult:\n"
        "    reveal_type(UnlearnParams().unlearning_lr)\n"
        "    return defend(model, x, y, test=EvalSet(x, y), acc_ratio=0.98)\n"
        "def wrong(model: nn.Module, x: Tensor, y: Tensor) -> None:\n"
        "    defend(model, x, y, alhpa=1)\n"
        "    defend(model, x, y, bn_stats='other')\n"
        "    rnp_mlflow.defnd\n"
    )
    asked = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(tmp_path / "use.py")]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=ROOT)
    errors = [line.partition(": error: ")[2] for line in done.stdout.splitlines() if ": error: " in line]
    assert 'Revealed type is "float"' in done.stdout.replace("builtins.", "")
    assert len(errors) == 3, done.stdout
    for error, word in zip(errors, ("alhpa", "bn_stats", "defnd"), strict=True):
        assert word in error


@pytest.mark.parametrize("former", config.RENAMED)
def test_a_former_name_is_an_error_that_says_the_present_one(former: str, capsys: pytest.CaptureFixture[str]) -> None:
    present, values = config.RENAMED[former]
    entry = "attack" if former == "batch_size" else "prune"
    assert main([entry, f"--{former}=1"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"parameter {former} is now called {present}" in line
    assert ("yes instead of augmented" in line) is bool(values)
    with pytest.raises(ConfigError, match=f"is now called {present}"):
        make_plan("prune", {former: 1})
    if former != "batch_size":
        with pytest.raises(ConfigError, match=f"is now called {present}"):
            defence._Params.from_settings({former: 1})


def test_a_run_from_before_the_borderline_had_none() -> None:
    assert config.legacy_value("clear_threshold", {"benign_threshold": 0.01}, 0.004) == 0.01
    assert (
        config.legacy_value(
            "clear_threshold", {"max_doubt": 0.01} | config.with_current_names({"max_doubt": 0.02}), 0.004
        )
        == 0.02
    )


def test_a_stored_record_of_the_former_form_is_understood() -> None:
    """Settings as version 0.1.0 logged them, from JSON."""
    record = json.loads(
        '{"unlearning_views": "augmented", "clip": 0.0, "schedule": [1, 2], "seed": 3, "recovering_views": "plain", '
        '"max_doubt": 0.01, "stop_ratio": 0.7, "clean_views": 2, "curve_images": 10, "batch_size": 64, "alpha": 0.5}'
    )
    assert config.with_current_names(record) == {
        "unlearning_augment": True, "grad_clip_norm": 0.0, "schedule": [1, 2], "seed": 3, "recovering_augment": False,
        "benign_threshold": 0.01, "min_acc_ratio": 0.7, "holdout_crops": 2, "curve_eval_size": 10,
        "training_batch_size": 64, "alpha": 0.5,
    }  # fmt: skip
    assert config.with_current_names(config.with_current_names(record)) == config.with_current_names(record)
    assert not set(config.RENAMED) & set(config.parameters("main"))


def test_a_removed_parameter_is_ignored_in_stored_runs_and_refused_with_a_reason() -> None:
    assert config.with_current_names({"eval_every": 3, "clip": 5}) == {"grad_clip_norm": 5}
    assert "was removed" in (config.rename_hint("eval_every") or "")
    assert "eval_every" not in config.parameters("main")
