"""LANES rows at a time: how a matrix is transposed, and how as many vectors as lanes are added up.

    transpose        a LANES x LANES block, in registers
    transpose_part   one of fewer rows: the last one stands for those that are missing, so that nothing is read beyond
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
    """The addresses of LANES rows, `row` floats apart, of which all or only so many are there."""
    if there is None:
        numbers = [ir.Constant(INT64, number) for number in range(LANES)]
    else:
        numbers = llvm.numbers_there(builder, LANES, there)
    return [llvm.at(builder, first, builder.mul(number, row)) for number in numbers]


def _pair(builder, a, b, width):
    """One step of adding up vectors and transposing them: the runs of `width` lanes in a and b, folded into one vector.

    The two halves of each run are added to one another.
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
    """The sums of the lanes of LANES vectors, as the lanes of one; each is added up as llvm.reduce does it."""
    width = LANES
    while len(vectors) > 1:
        vectors = [_pair(builder, a, b, width) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
        width //= 2
    return vectors[0]


def perfect_shuffle(builder, rows, within=None):
    """Interleave the first half of some vectors with the second: i with i + half, one pair after another.

    within  lanes stay within runs of so many; None: within the vector
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
    """As many perfect shuffles as halve LANES rows to one."""
    rows = [llvm.load(builder, source) for source in sources]
    for _ in range(LANES.bit_length() - 1):
        rows = perfect_shuffle(builder, rows)
    for row in rows:
        llvm.write(builder, row, to)
        to = llvm.at(builder, to, to_row)


@intrinsic
def transpose(typingctx, to, to_row, source, source_row):
    """Transpose a block of LANES x LANES floats: to[k * to_row + r] = source[r * source_row + k]; to may be halves.

    What stands LANES rows further on is asked for: CPUs do that by themselves for fewer rows.
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
    """As transpose, of `count` rows, 1 or more; what the result has beyond them is anything."""

    def codegen(context, builder, signature, arguments):
        to, to_row, source, source_row, count = arguments
        _transpose(builder, to, to_row, _rows_from(builder, source, source_row, count))
        return context.get_dummy_value()

    return types.void(FLOATS, types.int64, FLOATS, types.int64, types.int64), codegen
