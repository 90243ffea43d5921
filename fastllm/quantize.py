"""Numbers into the kinds of packed.py and back, as llama.cpp's reference does it (ggml-quants.c), to the last bit.

A row is cut into blocks. With d, m and dmin float16, sc and mn whole numbers a group of a block, q a weight:

    Q8_0        32 weights    d * q            q of int8
    Q4_0, Q5_0  32 weights    d * (q - 8)      q of 4 bits;  d * (q - 16)  of 5
    Q4_1, Q5_1  32 weights    d * q + m
    Q4_K, Q5_K  8 groups of 32 weights    d * sc * q - dmin * mn    sc, mn of 6 bits
    Q6_K        16 groups of 16 weights   d * sc * (q - 32)         sc of int8, q of 6 bits

How the bits of a block are arranged stands at each function. Products and sums are float32, in this order.
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
    rows, columns = packed.shape
    unpack = UNPACK[packed.kind.name]
    out = np.empty((rows, columns), np.float32)
    step = max(1, PIECE // max(1, columns))
    for begin in range(0, rows if columns else 0, step):
        data = np.ascontiguousarray(packed.data[begin : begin + step])
        out[begin : begin + step] = unpack(data.reshape(-1, packed.kind.size)).reshape(-1, columns)
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


def _half(data: Bytes) -> Floats:
    """float16, two bytes a row, as a column."""
    return np.ascontiguousarray(data).view("<f2").astype(np.float32)


def _nibbles(data: Bytes) -> Bytes:
    """(n, b) bytes -> (n, 2b) numbers: the lower halves of all bytes, then the upper."""
    return np.concatenate([data & 15, data >> 4], axis=1)


def _fifth_bits(data: Bytes) -> Bytes:
    """(n, 4) bytes -> (n, 32): bit i is weight i's highest, to be added to its lower four."""
    return np.unpackbits(data, axis=1, bitorder="little") << np.uint8(4)


def _unpack_f32(data: Bytes) -> Floats:
    return data.view("<f4")


def _unpack_f16(data: Bytes) -> Floats:
    return data.view("<f2").astype(np.float32)


def _unpack_bf16(data: Bytes) -> Floats:
    return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _unpack_q8_0(data: Bytes) -> Floats:
    """d, 32 int8."""
    return _half(data[:, :2]) * data[:, 2:].view(np.int8).astype(np.float32)


def _unpack_q4_0(data: Bytes) -> Floats:
    """d, 16 bytes: weights 0 to 15 in the lower halves, 16 to 31 in the upper."""
    return _half(data[:, :2]) * (_nibbles(data[:, 2:]).astype(np.float32) - np.float32(8))


def _unpack_q4_1(data: Bytes) -> Floats:
    """d, m, and as Q4_0."""
    return _half(data[:, :2]) * _nibbles(data[:, 4:]).astype(np.float32) + _half(data[:, 2:4])


def _unpack_q5_0(data: Bytes) -> Floats:
    """d, 4 bytes of fifth bits, and as Q4_0."""
    q = _nibbles(data[:, 6:]) | _fifth_bits(data[:, 2:6])
    return _half(data[:, :2]) * (q.astype(np.float32) - np.float32(16))


def _unpack_q5_1(data: Bytes) -> Floats:
    """d, m, 4 bytes of fifth bits, and as Q4_0."""
    q = _nibbles(data[:, 8:]) | _fifth_bits(data[:, 4:8])
    return _half(data[:, :2]) * q.astype(np.float32) + _half(data[:, 2:4])


def _scales(data: Bytes) -> tuple[Floats, Floats]:
    """d * sc and dmin * mn, (n, 8, 1) each, from the first 16 bytes of Q4_K and Q5_K: d, dmin, and 12 of 6-bit numbers.

    sc of groups 0 to 3 is in the lower six bits of bytes 0 to 3, mn in those of 4 to 7. Groups 4 to 7 have their lower
    four bits in bytes 8 to 11, sc in the lower halves and mn in the upper, their two highest above those of the others.
    """
    first, second, third = data[:, 4:8], data[:, 8:12], data[:, 12:16]
    scale = np.concatenate([first & 63, third & 15 | (first >> 6) << 4], axis=1)
    least = np.concatenate([second & 63, third >> 4 | (second >> 6) << 4], axis=1)
    products = _half(data[:, :2]) * scale.astype(np.float32), _half(data[:, 2:4]) * least.astype(np.float32)
    return products[0][:, :, None], products[1][:, :, None]


def _groups_of_nibbles(data: Bytes) -> Bytes:
    """(n, 128) bytes -> (n, 8, 32): 32 bytes are two groups, one in the lower halves and one in the upper."""
    pairs = data.reshape(-1, 4, 1, 32)
    return np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(-1, 8, 32)


def _unpack_q4_k(data: Bytes) -> Floats:
    """Scales, 128 bytes of weights."""
    scale, least = _scales(data)
    return (scale * _groups_of_nibbles(data[:, 16:]).astype(np.float32) - least).reshape(-1, 256)


def _unpack_q5_k(data: Bytes) -> Floats:
    """Scales, 32 bytes of fifth bits, bit g of byte i for weight i of group g, 128 bytes of the lower four."""
    scale, least = _scales(data)
    fifth = data[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    q = _groups_of_nibbles(data[:, 48:]) | fifth << 4
    return (scale * q.astype(np.float32) - least).reshape(-1, 256)


def _unpack_q6_k(data: Bytes) -> Floats:
    """128 bytes of lower four bits, 64 of upper two, 16 int8 scales, d. Each half of the block is four rows of 32:

    rows 0 and 1 have their lower bits in the lower halves of bytes 0 to 31 and 32 to 63, rows 2 and 3 in the upper;
    row r has its upper bits at bits 2r and 2r + 1 of the 32 bytes.
    """
    low = data[:, :128].reshape(-1, 2, 1, 2, 32)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    high = data[:, 128:192].reshape(-1, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    scale = _half(data[:, 208:]) * data[:, 192:208].view(np.int8).astype(np.float32)
    q = (low | high << 4).reshape(-1, 16, 16).astype(np.float32) - np.float32(32)
    return (scale[:, :, None] * q).reshape(-1, 256)


UNPACK: dict[str, Callable[[Bytes], Floats]] = {
    "F32": _unpack_f32,
    "F16": _unpack_f16,
    "BF16": _unpack_bf16,
    "Q8_0": _unpack_q8_0,
    "Q4_0": _unpack_q4_0,
    "Q4_1": _unpack_q4_1,
    "Q5_0": _unpack_q5_0,
    "Q5_1": _unpack_q5_1,
    "Q4_K": _unpack_q4_k,
    "Q5_K": _unpack_q5_k,
    "Q6_K": _unpack_q6_k,
}


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
