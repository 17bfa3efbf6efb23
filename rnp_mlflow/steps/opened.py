"""The run that `mlflow run` opened for a call, which `MLFLOW_RUN_ID` names: whether it is this call's."""

import os
from collections.abc import Mapping
from typing import Any

from rnp_mlflow.config import OTHERS, parameters, parse, text
from rnp_mlflow.errors import ConfigError
from rnp_mlflow.steps.plan import flat, make_plan
from rnp_mlflow.tracking.runs import ATTACH, attachable, prepare_store


def check(entry: str, values: Mapping[str, Any]) -> None:
    """Refuse to write into another call's run. values: what this call gave.

    Raises:
        ConfigError: a value of this call is wrong, or the run was opened with another one.
        LineageError: there is no such run, or its step has begun (`runs.attachable`).
    """
    if ATTACH not in os.environ:
        return
    wanted = texts(entry, values)
    prepare_store()
    run = attachable()
    logged = {name: value for name, value in run.data.params.items() if name in parameters(entry)}
    try:
        found = texts(entry, {**values, **logged})
    except ConfigError as error:
        raise ConfigError(f"{ATTACH} names run {run.info.run_id}, opened with other parameters: {error}") from None
    for name in logged:
        if found[name] != wanted[name]:
            raise ConfigError(
                f"{name}={wanted[name]}, but {ATTACH} in the environment names run {run.info.run_id}, which was opened "
                f"with {name}={found[name]}: unset {ATTACH}"
            )


def texts(entry: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Return every parameter of a call as it is logged.

    Raises:
        ConfigError: a value is wrong.
    """
    if entry == "grid":  # beside its own parameters it takes lists of those of the steps
        defaults = {name: field.default for name, field in parameters(entry).items()}
        return {n: text(value) for n, value in (defaults | dict(values) | dict(parse(OTHERS[entry], values))).items()}
    if entry in OTHERS:
        return {name: text(value) for name, value in parse(OTHERS[entry], values)}
    return flat(make_plan(entry, values), entry)
