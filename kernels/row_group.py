"""LANES rows at a time, in registers: transposing a block of a matrix, and the sums of LANES vectors.

    transpose        a block of LANES x LANES
    transpose_part   a block of fewer rows: the last one is read again in place of those that are missing
    sums_of_each     for LLVM code written by hand: the sum over the lanes of each of LANES vectors
    perfect_shuffle  likewise: the step that transposing consists of
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from . import llvm
from .llvm import INT64, LANES
from .simd import FLOATS

__all__ = ["perfect_shuffle", "sums_of_each", "transpose", "transpose_part"]


def _rows_from(builder, first, row, there=None):
    """The addresses of LANES rows, `row` floats apart; of the last row again for those from number `there` on."""
    if there is None:
        numbers = [ir.Constant(INT64, number) for number in range(LANES)]
    else:
        numbers = llvm.numbers_there(builder, LANES, there)
    return [llvm.at(builder, first, builder.mul(number, row)) for number in numbers]


def _pair(builder, a, b, width):
    """One step of sums_of_each: for each run of `width` lanes of a and of b, the sum of its two halves.

    The runs of a come first in the result, then those of b, each half as long.
    """
    half = width // 2
    low, high = [], []
    for start in range(0, LANES, width):
        low += range(start, start + half)
        high += range(start + half, start + width)
    order = [lane + source for source in (0, LANES) for lane in low]
    other = [lane + source for source in (0, LANES) for lane in high]
    return builder.fadd(llvm.shuffle(builder, a, order, b), llvm.shuffle(builder, a, other, b))


def sums_of_each(builder, vectors):
    """A vector whose lane i is the sum of the lanes of vector i of LANES, added in the order of llvm.reduce."""
    width = LANES
    while len(vectors) > 1:
        vectors = [_pair(builder, a, b, width) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
        width //= 2
    return vectors[0]


def perfect_shuffle(builder, rows, within=None):
    """Interleave vector i, lane by lane, with vector i + half, for each i in the first half of some vectors.

    Each pair gives two vectors: the interleaved lower halves, then the upper halves.

    within  length of the runs of lanes that are interleaved each for itself; None: the whole vector
    """
    lanes = rows[0].type.count
    within = within or lanes
    low = [start + i // 2 + lanes * (i % 2) for start in range(0, lanes, within) for i in range(within)]
    high = [within // 2 + i for i in low]
    half = len(rows) // 2
    return [
        llvm.shuffle(builder, first, order, second)
        for first, second in zip(rows[:half], rows[half:], strict=True)
        for order in (low, high)
    ]


def _transpose(builder, to, to_row, sources):
    """Transpose LANES rows at `sources` by log2(LANES) perfect shuffles; row k of the result is at to + k * to_row."""
    rows = [llvm.load(builder, source) for source in sources]
    for _ in range(LANES.bit_length() - 1):
        rows = perfect_shuffle(builder, rows)
    for row in rows:
        llvm.write(builder, row, to)
        to = llvm.at(builder, to, to_row)


@intrinsic
def transpose(typingctx, to, to_row, source, source_row):
    """Transpose a block of LANES x LANES floats: to[k * to_row + r] = source[r * source_row + k]; to may be float16.

    The next LANES rows of source are prefetched: the hardware prefetcher does not follow that many rows at once.
    """

    def codegen(context, builder, signature, arguments):
        to, to_row, source, source_row = arguments
        rows = _rows_from(builder, source, source_row)
        next_rows = llvm.at(builder, source, builder.mul(ir.Constant(INT64, LANES), source_row))
        for row in _rows_from(builder, next_rows, source_row):
            llvm.prefetch(builder, row)
        _transpose(builder, to, to_row, rows)
        return context.get_dummy_value()

    return types.void(to, types.int64, FLOATS, types.int64), codegen


@intrinsic
def transpose_part(typingctx, to, to_row, source, source_row, count):
    """As transpose, of `count` rows, at least 1. All LANES columns of `to` are written; ignore those from count on."""

    def codegen(context, builder, signature, arguments):
        to, to_row, source, source_row, count = arguments
        _transpose(builder, to, to_row, _rows_from(builder, source, source_row, count))
        return context.get_dummy_value()

    return types.void(FLOATS, types.int64, FLOATS, types.int64, types.int64), codegen
