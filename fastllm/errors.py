"""The errors that fastllm raises on purpose. Each message is one line: the rule; what was received; the fix."""


class FastllmError(Exception):
    """Base class for errors in files, configurations and data.

    A wrong argument raises ValueError or TypeError, a missing file FileNotFoundError.
    """


class ConfigError(FastllmError, ValueError):
    """A configuration has an unknown key or a value that breaks a rule."""


class FormatError(FastllmError, ValueError):
    """A file isn't valid: of another kind, truncated or contradictory."""


class DataError(FastllmError, ValueError):
    """A text or data set can't be used as it is."""


class TrainingError(FastllmError, RuntimeError):
    """Training can't go on, for example because the loss is no longer finite."""
