"""Which files make a model's folder, and how a new folder takes the place of one.

It is written whole beside the old one, so that at any moment one of the two is complete: `.model.<owner>.work.tmp`
becomes `model` after that has become `.model.old`. Files of others in the folder come along.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from ..atomic import flush, make_parent, real_path, work_path
from . import peft
from .huggingface_folder import CONFIG, GENERATION, WEIGHTS, holds_a_model

TOKENIZER = "tokenizer.json"
OPTIMIZER, PROGRESS = "optimizer.safetensors", "progress.json"
# What we and transformers write of a model, beside its weights (see is_of_a_model), and what only a checkpoint has.
MODEL_FILES = {
    CONFIG, GENERATION, TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model",
}  # fmt: skip
SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
CHECKPOINT_FILES = {OPTIMIZER, PROGRESS, peft.CONFIG, peft.WEIGHTS}
# At taking an old folder's place, into which a reader may be putting it back; on Windows, no folder can be renamed in
# which a file is open, be it for a scanner's moment.
ATTEMPTS, WAIT = 10, 0.1
READS = 10  # of a folder that is replaced all the time, before it is locked
T = TypeVar("T")


def is_checkpoint(folder: Path) -> bool:
    """Whether a model or an adapter is there whose weights are in one file, as those of ours are."""
    return any(
        (folder / config).is_file() and (folder / weights).is_file()
        for config, weights in ((CONFIG, WEIGHTS), (peft.CONFIG, peft.WEIGHTS))
    )


def is_of_a_model(path: Path) -> bool:
    """Whether a file in a model's folder is a part of the model, which a new one replaces."""
    return path.is_file() and (path.name in MODEL_FILES or SHARD.fullmatch(path.name) is not None)


def holds_config(folder: Path) -> bool:
    """Whether a model's config is there, with its weights or without."""
    return (folder / CONFIG).is_file()


def is_free(target: Path, replaces: Callable[[Path], bool]) -> bool:
    """Whether nothing stands at a real_path, or an empty folder, or one that may be replaced, after `restore`."""
    with one_at_a_time(target.parent):
        restore(target)
        return not target.exists() or _is_empty(target) or replaces(target)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


@contextmanager
def replacing_folder(target: Path, replaces: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield an empty folder; when the block ends, it stands at `target`, a real_path that is_free.

    replaces  whether a folder that stands there then may be replaced

    When the block raises, the folder goes and what was there stays. Raises OSError where it can't be written or the old
    one is in use, FileExistsError where something else has come there meanwhile.
    """
    make_parent(target)
    new = work_path(target)
    try:
        new.mkdir()
        yield new
        _flush(new)
        with one_at_a_time(target.parent):
            _take_place(new, target, replaces)
            _move_others(_set_aside(target), target)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def restore(folder: Path) -> None:
    """Put the old folder back if the writer of a new one was killed between the two renames."""
    folder = real_path(folder)
    old = _set_aside(folder)
    if not folder.exists() and (is_checkpoint(old) or holds_a_model(old)):
        try:
            os.replace(old, folder)
        except OSError:
            if not folder.exists():  # or it was between the two, and has gone on
                raise


def is_set_aside(folder: Path) -> bool:
    """Whether the writer of a new folder has renamed the old one, and may have been killed before it could go on."""
    return _set_aside(real_path(folder)).exists()


def _set_aside(folder: Path) -> Path:
    """The name of the old folder while a new one takes its place; hidden, so that it is ours."""
    return folder.parent / f".{folder.name}.old"


def of_one_moment(path: Path, read: Callable[[], T]) -> T:
    """What is read of a model's folder, file by file: again, if another has taken its place meanwhile."""
    for _ in range(READS):
        before = _identity(path)
        try:
            found = read()
        except (OSError, ValueError):
            if _identity(path) == before:
                raise
        else:
            if _identity(path) == before:
                return found
    with one_at_a_time(_model_in(path).absolute().parent):
        return read()  # nobody replaces it now


def _model_in(path: Path) -> Path:
    """A run's checkpoint folder, or the folder itself."""
    return path / "checkpoint" if (path / "checkpoint").is_dir() else path


def _identity(path: Path) -> list[tuple[int, int, int] | None]:
    """What changes when a model, or an adapter, takes the place of another at a path."""
    folder = _model_in(path)
    found: list[tuple[int, int, int] | None] = []
    for place in (folder, folder / peft.CONFIG, folder / peft.WEIGHTS):
        try:
            state = os.stat(place)
        except OSError:
            found.append(None)
        else:
            found.append((state.st_ino, state.st_mtime_ns, state.st_ctime_ns))
    return found


@contextmanager
def one_at_a_time(parent: Path) -> Iterator[None]:
    """A block that those who replace folders in one parent run one after another, where the system can see to it."""
    try:
        import fcntl
    except ImportError:  # on Windows
        yield
        return
    handle = None
    with suppress(OSError):
        handle = os.open(parent, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _flush(folder: Path) -> None:
    """Have the files on the disk before their folder gets its name."""
    for path in folder.iterdir():
        flush(path)


def _take_place(new: Path, target: Path, replaces: Callable[[Path], bool]) -> None:
    """Rename: the target, where there is one, gets the old name, and the new folder the target's."""
    old = _set_aside(target)
    for attempt in range(ATTEMPTS):
        try:
            _move_others(old, target)
            if _is_empty(target):
                target.rmdir()
            elif target.exists() and not replaces(target):
                raise FileExistsError(f"{target} was free; got something there meanwhile; choose another name")
            _swap(new, target, old)
            return
        except OSError as error:
            reason = error
            is_held = isinstance(error, PermissionError) and sys.platform == "win32"
            if not is_held and (error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT) or not new.exists()):
                raise
            if is_held:
                time.sleep(attempt * WAIT)
    raise OSError(
        errno.EBUSY,
        f"{target} could not be replaced, as its files were in use each time: {reason.strerror or reason}; close what "
        "reads it (a model that was opened there does until unfreeze()), or choose another folder",
    )


def _swap(new: Path, target: Path, old: Path) -> None:
    """Both renames, or neither."""
    try:
        if target.exists():
            os.replace(target, old)
        os.replace(new, target)
    except BaseException:
        if old.exists() and not target.exists():
            with suppress(OSError):
                os.replace(old, target)
        raise


def _move_others(old: Path, folder: Path) -> None:
    """What is no part of the model in an old folder, a user's notes say, goes to the new one; the rest is removed.

    What can't be, as it is another user's say, stays in a folder beside, of which a warning tells.
    """
    if not old.is_dir() or not folder.is_dir():
        return
    for entry in old.iterdir():
        target = folder / entry.name
        with suppress(OSError):
            if is_of_a_model(entry) or (entry.name in CHECKPOINT_FILES and entry.is_file()):
                entry.unlink(missing_ok=True)
            elif not target.exists():
                os.replace(entry, target)
    try:
        old.rmdir()
    except OSError:
        paths = (folder.with_name(f"{folder.name}.kept-{number}") for number in itertools.count(1))
        kept = next(path for path in paths if not path.exists())
        os.replace(old, kept)
        warnings.warn(f"not all that stood in {folder} before could be moved or removed; it is in {kept}", stacklevel=2)
