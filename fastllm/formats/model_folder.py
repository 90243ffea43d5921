"""Which files make up a model's folder, and how a new folder replaces one.

The new one is written beside the old one, so that one of the two is complete at any moment: `model` is renamed to
`.model.old`, then `.model.<owner>.work.tmp` to `model`. Files that don't belong to the model are moved to the new one.
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

from ..atomic import flush, make_parent, naming_target, real_path, work_path
from . import peft
from .huggingface_folder import CONFIG, GENERATION, WEIGHTS, holds_a_model

TOKENIZER = "tokenizer.json"
OPTIMIZER, PROGRESS = "optimizer.safetensors", "progress.json"
# Files that we and transformers write of a model, without its weights and chat templates in TEMPLATES (see
# is_of_a_model); files of checkpoints alone.
MODEL_FILES = {
    CONFIG, GENERATION, TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "chat_template.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model",
}  # fmt: skip
TEMPLATES, TEMPLATE = "additional_chat_templates", "*.jinja"
SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
CHECKPOINT_FILES = {OPTIMIZER, PROGRESS, peft.CONFIG, peft.WEIGHTS}
# Attempts to replace a folder: a reader may restore the old one in between, and on Windows a folder with an open file
# can't be renamed. There, the wait grows by WAIT seconds from one attempt to the next.
ATTEMPTS, WAIT = 10, 0.1
READS = 10  # attempts to read a folder that is being replaced, before it is locked
T = TypeVar("T")


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a model or an adapter with its weights in one file, as fastllm writes them."""
    return any(
        (folder / config).is_file() and (folder / weights).is_file()
        for config, weights in ((CONFIG, WEIGHTS), (peft.CONFIG, peft.WEIGHTS))
    )


def is_of_a_model(path: Path) -> bool:
    """Whether what is in a model's folder is part of the model, so that a new model replaces it."""
    if path.name == TEMPLATES:
        return path.is_dir() and all(file.match(TEMPLATE) for file in path.iterdir())
    return path.is_file() and (path.name in MODEL_FILES or SHARD.fullmatch(path.name) is not None)


def holds_config(folder: Path) -> bool:
    """Whether a folder has a model's config.json, with its weights or without."""
    return (folder / CONFIG).is_file()


def is_free(target: Path, replaces: Callable[[Path], bool]) -> bool:
    """Whether nothing is at a real_path, after `restore`, or an empty folder, or one that may be replaced."""
    with one_at_a_time(target.parent):
        restore(target)
        return not target.exists() or _is_empty(target) or replaces(target)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


@contextmanager
def replacing_folder(target: Path, replaces: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield an empty folder; when the block ends, it is moved to `target`, a real_path that is_free.

    replaces  whether a folder that is then at `target` may be replaced

    If the block raises, the new folder is removed and the old one stays. Raises OSError where it can't be written or
    the old one is in use, FileExistsError if something else has appeared at `target` meanwhile.
    """
    make_parent(target)
    new = work_path(target)
    try:
        with naming_target(target):
            new.mkdir()
            yield new
            _flush(new)
            with one_at_a_time(target.parent):
                _take_place(new, target, replaces)
                _move_others(_old_path(target), target)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def restore(folder: Path) -> None:
    """Put the old folder back if the writer of a new one was killed between the two renames."""
    folder = real_path(folder)
    old = _old_path(folder)
    if not folder.exists() and (is_checkpoint(old) or holds_a_model(old)):
        try:
            os.replace(old, folder)
        except OSError:
            if not folder.exists():  # if it exists, the writer was still alive and has finished
                raise


def is_being_replaced(folder: Path) -> bool:
    """Whether a writer has renamed a folder, to put a new one there; it may have been killed since."""
    return _old_path(real_path(folder)).exists()


def _old_path(folder: Path) -> Path:
    """The hidden path of the old folder while a new one replaces it."""
    return folder.parent / f".{folder.name}.old"


def read_consistently(path: Path, read: Callable[[], T]) -> T:
    """Call `read`, which reads a model's folder file by file, until the folder wasn't replaced meanwhile."""
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
        return read()  # it can't be replaced now


def _model_in(path: Path) -> Path:
    """A run's checkpoint folder, or the folder itself."""
    return path / "checkpoint" if (path / "checkpoint").is_dir() else path


def _identity(path: Path) -> list[tuple[int, int, int] | None]:
    """Inodes and times that change when the model or adapter at a path is replaced."""
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
    """Lock a parent folder, so that only one process at a time replaces folders in it. Does nothing on Windows."""
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
    """Write a folder's files through to the disk, before the folder is renamed."""
    for path in folder.iterdir():
        flush(path)


def _take_place(new: Path, target: Path, replaces: Callable[[Path], bool]) -> None:
    """Rename an existing target to its old name, and the new folder to the target; again if others interfere."""
    old = _old_path(target)
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
        f"{target} could not be replaced, as its files were in use each time: {reason.strerror or reason}; close what "
        "reads it (a model that was opened there does until unfreeze()), or choose another folder",
    )


def _swap(new: Path, target: Path, old: Path) -> None:
    """Do both renames, or neither."""
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
    """Move files that aren't part of the model, such as a user's notes, from an old folder to the new; remove the rest.

    What can't be moved or removed, such as another user's file, stays in a folder beside it, and a warning says so.
    """
    if not old.is_dir() or not folder.is_dir():
        return
    for entry in old.iterdir():
        target = folder / entry.name
        with suppress(OSError):
            if entry.name == TEMPLATES and not entry.is_symlink():  # its other files are a user's
                for template in entry.glob(TEMPLATE):
                    template.unlink()
            if is_of_a_model(entry) and entry.is_dir():
                entry.rmdir()
            elif is_of_a_model(entry) or (entry.name in CHECKPOINT_FILES and entry.is_file()):
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
