"""Writing a file so that a reader finds the old one or the new one whole, never a part of either.

Also: the folder that it is to be in.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

WORK = ".work.tmp"  # how names of what is being made end


def make_parent(path: Path) -> None:
    """Make the folder that a path is in. Raises NotADirectoryError where that can't be one, OSError as mkdir does."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next(parent for parent in path.absolute().parents if parent.exists())
        raise NotADirectoryError(
            f"{path} must be in a folder; got {file}, which is a file; choose another name"
        ) from None


def work_path(target: Path) -> Path:
    """A path beside a file or folder to make a new one at: hidden, of this process, and not there.

    What processes that were killed have left of that kind goes.
    """
    prefix = f".{target.name}."
    for left in target.parent.glob(f"{glob.escape(prefix)}*{WORK}"):
        owner = left.name.removeprefix(prefix).removesuffix(WORK)
        if owner.isdecimal() and not _is_running(int(owner)):
            _remove(left)
    path = target.with_name(f"{prefix}{os.getpid()}{WORK}")
    _remove(path)
    return path


def flush(path: Path) -> None:
    """Have a file on the disk: a rename may reach it before the bytes do."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    """Whether another process is, or can't be known to have ended."""
    if process == os.getpid():
        return False
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends, its file takes the place of `path`.

    When the block raises (a full disk, Ctrl-C), the temporary file goes and `path` stays as it was.
    Raises OSError where the folder is missing or can't be written.

        with replacing("notes.txt") as temporary:
            temporary.write_text("all or nothing")
    """
    path = Path(path)
    temporary = work_path(path)
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text in UTF-8, whole or not at all. Raises OSError."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any, indent: int = 1) -> None:
    """Write a value as JSON, likewise."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent) + "\n")
