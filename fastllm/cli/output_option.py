"""Checks of the files that commands write results or charts to."""

from __future__ import annotations

import os
from pathlib import Path

from ..atomic import is_replaced
from ..errors import ConfigError

# Text in the first HEAD bytes of such a file, but of few others.
MARKS = {"--json": (b'"case"', b'"machine"', b'"kinds"'), "--svg": (b"<svg",)}
HEAD = 1000


def check_output(option: str, given: str | os.PathLike[str], *others: str | os.PathLike[str] | None) -> None:
    """Check an output file before any work is done.

    Raises ConfigError if its folder doesn't exist, if it is one of `others` or inside one, or if it exists with other
    contents; PermissionError if it can't be written. Pipes and the like are accepted.
    """
    path = Path(given)
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise ConfigError(f"{option} must name a file in a folder that exists; got {path}; choose another name")
    whole = path.resolve()
    for other in (Path(name).resolve() for name in others if name is not None):
        if other == whole or (other.is_dir() and other in whole.parents):
            raise ConfigError(
                f"{option} must name a file of its own; got {path}, which belongs to {other}; choose another name"
            )
    if not is_replaced(path):
        return
    if path.is_file():
        with open(path, "rb") as file:
            head = file.read(HEAD)
        if head and not any(mark in head for mark in MARKS[option]):
            raise ConfigError(f"{option} must not replace another kind of file; got {path}; choose another name")
    if not os.access(whole.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise PermissionError(13, f"{path} can't be written: it or its folder is read-only; choose another file")
