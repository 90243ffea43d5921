"""Reads GGUF files, versions 2 and 3 (github.com/ggml-org/ggml, docs/gguf.md): metadata and tensors.

    4 bytes    "GGUF"
    uint32     version
    uint64     number of tensors
    uint64     number of metadata entries
    entries    key: string, uint32 type, value
    tensors    name: string, uint32 number of dimensions, uint64 each, the innermost first; uint32 kind, uint64 offset
    padding    to a multiple of general.alignment (default 32); offsets count from its end and are multiples of it
    the rest   data of the tensors

A string is a uint64 length in bytes, then UTF-8; an array a uint32 type, a uint64 length, then its values, which may be
arrays. Everything is little-endian. Nothing in a file is trusted: lengths are checked before memory is allocated, and
tensors become views of the mapped file only after all offsets have been checked.
"""

from __future__ import annotations

import math
import os
import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError
from ..packed import KINDS, Kind
from ..small_files import brief
from .bytes_of_file import map_file

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
BOOL, STRING, ARRAY = 7, 8, 9
NUMBERS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"), 1: np.dtype("<i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"), 4: np.dtype("<u4"),
    5: np.dtype("<i4"), 6: np.dtype("<f4"), BOOL: np.dtype("?"), 10: np.dtype("<u8"), 11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}  # fmt: skip
KIND_OF_NUMBER = {kind.number: kind for kind in KINDS.values()}
# Kinds that fastllm doesn't support; their names are for the error message.
OTHER_KINDS = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip

# Far above what real models have, and low enough that no file can exhaust memory.
MAX_ENTRIES = 1 << 16
MAX_TENSORS = 1 << 17
MAX_DIMENSIONS = 4
MAX_KEY = (1 << 16) - 1  # bytes, by the format
MAX_STRING = 1 << 24  # bytes
MAX_ITEMS = 1 << 22  # strings and arrays that are elements of arrays, in the whole file
MAX_DEPTH = 4  # levels of arrays within an array


class GgufTensor(NamedTuple):
    """A tensor in a file. shape: in NumPy's order, the innermost dimension last. data: uint8, a read-only view."""

    kind: Kind
    shape: tuple[int, ...]
    data: NDArray[np.uint8]


class GgufFile(NamedTuple):
    """The content of a file.

    metadata  key -> int, float, bool, str; an array of numbers is a NumPy array, one of strings or arrays a list
    tensors   by name, in the order of the file
    """

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins with GGUF's magic bytes. Raises OSError."""
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_gguf_file(path: str | os.PathLike[str]) -> GgufFile:
    """The metadata and tensors of a file; tensors are memory-mapped.

    Raises FormatError for a file that is truncated, damaged, of another format or version, or has tensors of a kind
    that is not in KINDS; OSError where it can't be opened.
    """
    data = map_file(path)
    try:
        return _Reader(data).file()
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None


