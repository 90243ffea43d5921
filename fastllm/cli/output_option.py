"""Files that a command writes its figures or its chart to."""

from __future__ import annotations

import os
from pathlib import Path

from ..atomic import is_replaced
from ..errors import ConfigError

# What stands in the first bytes of such a file, and in few others.
MARKS = {"--json": (b'"case"', b'"machine"', b'"kinds"'), "--svg": (b"<svg",)}
HEAD = 1000


def check_output(option: str, given: str | os.PathLike[str], *others: str | os.PathLike[str] | None) -> None:
    """Raise ConfigError, before any work, for a file in no folder, that is one of the others or in one, or that holds
    something else; OSError for one that can't be written. What is no file, such as a pipe, is written to.
    """
    path = Path(given)
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise ConfigError(f"{option} must name a file in a folder that is there; got {path}; choose another name")
    whole = path.resolve()
    for other in (Path(name).resolve() for name in others if name is not None):
        if other == whole or (other.is_dir() and other in whole.parents):
            raise ConfigError(
                f"{option} must name a file of its own; got {path}, which is of {other}; choose another name"
            )
    if not is_replaced(path):
        return
    if path.is_file():
        with open(path, "rb") as file:
            head = file.read(HEAD)
        if head and not any(mark in head for mark in MARKS[option]):
            raise ConfigError(f"{option} must not replace another kind of file; got {path}; choose another name")
    if not os.access(whole.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise PermissionError(13, f"{path} can't be written: it or its folder is read-only; choose another")
