"""The JSON file that a command writes its figures to."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError


def check_json(path: Path, *others: str | None) -> None:
    """Raise ConfigError, before any work, for a file in no folder, or that is one of the others or in one."""
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise ConfigError(f"--json must name a file in a folder that is there; got {path}; choose another name")
    whole = path.resolve()
    for other in (Path(name).resolve() for name in others if name is not None):
        if other == whole or (other.is_dir() and other in whole.parents):
            raise ConfigError(
                f"--json must name a file of its own; got {path}, which is of {other}; choose another name"
            )
