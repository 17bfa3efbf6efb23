"""Reconstructive Neuron Pruning as an MLflow project. In Python: `from rnp_mlflow import defend`."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["TestSet", "defend"]


def __getattr__(name: str) -> Any:
    """Import torch only when asked for: the command line's help does without."""
    if name == "defend":
        from rnp_mlflow.defence import defend

        return defend
    if name == "TestSet":
        from rnp_mlflow.core.evaluate import TestSet

        return TestSet
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
