"""Reconstructive Neuron Pruning as an MLflow project. In Python: `from rnp_mlflow import defend`."""

import os
import sys

# `python -m rnp_mlflow` puts the working folder before the standard library. If this package is elsewhere, a file such
# as click.py in a folder of untrusted files must not be imported. While Python looks for `__main__`, argv[0] is "-m".
if (
    sys.argv[:1] == ["-m"]
    and "rnp_mlflow" in sys.orig_argv
    and sys.path[:1] == [os.getcwd()]
    and os.path.realpath(sys.path[0]) != os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
):
    del sys.path[0]

from importlib import import_module
from typing import TYPE_CHECKING

from rnp_mlflow import errors

if TYPE_CHECKING:
    from rnp_mlflow.core.curve import CurvePoint
    from rnp_mlflow.core.evaluate import EvalSet, Scores
    from rnp_mlflow.core.params import (
        DefenseSettings,
        DetectParams,
        RecoverParams,
        RepairParams,
        SweepParams,
        UnlearnParams,
    )
    from rnp_mlflow.core.proxy import ProxyTrigger
    from rnp_mlflow.core.unlearn import UnlearningResult
    from rnp_mlflow.core.verdict import TargetEstimate
    from rnp_mlflow.defence import DefenseResult, defend

__version__ = "0.1.0"
__all__ = [
    "CurvePoint",
    "DefenseResult",
    "DefenseSettings",
    "DetectParams",
    "EvalSet",
    "ProxyTrigger",
    "RecoverParams",
    "RepairParams",
    "Scores",
    "SweepParams",
    "TargetEstimate",
    "UnlearnParams",
    "UnlearningResult",
    "defend",
    "errors",
]

# name → its module, imported only when asked for: the command line's help does without torch
_MODULES = {
    "CurvePoint": "core.curve",
    "DefenseResult": "defence",
    "DefenseSettings": "core.params",
    "DetectParams": "core.params",
    "EvalSet": "core.evaluate",
    "ProxyTrigger": "core.proxy",
    "RecoverParams": "core.params",
    "Scores": "core.evaluate",
    "RepairParams": "core.params",
    "SweepParams": "core.params",
    "TargetEstimate": "core.verdict",
    "UnlearnParams": "core.params",
    "UnlearningResult": "core.unlearn",
    "defend": "defence",
}

if not TYPE_CHECKING:  # a type checker would take every name for a public one

    def __getattr__(name: str) -> object:
        """Import a public name when it is first asked for."""
        if name == "TestSet":
            raise AttributeError("rnp_mlflow.TestSet is now called EvalSet")
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
