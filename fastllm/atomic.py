"""Atomic writes: a reader finds the old file or the new one, whole, never a part of either."""

from __future__ import annotations

import glob
import itertools
import json
import os
import platform
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


def _namespace() -> str:
    """What process ids are unique within: a PID namespace of one boot. "" where the system doesn't say."""
    try:
        return os.readlink("/proc/self/ns/pid") + Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        return ""


WORK = ".work.tmp"  # suffix of unfinished files and folders
ABANDONED = 24 * 3600.0  # seconds after which an unfinished file of a process elsewhere counts as abandoned
# Identify this process: a process id is unique only within a host, a container and a boot, and is reused later.
_place = f"{zlib.crc32(f'{platform.node()} {_namespace()}'.encode()):08x}"
_token = os.urandom(3).hex()
_number = itertools.count()


def make_parent(path: Path) -> None:
    """Create the parent folder of a path.

    Raises NotADirectoryError where one of its parents is a file or a link to nothing, OSError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        found = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
        what = "a file" if found.exists() else "a link to nothing"
        raise NotADirectoryError(
            f"{path} must be in a folder; got {found}, which is {what}; choose another name"
        ) from None


def work_path(target: Path) -> Path:
    """A hidden path beside `target` at which to make its replacement: unique to this call, and not yet there.

    Removes what killed processes have left at such paths.
    """
    prefix = f".{target.name}."
    for left in target.parent.glob(f"{glob.escape(prefix)}*{WORK}"):
        if _is_abandoned(left, left.name.removeprefix(prefix).removesuffix(WORK)):
            _remove(left)
    return target.with_name(f"{prefix}{_place}-{os.getpid()}-{_token}-{next(_number)}{WORK}")


def _is_abandoned(path: Path, owner: str) -> bool:
    """Whether the owner of a work_path has ended; where that can't be known, whether the path is over a day old."""
    place, _, process_and_rest = owner.partition("-")
    process, _, rest = process_and_rest.partition("-")
    if not process.isdecimal():
        return False
    if place == _place:
        if int(process) == os.getpid():
            return not rest.startswith(f"{_token}-")
        if os.name == "posix":
            return not _is_running(int(process))
    try:
        return time.time() - path.stat().st_mtime > ABANDONED
    except OSError:
        return False


def real_path(path: str | os.PathLike[str]) -> Path:
    """The absolute path, with symbolic links resolved."""
    return Path(os.path.realpath(path))


def is_replaced(path: Path) -> bool:
    """Whether `replacing` puts a new file at a path, rather than writing into what is there (a pipe, a device)."""
    if not path.exists():
        return True
    return path.is_file() and _stream_of(path) is None


def _stream_of(path: Path) -> int | None:
    """1 or 2 where a path is this process's standard output or standard error, such as /dev/stdout; else None."""
    for stream in (1, 2):
        with suppress(OSError):
            if os.path.samestat(os.stat(path), os.fstat(stream)):
                return stream
    return None


def _open_in_place(path: Path) -> BinaryIO:
    """Open what is at a path for writing; standard output and error after what has been printed so far."""
    stream = _stream_of(path)
    if stream is None:
        return path.open("wb")
    for file in (sys.stdout, sys.stderr):
        if file is not None:
            file.flush()
    return os.fdopen(os.dup(stream), "wb")


def flush(path: Path) -> None:
    """Write a file's bytes through to the disk; otherwise a rename may get there before them."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    """Whether a process of this system runs, or can't be known to have ended."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


@contextmanager
def naming_target(target: str | os.PathLike[str]) -> Iterator[None]:
    """A block that writes what is to replace `target`: a system error names it, not a hidden file or none at all.

    Errors without a number are our own, and complete.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        reason = os.strerror(error.errno)  # not error.strerror: that may be such a message on a file in a folder
        raise OSError(
            error.errno, f"{target} could not be written: {reason}; what was there before is untouched"
        ) from error


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends, the file written there replaces `path`.

    If the block raises (a full disk, Ctrl-C), the temporary file is removed and `path` stays as it was. Through a
    symbolic link, its target is replaced; permissions are kept. A pipe, a device, or this process's own output
    (/dev/stdout) is not replaced: the content is copied into it.
    Raises OSError where the folder is missing or can't be written.

        with replacing("notes.txt") as temporary:
            temporary.write_text("all or nothing")
    """
    if not is_replaced(given := Path(path)):
        with naming_target(given), tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / given.name
            yield temporary
            with temporary.open("rb") as new, _open_in_place(given) as there:
                shutil.copyfileobj(new, there)
        return
    path = real_path(path)
    temporary = work_path(path)
    try:
        with naming_target(given):
            yield temporary
            flush(temporary)
            with suppress(OSError):
                shutil.copymode(path, temporary)
            os.replace(temporary, path)
    finally:
        _remove(temporary)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text as UTF-8, whole or not at all. Raises OSError."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any, indent: int = 1) -> None:
    """Write a value as JSON, whole or not at all. Raises OSError."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent) + "\n")
