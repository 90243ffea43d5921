"""Small files that strangers wrote: read whole, where they have at most so many bytes, and their JSON, checked."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from pathlib import Path
from reprlib import Repr
from typing import Any, NoReturn

from .errors import FormatError

MAX_JSON = 16 << 20  # bytes; the largest index of shards has two; parsed, JSON takes some twenty times its bytes
AGAIN = "download the model again"

_repr = Repr()
_repr.maxstring = _repr.maxother = 80


def brief(value: object) -> str:
    """A value for a message: one short line, however large it is."""
    return _repr.repr(value).replace("\n", " ")


def read_small(path: str | os.PathLike[str], most: int, fix: str = AGAIN) -> bytes:
    """What a file of at most `most` bytes holds. Raises FormatError for another, OSError where it can't be opened.

    fix  what to do then
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # of a pipe or a device, there may be no end
        raise FormatError(f"{path} must be a file; got a folder, pipe or device; {fix}")
    if status.st_size > most:
        raise FormatError(f"{path} must have at most {most} bytes; got {status.st_size}; {fix}")
    with open(path, "rb") as file:
        return file.read(status.st_size)  # the system's own files may hold more, without an end


def read_json(path: Path, fix: str = AGAIN, most: int = MAX_JSON) -> dict[str, Any]:
    """The JSON object in a file. Raises FormatError where there is none, OSError where it can't be opened.

    fix   what to do then
    most  bytes that it may have
    """
    return parse_json(read_small(path, most, fix), str(path), fix)


def parse_json(data: bytes, what: str, fix: str = AGAIN) -> dict[str, Any]:
    """The JSON object in bytes, with each key once. Raises FormatError, which names `what`."""
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