class _Reader:
    """Reads a file from its beginning; `at` is the current offset."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self._data = data
        self._bytes = memoryview(data)  # type: ignore[arg-type]
        self._items = 0
        self.at = 0

    def file(self) -> GgufFile:
        if self._bytes[:4].tobytes() != MAGIC:
            raise FormatError(
                f"a GGUF file must begin with {MAGIC!r}; got {self._bytes[:4].tobytes()!r}; use another file"
            )
        self.at = len(MAGIC)
        version = self._integer("<I")
        if version not in VERSIONS:
            is_swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            received = "a big-endian file" if is_swapped else str(version)
            raise FormatError(f"GGUF must be of version 2 or 3, little-endian; got {received}; convert the model again")
        tensors = self._count(MAX_TENSORS, "tensors")
        entries = self._count(MAX_ENTRIES, "metadata entries")
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self._string(MAX_KEY)
            if key in metadata:
                raise FormatError(f"metadata keys must be distinct; got {brief(key)} twice; download it again")
            metadata[key] = self._value(self._integer("<I"), depth=0)
        return GgufFile(metadata, self._tensors(tensors, metadata.get("general.alignment", ALIGNMENT)))

    def _tensors(self, count: int, alignment: Any) -> dict[str, GgufTensor]:
        if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise FormatError(
                f"general.alignment must be a power of 2 from 8 to {1 << 20}; got {brief(alignment)}; download it again"
            )
        infos: dict[str, tuple[Kind, tuple[int, ...], int]] = {}
        for _ in range(count):
            name = self._string(MAX_KEY)
            if name in infos:
                raise FormatError(f"names of tensors must be distinct; got {brief(name)} twice; download it again")
            infos[name] = self._info(name)
        body = self._data[-(-self.at // alignment) * alignment :]
        tensors: dict[str, GgufTensor] = {}
        for name, (kind, shape, offset) in infos.items():
            size = math.prod(shape[:-1]) * kind.row_bytes(shape[-1])
            if offset % alignment or offset + size > len(body):
                raise FormatError(
                    f"tensor {brief(name)} must lie within the file, at a multiple of {alignment}; got bytes {offset} "
                    f"to {offset + size} of {len(body)}; download it again"
                )
            tensors[name] = GgufTensor(kind, shape, body[offset : offset + size])
        end = 0
        for name in sorted(tensors, key=lambda name: infos[name][2]):
            offset = infos[name][2]
            if offset < end:
                raise FormatError(f"tensors must not overlap; got {brief(name)} at {offset} < {end}; download it again")
            end = offset + len(tensors[name].data)
        return tensors

    def _info(self, name: str) -> tuple[Kind, tuple[int, ...], int]:
        """Kind, shape and offset of a tensor."""
        dimensions = self._integer("<I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise FormatError(
                f"tensor {brief(name)} must have 1 to {MAX_DIMENSIONS} dimensions; got {dimensions}; download it again"
            )
        shape = tuple(self._integer("<Q") for _ in range(dimensions))[::-1]
        number, offset = self._integer("<I"), self._integer("<Q")
        if number not in KIND_OF_NUMBER:
            raise FormatError(
                f"tensor {brief(name)} must be of a kind among {', '.join(KINDS)}; got "
                f"{OTHER_KINDS.get(number, f'number {number}')}; use a file of one of these, such as Q8_0 or Q4_K_M"
            )
        kind = KIND_OF_NUMBER[number]
        if not all(shape) or shape[-1] % kind.block:
            raise FormatError(
                f"tensor {brief(name)} must have rows of a multiple of {kind.block} weights, as {kind.name} has; got "
                f"{shape}; download it again"
            )
        return kind, shape, offset

    def _value(self, number: int, depth: int) -> Any:
        """A metadata value of the type with that number."""
        if number == STRING:
            return self._string(MAX_STRING)
        if number == ARRAY:
            return self._array(depth)
        if number not in NUMBERS:
            raise FormatError(f"a metadata type must be one of 0 to 12; got {number}; download it again")
        return self._numbers(number, 1)[0].item()

    def _array(self, depth: int) -> Any:
        number, length = self._integer("<I"), self._integer("<Q")
        if number in NUMBERS:
            return self._numbers(number, length)
        self._items += length
        if self._items > MAX_ITEMS:
            raise FormatError(f"arrays must have at most {MAX_ITEMS} items; got {self._items}; use another file")
        if number == STRING:
            return self._strings(length)
        if depth == MAX_DEPTH:
            raise FormatError(f"arrays must be at most {MAX_DEPTH} deep; got a deeper one; use another file")
        return [self._value(number, depth + 1) for _ in range(length)]

    def _numbers(self, number: int, length: int) -> NDArray[Any]:
        dtype = NUMBERS[number]
        data = self._data[self.at : self._advance(length * dtype.itemsize)]
        if number == BOOL and (data > 1).any():
            raise FormatError("a boolean must be 0 or 1; got another byte; download it again")
        return data.view(dtype)

    def _strings(self, count: int) -> list[str]:
        """The next `count` strings. As _string, but inlined for speed: a vocabulary has 100,000."""
        data, at, unpack = self._bytes, self.at, struct.Struct("<Q").unpack_from
        size = len(data)
        strings = []
        try:
            for _ in range(count):
                begin = at + 8
                at = begin + unpack(data, at)[0]
                if at > size:
                    break
                strings.append(str(data[begin:at], "utf-8"))
            else:
                self.at = at
                return strings
        except struct.error:
            raise FormatError("an array of strings must lie within the file; got its end; download it again") from None
        except UnicodeDecodeError as error:
            raise FormatError(f"an array must hold strings of UTF-8; got {error}; download it again") from None
        raise FormatError(f"a string must lie within the file; got {at - begin} bytes; download it again")

    def _string(self, longest: int) -> str:
        length = self._integer("<Q")
        if length > longest:
            raise FormatError(f"a string must have at most {longest} bytes; got {length}; download it again")
        begin = self.at
        try:
            return str(self._bytes[begin : self._advance(length)], "utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"a string must be UTF-8; got {error}; download it again") from None

    def _integer(self, format: str) -> int:
        begin = self.at
        self._advance(struct.calcsize(format))
        return int(struct.unpack_from(format, self._bytes, begin)[0])

    def _count(self, most: int, what: str) -> int:
        count = self._integer("<Q")
        if count > most:
            raise FormatError(f"a file must have at most {most} {what}; got {count}; download it again")
        return count

    def _advance(self, length: int) -> int:
        """Move `at` on by `length` bytes and return it. Raises FormatError beyond the end of the file."""
        if length > len(self._data) - self.at:
            raise FormatError(
                f"the file must have {length} more bytes at {self.at}; got an end at {len(self._data)}; "
                "download it again"
            )
        self.at += length
        return self.at
