"""Quantisation and dequantisation, bit for bit as in llama.cpp's reference code (ggml-quants.c).

`kernels/reference/packed.py`, which unpacks them, describes the kinds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .packed import KINDS, Packed

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

PIECE = 1 << 19  # weights converted at a time: 2 MB as float32, and a few temporary arrays of that size


def dequantize(packed: Packed) -> Floats:
    """The matrix in float32, (rows, columns)."""
    from .kernels.reference.packed import unpacked  # late, as it imports the kernels, which takes long

    rows, columns = packed.shape
    out = np.empty((rows, columns), np.float32)
    step = max(1, PIECE // max(1, columns))
    for begin in range(0, rows, step):
        out[begin : begin + step] = unpacked(packed.data[begin : begin + step], packed.kind.number)
    return out


def quantize(array: NDArray[np.floating], kind: str) -> Packed:
    """Convert a matrix (rows, columns), rounding as llama.cpp does.

    kind  "F32", "F16", "BF16", "Q8_0", "Q4_0" or "Q4_1"

    A C-contiguous float32 matrix as F32 is a view. Numbers of other types are converted to float32 first. Raises
    ValueError for another kind, a number of columns that is not a multiple of its block, finite numbers beyond its
    range, and NaN or infinity for the quantised kinds.

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
    for begin in range(0, rows, step):
        given = array[begin : begin + step]
        with np.errstate(over="ignore", invalid="ignore"):  # checked below
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
    """Columns (n, 1) as the bytes of float16, side by side; None where one is NaN, infinite or too large."""
    halves = np.concatenate(columns, axis=1).astype("<f2")
    return halves.view(np.uint8) if np.isfinite(halves).all() else None


def _inverse(d: Floats) -> Floats:
    """1 / d; 0 where d is 0, or so small that 1 / d overflows (such a d is 0 in float16)."""
    with np.errstate(divide="ignore"):
        inverse = np.float32(1) / d
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _joined(scales: Bytes | None, q: Bytes) -> Bytes | None:
    return None if scales is None else np.concatenate([scales, q], axis=1)


def _pack_nibbles(q: Floats) -> Bytes:
    """(n, 32) numbers >= 0, truncated and limited to 15 -> (n, 16) bytes: the first 16 are the low halves."""
    whole = np.minimum(q, np.float32(15)).astype(np.uint8)
    return whole[:, :16] | whole[:, 16:] << np.uint8(4)


def _pack_f16(blocks: Floats) -> Bytes | None:
    halves = blocks.astype("<f2")
    return None if _overflows(blocks, halves) else halves.view(np.uint8)


def _pack_bf16(blocks: Floats) -> Bytes | None:
    """Rounds to nearest, ties to even; a NaN stays one, made quiet."""
    bits = blocks.view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + (bits >> 16 & 1))
    rounded = np.where(np.isnan(blocks), bits | np.uint32(1 << 22), rounded)
    rounded &= np.uint32(0xFFFF0000)
    return None if _overflows(blocks, rounded.view(np.float32)) else (rounded >> 16).astype("<u2").view(np.uint8)


def _pack_q8_0(blocks: Floats) -> Bytes | None:
    """d = largest magnitude / 127; weights / d are rounded to nearest, ties away from 0."""
    d = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scales = _halves(d)
    if scales is None:
        return None
    scaled = blocks * _inverse(d)
    whole = np.floor(np.abs(scaled))
    whole += np.abs(scaled) - whole >= 0.5
    return _joined(scales, np.copysign(whole, scaled).astype(np.int8).view(np.uint8))


def _pack_q4_0(blocks: Floats) -> Bytes | None:
    """d = w / -8 for the weight w of largest magnitude, whose four bits are then 0; they stand for (bits - 8) * d."""
    farthest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
    d = farthest / np.float32(-8)
    scales = _halves(d)
    return None if scales is None else _joined(scales, _pack_nibbles(blocks * _inverse(d) + np.float32(8.5)))


def _pack_q4_1(blocks: Floats) -> Bytes | None:
    """m = the least weight, d = (largest - least) / 15; four bits stand for bits * d + m."""
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
