"""Reads and writes safetensors files (github.com/huggingface/safetensors); reads models in several of them.

    8 bytes    length of the header, little-endian
    header     JSON: name -> {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, and perhaps
               "__metadata__"; spaces may follow
    the rest   the tensors: row-major, little-endian, one after another without gaps; offsets count from here

A model in several files has an index beside them, JSON with "weight_map": tensor -> name of its file. Nothing in a
file is trusted: tensors become views of the mapped file only after all offsets have been checked.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError
from ..small_files import MAX_JSON, brief, parse_json, read_json
from .bytes_of_file import map_file
from .rows import Progress

# Bytes per element. A file may have other types, whose sizes are not checked.
ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
MAX_DIMENSIONS = 8
ALIGNMENT = 8  # of the first tensor in files written here, in bytes


class StoredTensor(NamedTuple):
    """A tensor in a file.

    dtype  the file's name for it: "F32", "BF16", ...
    data   (bytes,) uint8, a read-only view of the mapped file
    """

    dtype: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]


class TensorToWrite(NamedTuple):
    """A tensor for write_safetensors. pieces: yields its bytes, piece by piece."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[NDArray[np.uint8]]]


def array_to_write(name: str, dtype: str, array: NDArray[Any]) -> TensorToWrite:
    """An array as a tensor to write, in one piece. dtype: the file's name for its type."""

    def whole() -> Iterator[NDArray[np.uint8]]:
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    return TensorToWrite(name, dtype, array.shape, whole)


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """The tensors of a file, in the order of the header.

    Raises FormatError for a file that is truncated, damaged or of another format, OSError where it can't be opened.
    """
    return _read(path)[0]


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The "__metadata__" of a file, {} if it has none. Values should be texts, but are not checked.

    Raises as read_safetensors does.
    """
    found = _read(path)[1]
    return found if isinstance(found, dict) else {}


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, StoredTensor], object]:
    data = map_file(path)
    length = int.from_bytes(data[:8].tobytes(), "little")
    if len(data) < 8 or length > len(data) - 8 or data[8:9].tobytes() != b"{":
        raise FormatError(f"{path} must be a whole safetensors file; got {len(data)} bytes that are none, or a part of "
                          "one; download it again")  # fmt: skip
    if length > MAX_JSON:
        raise FormatError(
            f"{path} must have a header of at most {MAX_JSON} bytes; got {length}; split the model into several files"
        )
    header = parse_json(data[8 : 8 + length].tobytes(), f"the header of {path}")
    metadata = header.pop("__metadata__", None)
    body = data[8 + length :]
    places = {name: _place(f"{path}: tensor {brief(name)}", entry, len(body)) for name, entry in header.items()}
    end = 0
    for begin, stop, name in sorted((begin, end, name) for name, (begin, end) in places.items()):
        if begin != end:
            raise FormatError(
                f"{path}: tensors must follow one another without gap or overlap; got {brief(name)} at {begin} "
                f"after an end at {end}; download it again"
            )
        end = stop
    if end != len(body):
        raise FormatError(f"{path}: the tensors must fill the file; got {len(body)} bytes for {end}; download it again")
    tensors = {
        name: StoredTensor(entry["dtype"], tuple(entry["shape"]), body[slice(*places[name])])
        for name, entry in header.items()
    }
    return tensors, metadata


def write_safetensors(
    path: Path,
    tensors: Iterable[TensorToWrite],
    progress: Progress | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a file, tensor after tensor, with one piece in memory at a time.

    metadata  texts for the header's "__metadata__"
    progress  called with the bytes of tensors written so far and in total

    Raises OSError where it can't be written.
    """
    tensors = list(tensors)
    header: dict[str, Any] = {"__metadata__": {**(metadata or {}), "format": "pt"}}  # transformers requires "format"
    end = 0
    for tensor in tensors:
        begin, end = end, end + math.prod(tensor.shape) * ITEM_SIZES[tensor.dtype]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (begin, end)}
    data = json.dumps(header, separators=(",", ":")).encode()
    data += b" " * (-len(data) % ALIGNMENT)
    with open(path, "wb") as file:
        file.write(len(data).to_bytes(8, "little"))
        file.write(data)
        done = 0
        for tensor in tensors:
            for piece in tensor.pieces():
                file.write(np.ascontiguousarray(piece).data)
                done += piece.nbytes
                if progress is not None:
                    progress(done, end)


def read_shards(index: Path) -> dict[str, StoredTensor]:
    """The tensors of a model in several files, from its index.

    Raises FormatError where a file is missing, damaged, in another folder, or has other tensors than the index says.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise FormatError(f'{index} must have a "weight_map" of file names; got none; download the model again')
    expected: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        expected.setdefault(file, set()).add(name)
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(expected):
        if not file.endswith(".safetensors") or set(file) & set("/\\:") or not file.isprintable():
            raise FormatError(f"{index} must name .safetensors files beside it; got {brief(file)}; use another model")
        path = index.parent / file
        if not path.is_file():
            raise FormatError(f"{path} must exist, by {index.name}; got no such file; download the model again")
        found = read_safetensors(path)
        if found.keys() != expected[file]:
            odd = sorted(found.keys() ^ expected[file])
            raise FormatError(
                f"{path} must have the tensors that {index.name} says; got {len(odd)} missing or unknown, "
                f"{', '.join(map(brief, odd[:3]))}; download the model again"
            )
        tensors |= found
    return tensors


def _place(what: str, entry: Any, size: int) -> tuple[int, int]:
    """Begin and end of a tensor in a body of `size` bytes. Raises FormatError for an invalid entry."""
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or not _is_counts(shape) or not _is_counts(offsets) or len(offsets) != 2:
        raise FormatError(f"{what} must have dtype, shape and data_offsets; got {brief(entry)}; download it again")
    begin, end = offsets
    needed = math.prod(shape) * ITEM_SIZES.get(dtype, 0)
    if not begin <= end <= size or (dtype in ITEM_SIZES and needed != end - begin):
        raise FormatError(
            f"{what} must be of the size that its type and shape say, within {size} bytes; got {brief(dtype)}, "
            f"{shape}, bytes {begin} to {end}; download it again"
        )
    return begin, end


def _is_counts(value: Any) -> TypeGuard[list[int]]:
    """Whether a value is a list of at most MAX_DIMENSIONS whole numbers from 0 that an int64 can hold."""
    return (
        isinstance(value, list)
        and len(value) <= MAX_DIMENSIONS
        and all(type(number) is int and 0 <= number < 1 << 63 for number in value)
    )
