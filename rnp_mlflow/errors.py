"""The errors that a user can cause. `cli` prints each as one line and exits with code 2."""

from rnp_mlflow.shown import printable


class RnpError(Exception):
    """Base class of errors whose message says what was wrong, where, and what to do; names in it may be anything."""

    def __init__(self, message: str):
        super().__init__(printable(message))


class ConfigError(RnpError):
    """A parameter is unknown, malformed, out of range, or contradicts another parameter."""


class DataError(RnpError):
    """Images, labels or indices cannot be used."""


class ModelError(RnpError):
    """A model cannot be built, or its weights do not match it."""


class MaskError(RnpError):
    """A mask does not belong to the model, or has invalid values."""


class LineageError(RnpError):
    """A run ID is unknown, of another kind, unfinished, or lacks an artifact."""


class StoreAway(LineageError):
    """The tracking store was busy, full or away for longer than a call waits."""
