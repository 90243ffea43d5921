"""Small files from strangers: read whole, up to a limit of bytes; JSON is checked."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from pathlib import Path
from reprlib import Repr
from typing import Any, NoReturn

from .errors import FormatError

MAX_JSON = 16 << 20  # bytes; the largest index of shards has 2 MB. Parsed, JSON takes some twenty times as much memory
AGAIN = "download the model again"
MOST_SHOWN = 400  # characters of a value in a message

_repr = Repr()
_repr.maxstring = _repr.maxother = 80


def brief(value: object) -> str:
    """The repr of a value for a message: one line of at most MOST_SHOWN characters, however large the value."""
    text = _repr.repr(value).replace("\n", " ")  # some levels of lists may still be a million characters
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."


def read_small(path: str | os.PathLike[str], most: int, fix: str = AGAIN) -> bytes:
    """The content of a file of at most `most` bytes.

    fix  what the error message tells the user to do

    Raises FormatError for a larger file, a folder, pipe or device, OSError where it can't be opened.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device may never end
        raise FormatError(f"{path} must be a file; got a folder, pipe or device; {fix}")
    if status.st_size > most:
        raise FormatError(f"{path} must have at most {most} bytes; got {status.st_size}; {fix}")
    with open(path, "rb") as file:
        return file.read(status.st_size)  # no more: files such as those in /proc are longer than they say


def read_json(path: Path, fix: str = AGAIN, most: int = MAX_JSON) -> dict[str, Any]:
    """The JSON object in a file. Raises FormatError where there is none, OSError where it can't be opened.

    fix   what the error message tells the user to do
    most  limit of its size, in bytes
    """
    return parse_json(read_small(path, most, fix), str(path), fix)


def parse_json(data: bytes, what: str, fix: str = AGAIN) -> dict[str, Any]:
    """The JSON object in bytes. Raises FormatError, whose message begins with `what`, also for a repeated key."""
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
