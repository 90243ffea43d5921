"""Operations on rows of weights stored in blocks (blocks.py), which are unpacked in registers:

    dot_rows    dot products with rows of x, in float32; or, for weights of a few bits and where the CPU has the
                instructions, as integers with x rounded to 16 bits (rounded.py)
    unpack_row  conversion to float32

The function for a kind (`dot_q4_0`, ...) is compiled when a model first needs it; kernels call it by its address.
"""

from __future__ import annotations

import sys

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from . import llvm
from .blocks import LAYOUTS, Vectors, block_of_each, for_each_block, for_each_vectors, one_weight
from .jit import Deferred, deferred, inline, literally
from .llvm import FLOAT, INT32, INT64, LANES, VECTOR
from .rounded import ROUNDED, SPAN, SPAN_BYTES, round_row, rounded_sums
from .row_group import sums_of_each
from .simd import BYTES, FLOATS, advance
from .unpacking import Block

__all__ = ["call_dot", "call_round", "call_unpack", "dot_of", "rounding_of", "unpack_of"]

# Each dot product has one accumulator: a vector, or one lane of a vector for ROUNDED kinds. A few rows of weights and
# up to TOGETHER rows of x at a time give enough independent accumulators to hide the latency of a multiply-add, unpack
# a weight once for several rows of x, and still fit the registers, of which AVX2 has only 16.
TOGETHER = 4 if LANES == 8 else 8
HALF = TOGETHER // 2
# Eight rows of more than WIDE columns of x overflow the L1 cache, so two rows of float weights at a time read all of x
# from L2, which takes longer than the weights take from memory. Four rows of x with four rows of weights are then 1.15
# (F32) to 1.4 (F16) times as fast with AVX-512; with AVX2, whose registers hold half as many sums, 0.8 times.
WIDE = 1024 if LANES == 16 else sys.maxsize
# Kinds whose weights arrive from memory more slowly than they are multiplied with one row of x (8 bits or more), and
# with two rows (16 bits or more). Then one row of weights is read at a time: faster than two side by side.
WAITING = (
    tuple(kind for kind, layout in LAYOUTS.items() if layout.size >= layout.weights),
    tuple(kind for kind, layout in LAYOUTS.items() if layout.size >= 2 * layout.weights),
)
N = types.int64


def _sums(builder: ir.IRBuilder, kind: int, weights: list[ir.Value], rows: list[ir.Value], columns) -> dict:
    """The dot product of each row of weights with each row of x, all given by address: {(o, r): a float32}.

    The order of each sum is fixed, so a row has the same bits alone or beside others.
    """
    layout = LAYOUTS[kind]
    pairs = [(o, r) for r in range(len(rows)) for o in range(len(weights))]
    zero, zeros = ir.Constant(FLOAT, 0.0), ir.Constant(VECTOR, [0.0] * LANES)
    sums = {pair: cgutils.alloca_once_value(builder, zeros) for pair in pairs}
    rests = {pair: cgutils.alloca_once_value(builder, zero) for pair in pairs}

    def body(byte: ir.Value, first: ir.Value) -> None:
        starts, ahead = block_of_each(builder, layout, weights, byte)
        for_each_vectors(builder, layout, [Block(builder, start) for start in starts], first, multiply, ahead)

    def multiply(first: ir.Value, vectors: list[Vectors]) -> None:
        for ones in zip(*vectors, strict=True):
            place = builder.add(first, ir.Constant(INT64, ones[0][0]))
            for r, row in enumerate(rows):  # each loaded when it is needed: all of them would not fit the registers
                factor = llvm.load(builder, llvm.at(builder, row, place))
                for o, (_, weight) in enumerate(ones):
                    builder.store(llvm.fma(builder, weight, factor, builder.load(sums[o, r])), sums[o, r])

    def last(byte: ir.Value, number: ir.Value) -> None:
        values = [one_weight(builder, kind, llvm.at(builder, weight, byte)) for weight in weights]
        factors = [builder.load(llvm.at(builder, row, number)) for row in rows]
        for o, r in pairs:
            rest = rests[o, r]
            builder.store(llvm.fma(builder, values[o], factors[r], builder.load(rest)), rest)

    for_each_block(builder, layout, columns, body, last)
    lanes = [builder.load(total) for total in sums.values()]
    if len(lanes) == LANES:  # takes a third of the shuffles
        together = sums_of_each(builder, lanes)
        whole = [builder.extract_element(together, ir.Constant(INT32, i)) for i in range(LANES)]
    else:
        whole = [llvm.reduce(builder, vector, builder.fadd) for vector in lanes]
    return {pair: builder.fadd(total, builder.load(rests[pair])) for pair, total in zip(sums, whole, strict=True)}


