"""The errors a user can cause. `cli` turns each into one line and exit code 2."""


class RnpError(Exception):
    """Base of all errors that tell a person what was wrong, where, and what to do."""


class ConfigError(RnpError):
    """A parameter is unknown, malformed, out of range, or contradicts another."""


class DataError(RnpError):
    """Images, labels or indices cannot be used."""


class ModelError(RnpError):
    """A model cannot be built, or its weights do not fit."""


class MaskError(RnpError):
    """A mask does not belong to the model, or holds values that no mask can hold."""


class LineageError(RnpError):
    """A run ID is unknown, of another kind, unfinished, or lacks an artifact."""
