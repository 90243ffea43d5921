"""Numbers into the kinds of packed.py and back, as llama.cpp's reference does it (ggml-quants.c), to the last bit.

What the kinds are stands in `kernels/reference/packed.py`, which takes them apart.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .packed import KINDS, Packed

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

PIECE = 1 << 19  # weights dealt with at a time: what lies between is a few times two megabytes


def dequantize(packed: Packed) -> Floats:
    """The matrix in float32, (rows, columns)."""
    from .kernels.reference.packed import unpacked  # and with it the kernels, which take longer to load than all else

    rows, columns = packed.shape
    out = np.empty((rows, columns), np.float32)
    step = max(1, PIECE // max(1, columns))
    for begin in range(0, rows if columns else 0, step):
        out[begin : begin + step] = unpacked(packed.data[begin : begin + step], packed.kind.number)
    return out


def quantize(array: NDArray[np.floating], kind: str) -> Packed:
    """The matrix (rows, columns), each number rounded to the nearest that the kind can tell within its block.

    kind  "F32", "F16", "BF16", "Q8_0", "Q4_0" or "Q4_1"

    A C-contiguous float32 matrix as F32 is a view; numbers of other types are taken as float32 first. Raises
    ValueError for another kind, for columns that are no multiple of its block, and for numbers that it can't hold: NaN
    and infinity in blocks, and too large ones.

    >>> quantize(np.full((2, 32), 0.5), "Q8_0").shape
    (2, 32)
    """
    if kind not in PACK:
        raise ValueError(f"kind must be one of {', '.join(PACK)}; got {kind!r}; use Q8_0 for half of float16's size")
    block = KINDS[kind].block
    array = np.asarray(array)
    if array.ndim != 2 or array.shape[1] % block:
        raise ValueError(
            f"a matrix of {kind} must have a multiple of {block} columns; got shape {array.shape}; use F16 for it"
        )
    rows, columns = array.shape
    if kind == "F32" and array.dtype == np.float32:
        return Packed(np.ascontiguousarray(array).view(np.uint8), KINDS[kind])
    out = np.empty((rows, KINDS[kind].row_bytes(columns)), np.uint8)
    step = max(1, PIECE // max(1, columns))
    for begin in range(0, rows if columns else 0, step):
        given = array[begin : begin + step]
        with np.errstate(over="ignore", invalid="ignore"):  # looked for below
            piece = np.ascontiguousarray(given, np.float32)
            packed = PACK[kind](piece.reshape(-1, block))
        if packed is None or (piece.dtype != given.dtype and _overflows(given, piece)):
            raise ValueError(
                f"numbers must be finite and within {kind}'s range; got some in rows {begin} to "
                f"{begin + len(piece) - 1} that are not; {'scale them down' if kind == 'F32' else 'use F32'}"
            )
        out[begin : begin + step] = packed.reshape(len(piece), -1)
    return Packed(out, KINDS[kind])


def _overflows(given: NDArray[np.floating], rounded: NDArray[np.floating]) -> bool:
    """Whether a finite number became infinite."""
    return bool((np.isinf(rounded) & np.isfinite(given)).any())


def _halves(*columns: Floats) -> Bytes | None:
    """Columns (n, 1) as float16, side by side; None where one is too large."""
    halves = np.concatenate(columns, axis=1).astype("<f2")
    return halves.view(np.uint8) if np.isfinite(halves).all() else None


def _inverse(d: Floats) -> Floats:
    """1 / d; 0 where d is 0, or so small that it is 0 in float16 and 1 / d is too large."""
    with np.errstate(divide="ignore"):
        inverse = np.float32(1) / d
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _joined(scales: Bytes | None, q: Bytes) -> Bytes | None:
    return None if scales is None else np.concatenate([scales, q], axis=1)


def _pack_nibbles(q: Floats) -> Bytes:
    """(n, 32) numbers, cut off towards 0 and to four bits -> (n, 16) bytes."""
    whole = np.minimum(q, np.float32(15)).astype(np.uint8)
    return whole[:, :16] | whole[:, 16:] << np.uint8(4)


def _pack_f16(blocks: Floats) -> Bytes | None:
    halves = blocks.astype("<f2")
    return None if _overflows(blocks, halves) else halves.view(np.uint8)


def _pack_bf16(blocks: Floats) -> Bytes | None:
    """To nearest, ties to even; a NaN stays one, made quiet."""
    bits = blocks.view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + (bits >> 16 & 1))
    rounded = np.where(np.isnan(blocks), bits | np.uint32(1 << 22), rounded)
    rounded &= np.uint32(0xFFFF0000)
    return None if _overflows(blocks, rounded.view(np.float32)) else (rounded >> 16).astype("<u2").view(np.uint8)


def _pack_q8_0(blocks: Floats) -> Bytes | None:
    """d = largest / 127; halves are rounded away from 0."""
    d = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scales = _halves(d)
    if scales is None:
        return None
    scaled = blocks * _inverse(d)
    whole = np.floor(np.abs(scaled))
    whole += np.abs(scaled) - whole >= 0.5
    return _joined(scales, np.copysign(whole, scaled).astype(np.int8).view(np.uint8))


def _pack_q4_0(blocks: Floats) -> Bytes | None:
    """d = the weight farthest from 0 / -8, so that it becomes 0."""
    farthest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
    d = farthest / np.float32(-8)
    scales = _halves(d)
    return None if scales is None else _joined(scales, _pack_nibbles(blocks * _inverse(d) + np.float32(8.5)))


def _pack_q4_1(blocks: Floats) -> Bytes | None:
    """m = the least, d = (largest - least) / 15."""
    least = blocks.min(axis=1, keepdims=True)
    d = (blocks.max(axis=1, keepdims=True) - least) / np.float32(15)
    scales = _halves(d, least)
    return None if scales is None else _joined(scales, _pack_nibbles((blocks - least) * _inverse(d) + np.float32(0.5)))


PACK: dict[str, Callable[[Floats], Bytes | None]] = {
    "F32": lambda blocks: blocks.view(np.uint8),
    "F16": _pack_f16,
    "BF16": _pack_bf16,
    "Q8_0": _pack_q8_0,
    "Q4_0": _pack_q4_0,
    "Q4_1": _pack_q4_1,
}