@intrinsic
def dot_rows(typingctx, kind, outputs, rows, there, out, out_row, x, rounded, weight, size, columns):
    """out[r * out_row + o] = sum over c of weight[o, c] * x[r, c], for o < outputs and r < rows.

    kind, outputs and rows are literals.

    there    rows of weights left in the matrix, 1 or more; if fewer than `outputs`, only so many are read and written
    rounded  the rows of x as round_row wrote them: read instead of x for ROUNDED kinds
    size     bytes from one row of weights to the next
    """
    if not all(isinstance(number, types.IntegerLiteral) for number in (kind, outputs, rows)):
        return None
    number, o_count, r_count = (literal.literal_value for literal in (kind, outputs, rows))

    def codegen(context, builder, signature, arguments):
        there, out, out_row, x, rounded, weight, size, columns = arguments[3:]
        places = llvm.numbers_there(builder, o_count, there)
        weights = [llvm.at(builder, weight, builder.mul(size, place)) for place in places]
        to = [llvm.at(builder, out, builder.mul(out_row, ir.Constant(INT64, r))) for r in range(r_count)]
        if number in ROUNDED:
            mask = llvm.lanes_below(builder, there)
            for row, total in zip(to, rounded_sums(builder, number, weights, rounded, r_count, columns), strict=True):
                llvm.masked_store(builder, total, row, mask)
            return context.get_dummy_value()
        starts = [llvm.at(builder, x, builder.mul(columns, ir.Constant(INT64, r))) for r in range(r_count)]
        for (o, r), total in _sums(builder, number, weights, starts, columns).items():
            builder.store(total, llvm.at(builder, to[r], places[o])).align = 4
        return context.get_dummy_value()

    arrays = (N, FLOATS, N, FLOATS, BYTES, BYTES, N, N)
    return types.void(kind, outputs, rows, *arrays), codegen


@intrinsic
def unpack_row(typingctx, kind, out, weight, columns):
    """out[c] = weight[c] as float32, for c below columns; kind is a literal."""
    if not isinstance(kind, types.IntegerLiteral):
        return None
    number = kind.literal_value

    def codegen(context, builder, signature, arguments):
        _, out, weight, columns = arguments
        layout = LAYOUTS[number]

        def body(byte, first):
            for_each_vectors(builder, layout, [Block(builder, llvm.at(builder, weight, byte))], first, put)

        def put(first, vectors):
            for offset, values in vectors[0]:
                place = llvm.at(builder, out, builder.add(first, ir.Constant(INT64, offset)))
                llvm.store(builder, values, place)

        def last(byte, position):
            value = one_weight(builder, number, llvm.at(builder, weight, byte))
            builder.store(value, llvm.at(builder, out, position))

        for_each_block(builder, layout, columns, body, last)
        return context.get_dummy_value()

    return types.void(kind, FLOATS, BYTES, N), codegen


DOT = types.void(FLOATS, N, FLOATS, BYTES, BYTES, N, N, N, N)
ROUND = types.void(BYTES, FLOATS, N, N)
UNPACK = types.void(FLOATS, N, BYTES, N, N, N)


@intrinsic
def outputs_together(typingctx, kind, rows, is_wide):
    """How many rows of weights are multiplied with `rows` rows of x at a time: a literal, from three literals."""
    literals = kind, rows, is_wide
    if not all(isinstance(number, types.IntegerLiteral) for number in literals):
        return None
    number = types.literal(_outputs(*(literal.literal_value for literal in literals)))

    def codegen(context, builder, signature, arguments):
        return context.get_constant(N, number.literal_value)

    return number(*literals), codegen


def _outputs(kind: int, rows: int, is_wide: int) -> int:
    if kind in ROUNDED:
        return LANES
    if is_wide:
        return 2 * TOGETHER // rows
    return 1 if rows <= 2 and kind in WAITING[rows - 1] else 2


@inline(ordered=True)
def _dot_together(kind, count, is_wide, out, out_row, x, rounded, weight, size, outputs, columns):
    """_dot for `count` rows of x; kind, count and is_wide (whether they have more than WIDE columns) are literals."""
    literally(kind)
    literally(count)
    literally(is_wide)
    together = outputs_together(kind, count, is_wide)
    for o in range(0, outputs, together):
        dot_rows(
            kind, together, count, outputs - o, advance(out, o), out_row, x, rounded, advance(weight, o * size), size,
            columns,
        )


