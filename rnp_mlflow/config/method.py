"""Parameters of the three steps: those of the method, from `core.params`, and those of a run."""

from typing import Literal

from pydantic import Field

from rnp_mlflow.config.suspects import Common
from rnp_mlflow.config.values import FILE, OUTPUT, RUN, AbsPath, Text, text
from rnp_mlflow.core.params import COMMON, DetectParams, RecoverParams, RepairParams, SweepParams, UnlearnParams
from rnp_mlflow.errors import ConfigError

MOST_POINTS = 10_000  # of a sweep


class Method(Common):
    """What the three steps take."""

    preset: Literal["default", "reference"] = Field(
        "default",
        json_schema_extra=COMMON,
        description="values of the parameters that are not given: this project's, or those that make the steps "
        "behave as BackdoorBench's rnp.py",
    )


class Unlearn(Method, DetectParams, UnlearnParams, frozen=True):
    """Gradient ascent on a few clean images until clean accuracy collapses."""

    model_run_id: Text = Field(
        None, json_schema_extra=RUN, description="run that holds the suspect model; auto finds or makes it"
    )
    ratio: float = Field(
        0.1,
        gt=0,
        le=1,
        json_schema_extra=COMMON,
        description="share of the clean training set that the defender has; all, if there is no test part",
    )
    index: AbsPath = Field(
        None,
        json_schema_extra=FILE,
        description="file of the defender's training indices, one integer a line; auto draws them",
    )


class Recover(Method, RecoverParams, frozen=True):
    """Learn a mask that brings clean accuracy back; the backdoor's neurons stay low."""

    unlearn_run_id: Text = Field(
        None, json_schema_extra=RUN, description="run that holds the unlearned model; auto finds or makes it"
    )


class Prune(Method, RepairParams, SweepParams, frozen=True):
    """Prune the suspect model along the mask, draw the curve, choose the point, repair and keep the model."""

    recover_run_id: Text = Field(
        None, json_schema_extra=RUN, description="run that holds the mask; auto finds or makes it"
    )
    mask_file: AbsPath = Field(
        None,
        json_schema_extra=FILE,
        description="use this mask (csv, or BackdoorBench's text) instead of a recover run's",
    )
    export: Literal["none", "backdoorbench"] = Field(
        "none", json_schema_extra=OUTPUT, description="also write BackdoorBench's defense_result.pt"
    )
    register_as: Text = Field(
        None,
        json_schema_extra=OUTPUT,
        description="register the purified model under this name, with the alias `purified`; not if nothing was "
        "pruned, there is no verdict, or held-out accuracy fell below min_acc_ratio (without a proxy: acc_ratio)",
    )

    def check(self) -> None:
        """Hold the sweep to mask values, which end at 1, and to a number of points that ends in some time.

        Raises:
            ConfigError: by threshold, a bound or the fixed point is above 1, or there are more than `MOST_POINTS`.
        """
        for name in ("pruning_max", "pruning_step", "pruning_number"):
            value = getattr(self, name)
            if self.pruning_by == "threshold" and value > 1:
                raise ConfigError(f"{name}={text(value)} is above 1, the highest mask value: give pruning_by=number")
        if self.pruning_by == "threshold" and self.pruning_max / self.pruning_step > MOST_POINTS:
            raise ConfigError(
                f"pruning_step={text(self.pruning_step)} asks for more than {MOST_POINTS:,} points up to "
                f"pruning_max={text(self.pruning_max)}: give a larger step"
            )
