"""What a call asks for: parameters by name, presets, and what was given of them."""

import pytest

from rnp_mlflow import config
from rnp_mlflow.errors import ConfigError
from rnp_mlflow.steps.plan import flat, make_plan, plan_again, used


def test_the_reference_preset_is_its_behaviour_in_one_word_and_what_is_given_wins() -> None:
    plain, preset = make_plan("prune", {}), make_plan("prune", {"preset": "reference", "recovering_epochs": "5"})
    named = config.PRESETS["reference"]
    for step in ("unlearn", "recover", "prune"):
        for name in named.keys() & config.STEPS[step].model_fields.keys():
            wanted = 5 if name == "recovering_epochs" else named[name]
            assert getattr(preset[step], name) == wanted
            assert getattr(plain[step], name) == config.STEPS[step].model_fields[name].default
    assert preset["recover"].alpha == plain["recover"].alpha
    assert preset.given == {"preset", *named}
    with pytest.raises(ConfigError, match="preset=authors"):
        make_plan("prune", {"preset": "authors"})


def test_every_value_of_a_preset_is_a_parameter_that_differs_from_its_default() -> None:
    fields = {name: field for step in config.STEPS.values() for name, field in step.model_fields.items()}
    for values in config.PRESETS.values():
        assert all(fields[name].default != value for name, value in values.items())


def test_given_is_what_the_call_gave_even_if_it_equals_the_default() -> None:
    assert make_plan("recover", {"alpha": "0.2", "model_run_id": "auto", "index": None}).given == {"alpha"}
    assert make_plan("attack", {"attack": "none"}).given == {"attack"}
    assert plan_again("recover", {"alpha": 0.2, "seed": 3}, ["seed"]).given == {"seed"}


def test_roles_of_parameters_are_told_once() -> None:
    assert config.names("machine") == {"device", "threads", "store_timeout"}
    assert config.names("run") == set(config.RUN_ID.values())
    assert config.names("output") == {"export", "register_as"}
    assert config.names("file") == {"index", "mask_file", "attack_result", "checkpoint", "triggered"}
    assert config.names("place") == {"data_dir", "data"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pruning_number": "12", "select_by": "number"}, "pruning_number=12.0 is above 1.*give pruning_by=number"),
        ({"pruning_max": "5"}, "pruning_max=5.0 is above 1"),
        ({"pruning_step": "2"}, "pruning_step=2.0 is above 1"),
        ({"index": "i.txt", "ratio": "0.1"}, "index or ratio, not both"),
        ({"mask_file": "m.csv", "unlearn_run_id": "u"}, "mask_file with model_run_id, not with unlearn_run_id"),
        ({"mask_file": "m.csv", "alpha": "0.9"}, "alpha has no effect with mask_file"),
        ({"mask_file": "m.csv", "unlearning_lr": "0.1"}, "unlearning_lr has no effect with mask_file"),
    ],
)
def test_values_that_make_others_useless_are_refused(values: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_plan("prune", values)


def test_values_that_go_together_are_taken() -> None:
    make_plan("prune", {"pruning_by": "number", "pruning_number": "12", "pruning_max": "30", "pruning_step": "2"})
    make_plan("prune", {"mask_file": "m.csv", "model_run_id": "r", "ratio": "0.1", "holdout": "0.1", "seed": "3"})
    make_plan("prune", {"mask_file": "m.csv", "model_run_id": "r", "preset": "reference"})


def test_parameters_of_a_step_whose_run_was_named_are_not_logged() -> None:
    """They would be defaults that the run's own parameters contradict."""
    imported = used(make_plan("prune", {"model_run_id": "a" * 32}), "prune")
    assert not {"attack", "poison_rate", "model", "dataset"} & set(imported)
    assert {"model_run_id", "clean_threshold", "alpha", "bn_stats", "seed"} <= set(imported)
    recovered = used(make_plan("prune", {"recover_run_id": "a" * 32}), "prune")
    assert not {"attack", "clean_threshold", "alpha"} & set(recovered)
    assert {"recover_run_id", "bn_stats", "seed"} <= set(recovered)
    for entry in ("attack", "prune", "import"):
        values = {"checkpoint": "x.pt", "data": "y"} if entry == "import" else {}
        plan = make_plan(entry, values)
        assert used(plan, entry) == flat(plan, entry)
