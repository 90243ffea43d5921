"""Files that a command writes its figures or its chart to."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ConfigError

BEGINS = {"--json": "{[", "--svg": "<"}  # what the first character of such a file is


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
    if path.is_file():
        with open(path, "rb") as file:
            first = file.read(100).lstrip()[:1].decode(errors="replace")
        if first and first not in BEGINS[option]:
            raise ConfigError(f"{option} must not replace another kind of file; got {path}; choose another name")
    if (path.exists() or path.is_symlink()) and not path.is_file():
        return
    if not os.access(whole.parent, os.W_OK):
        raise PermissionError(13, f"{path} can't be written: its folder is read-only; choose another")
