"""The errors fastllm raises on purpose. Each message is one line: the rule; what was received; the fix."""


class FastllmError(Exception):
    """Base of the errors in files, configurations and data.

    A wrong argument of a call raises ValueError or TypeError, a missing file FileNotFoundError.
    """


class ConfigError(FastllmError, ValueError):
    """A configuration has an unknown key or a value that breaks a rule."""


class FormatError(FastllmError, ValueError):
    """A file is not what it should be: foreign, truncated or contradictory."""


class DataError(FastllmError, ValueError):
    """A text or data set can't be used as it is."""


class TrainingError(FastllmError, RuntimeError):
    """Training can't go on, for example because the loss is no longer finite."""