@inline
def _together(rows):
    """How many of the remaining rows of x are taken next: TOGETHER, HALF, 2 or 1."""
    return TOGETHER if rows >= TOGETHER else HALF if rows >= HALF else 2 if rows >= 2 else 1


@inline(ordered=True)
def _dot(kind, wide, out, out_row, x, rounded, weight, size, outputs, columns, rows):
    """out[r * out_row + o] = x[r] . weight[o] for r < rows and o < outputs; a row of weights has `size` bytes.

    wide  with more columns than this, at most HALF rows of x are taken together
    """
    literally(kind)
    r = 0
    while r < rows:
        count = _together(rows - r)
        is_wide = columns > wide and count >= HALF
        if is_wide:
            count = HALF
        here, there = advance(out, r * out_row), advance(x, r * columns)
        bytes_there = advance(rounded, r * (columns // SPAN * SPAN_BYTES))
        if is_wide:
            _dot_together(kind, HALF, 1, here, out_row, there, bytes_there, weight, size, outputs, columns)
        elif count == TOGETHER:
            _dot_together(kind, TOGETHER, 0, here, out_row, there, bytes_there, weight, size, outputs, columns)
        elif count == HALF:
            _dot_together(kind, HALF, 0, here, out_row, there, bytes_there, weight, size, outputs, columns)
        elif count == 2:
            _dot_together(kind, 2, 0, here, out_row, there, bytes_there, weight, size, outputs, columns)
        else:
            _dot_together(kind, 1, 0, here, out_row, there, bytes_there, weight, size, outputs, columns)
        r += count


@deferred(ROUND, "round_x")
def _round(to, x, columns, rows):
    r = 0
    while r < rows:
        count = _together(rows - r)
        for i in range(count):
            round_row(advance(to, r * (columns // SPAN * SPAN_BYTES)), advance(x, (r + i) * columns), columns, i, count)
        r += count


@inline(ordered=True)
def _unpack(kind, out, out_row, weight, size, outputs, columns):
    """out[o * out_row + c] = weight[o, c] for o < outputs and c < columns."""
    literally(kind)
    for o in range(outputs):
        unpack_row(kind, advance(out, o * out_row), advance(weight, o * size), columns)


def _dots(kind: int) -> Deferred:
    wide = sys.maxsize if LAYOUTS[kind].floats is None else WIDE

    def dot(out, out_row, x, rounded, weight, size, outputs, columns, rows):
        _dot(kind, wide, out, out_row, x, rounded, weight, size, outputs, columns, rows)

    return deferred(DOT, f"dot_{LAYOUTS[kind].name}")(dot)


def _unpacks(kind: int) -> Deferred:
    def unpack(out, out_row, weight, size, outputs, columns):
        _unpack(kind, out, out_row, weight, size, outputs, columns)

    return deferred(UNPACK, f"unpack_{LAYOUTS[kind].name}")(unpack)


_DOTS = {kind: _dots(kind) for kind in LAYOUTS}
_UNPACKS = {kind: _unpacks(kind) for kind in LAYOUTS}


def dot_of(kind: int) -> int:
    """The address of the function for a kind's dot products, compiled when it is first asked for."""
    return _DOTS[kind].address


def rounding_of(kinds: tuple[int, ...]) -> int:
    """The address of the function that rounds rows of x, if any of the kinds is ROUNDED; else 0."""
    return _round.address if any(kind in ROUNDED for kind in kinds) else 0


def unpack_of(kind: int) -> int:
    """The address of the function that unpacks rows of a kind, compiled when it is first asked for."""
    return _UNPACKS[kind].address


@intrinsic
def call_dot(typingctx, address, out, out_row, x, rounded, weight, size, outputs, columns, rows):
    """Call the function at an address from dot_of."""

    def codegen(context, builder, signature, arguments):
        llvm.call_address(builder, *arguments)
        return context.get_dummy_value()

    return types.void(N, *DOT.args), codegen


@intrinsic
def call_round(typingctx, address, to, x, columns, rows):
    """Call the function at an address from rounding_of."""

    def codegen(context, builder, signature, arguments):
        llvm.call_address(builder, *arguments)
        return context.get_dummy_value()

    return types.void(N, *ROUND.args), codegen


@intrinsic
def call_unpack(typingctx, address, out, out_row, weight, size, outputs, columns):
    """Call the function at an address from unpack_of."""

    def codegen(context, builder, signature, arguments):
        llvm.call_address(builder, *arguments)
        return context.get_dummy_value()

    return types.void(N, *UNPACK.args), codegen
