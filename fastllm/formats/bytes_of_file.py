"""What strangers' files are read with: their bytes, memory-mapped, and their JSON, checked."""

from __future__ import annotations

import json
import mmap
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from reprlib import Repr
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fastllm.errors import FormatError

MAX_JSON = 16 << 20  # bytes; the largest index of shards has two; parsed, JSON takes some twenty times its bytes
AGAIN = "download the model again"

_repr = Repr()
_repr.maxstring = _repr.maxother = 80


def brief(value: object) -> str:
    """A value for a message: one short line, however large it is."""
    return _repr.repr(value).replace("\n", " ")


def map_file(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """The bytes of a file, (size,) uint8, read-only and memory-mapped: it takes no memory to open it.

    Linux is asked to read it into large pages, through which a core reads up to 1.1 times as fast.

    Raises OSError where it can't be opened.
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:  # which can't be mapped
            return np.frombuffer(b"", np.uint8)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # of a kernel without large pages
            mapped.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapped, np.uint8)


def mapped_file(array: NDArray[Any]) -> mmap.mmap | None:
    """The file's map that an array is a view of; None where it has memory of its own."""
    base: object = array
    while isinstance(base, (np.ndarray, memoryview)):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return base if isinstance(base, mmap.mmap) else None


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Have a FormatError of what is done within name the file or folder, if it doesn't."""
    try:
        yield
    except FormatError as error:
        message = str(error)
        raise FormatError(message if str(path) in message else f"{path}: {message}") from None


def read_json(path: Path, fix: str = AGAIN) -> dict[str, Any]:
    """The JSON object in a file. Raises FormatError where there is none, OSError where it can't be opened.

    fix  what to do then
    """
    size = path.stat().st_size
    if size > MAX_JSON:
        raise FormatError(f"{path} must have at most {MAX_JSON} bytes; got {size}; {fix}")
    return parse_json(path.read_bytes(), str(path), fix)


def parse_json(data: bytes, what: str, fix: str = AGAIN) -> dict[str, Any]:
    """The JSON object in at most MAX_JSON bytes, with each key once. Raises FormatError, which names `what`."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_reject)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        reason = str(error).replace("\n", " ")[:100]
        raise FormatError(f"{what} must be JSON in UTF-8; got {reason}; {fix}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{what} must be a JSON object; got {brief(value)}; {fix}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {brief(twice)} twice")
    return value


def _reject(constant: str) -> NoReturn:
    raise ValueError(f"the number {constant}")
