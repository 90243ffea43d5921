"""What is done with rows of weights in blocks (blocks.py), a vector of them at a time:

    dot_rows    multiplies them with rows of x while they are in registers
    unpack_row  stores them

A function for each kind (`dot_q4_0`, ...) is compiled when a model first needs it; kernels call it by its address.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .blocks import LAYOUTS, Block, one_weight
from .jit import Deferred, deferred, inline, literally
from .row_group import _sums_of_lanes
from .simd import (
    _FLOAT,
    _INT,
    _VECTOR,
    CACHE_LINE,
    FLOATS,
    LANES,
    _at,
    _call,
    _call_address,
    _fma,
    _load,
    _prefetch,
    _reduce,
    advance,
)

__all__ = ["BYTES", "call_dot", "call_unpack", "dot_of", "step", "unpack_of"]

BYTES = types.CPointer(types.uint8)

# A dot product has one accumulator, a vector. With those of OUTPUTS rows of weights and up to TOGETHER rows of x at a
# time, a multiply-add need not wait for the one before, a weight is unpacked once and an x loaded once for several, and
# all stay in the registers, of which AVX2 has 16.
OUTPUTS = 2
TOGETHER = 4 if LANES == 8 else 8
HALF = TOGETHER // 2
# One or two rows of x wait for memory where weights are of 16 bits or more, one alone where they are of 8 bits or more;
# and memory gives one row of weights faster than two.
WAITING = (
    tuple(kind for kind, layout in LAYOUTS.items() if layout.size >= layout.weights),
    tuple(kind for kind, layout in LAYOUTS.items() if layout.size >= 2 * layout.weights),
)
# Bytes that weights are asked for ahead of their use. CPUs do that by themselves for one stretch of memory; of several
# rows at once they make less: 17 GB/s in place of 57. With 4096, eight rows of x took 1.2 times as long on an AMD core.
AHEAD = 5120


def _for_each_block(builder, layout, columns, body, last):
    """body(number of its first byte, of its first weight) for each block, last(byte, weight) for lone weights."""
    whole = builder.sdiv(columns, ir.Constant(_INT, layout.weights))
    with cgutils.for_range(builder, whole, intp=_INT) as loop:
        body(
            builder.mul(loop.index, ir.Constant(_INT, layout.size)),
            builder.mul(loop.index, ir.Constant(_INT, layout.weights)),
        )
    if layout.bytes_each:
        done = builder.mul(whole, ir.Constant(_INT, layout.weights))
        with cgutils.for_range(builder, builder.sub(columns, done), intp=_INT) as loop:
            number = builder.add(done, loop.index)
            last(builder.mul(number, ir.Constant(_INT, layout.bytes_each)), number)


def _sums(builder: ir.IRBuilder, kind: int, weights: list[ir.Value], rows: list[ir.Value], columns) -> dict:
    """The dot product of each row of weights with each row of x, all given by their addresses.

    Each is added up in the same order whatever the others are, so a row has the same bits alone or beside others.
    """
    layout = LAYOUTS[kind]
    pairs = [(o, r) for r in range(len(rows)) for o in range(len(weights))]
    zero, zeros = ir.Constant(_FLOAT, 0.0), ir.Constant(_VECTOR, [0.0] * LANES)
    sums = {pair: cgutils.alloca_once_value(builder, zeros) for pair in pairs}
    rests = {pair: cgutils.alloca_once_value(builder, zero) for pair in pairs}

    def body(byte: ir.Value, first: ir.Value) -> None:
        starts = [_at(builder, weight, byte) for weight in weights]
        for start in starts:
            for line in range(0, layout.size, CACHE_LINE):
                _prefetch(builder, _at(builder, start, ir.Constant(_INT, AHEAD + line)))
        blocks = [layout.emit(Block(builder, start)) for start in starts]
        for vectors in zip(*blocks, strict=True):
            place = builder.add(first, ir.Constant(_INT, vectors[0][0]))
            for r, row in enumerate(rows):  # one after another: all of them would not stay in the registers
                factor = _load(builder, _at(builder, row, place))
                for o, (_, weight) in enumerate(vectors):
                    builder.store(_fma(builder, weight, factor, builder.load(sums[o, r])), sums[o, r])

    def last(byte: ir.Value, number: ir.Value) -> None:
        values = [one_weight(builder, kind, _at(builder, weight, byte)) for weight in weights]
        factors = [builder.load(_at(builder, row, number)) for row in rows]
        for o, r in pairs:
            rest = rests[o, r]
            product = _call(builder, "llvm.fma.f32", _FLOAT, [values[o], factors[r], builder.load(rest)])
            builder.store(product, rest)

    _for_each_block(builder, layout, columns, body, last)
    vectors = [builder.load(total) for total in sums.values()]
    if len(vectors) == LANES:  # a third of the shuffles
        together = _sums_of_lanes(builder, vectors)
        totals = [builder.extract_element(together, ir.Constant(ir.IntType(32), i)) for i in range(LANES)]
    else:
        totals = [_reduce(builder, vector, builder.fadd) for vector in vectors]
    return {
        pair: builder.fadd(total, builder.load(rests[pair])) for pair, total in zip(sums, totals, strict=True)
    }


@intrinsic
def dot_rows(typingctx, kind, outputs, rows, out, out_row, x, x_row, weight, size, columns):
    """out[r * out_row + o] = sum over c of weight[o, c] * x[r * x_row + c]; kind, outputs and rows are literals.

    size  bytes from one row of weights to the next
    """
    if not all(isinstance(number, types.IntegerLiteral) for number in (kind, outputs, rows)):
        return None
    number, o_count, r_count = (literal.literal_value for literal in (kind, outputs, rows))

    def codegen(context, builder, signature, arguments):
        out, out_row, x, x_row, weight, size, columns = arguments[3:]
        weights = [_at(builder, weight, builder.mul(size, ir.Constant(_INT, o))) for o in range(o_count)]
        starts = [_at(builder, x, builder.mul(x_row, ir.Constant(_INT, r))) for r in range(r_count)]
        for (o, r), total in _sums(builder, number, weights, starts, columns).items():
            place = builder.add(builder.mul(out_row, ir.Constant(_INT, r)), ir.Constant(_INT, o))
            builder.store(total, _at(builder, out, place)).align = 4
        return context.get_dummy_value()

    size_type = types.int64
    arrays = (FLOATS, size_type, FLOATS, size_type, BYTES, size_type, size_type)
    return types.void(kind, outputs, rows, *arrays), codegen


@intrinsic
def unpack_row(typingctx, kind, out, weight, columns):
    """out[c] = weight[c], for a literal kind."""
    if not isinstance(kind, types.IntegerLiteral):
        return None
    number = kind.literal_value

    def codegen(context, builder, signature, arguments):
        _, out, weight, columns = arguments
        layout = LAYOUTS[number]

        def body(byte, first):
            for offset, values in layout.emit(Block(builder, _at(builder, weight, byte))):
                place = _at(builder, out, builder.add(first, ir.Constant(_INT, offset)))
                builder.store(values, builder.bitcast(place, _VECTOR.as_pointer())).align = 4

        def last(byte, position):
            value = one_weight(builder, number, _at(builder, weight, byte))
            builder.store(value, _at(builder, out, position))

        _for_each_block(builder, layout, columns, body, last)
        return context.get_dummy_value()

    return types.void(kind, FLOATS, BYTES, types.int64), codegen


@intrinsic
def step(typingctx, pointer, offset):
    """The address so many bytes further."""

    def codegen(context, builder, signature, arguments):
        return _at(builder, *arguments)

    return BYTES(BYTES, types.int64), codegen


N = types.int64
DOT = types.void(FLOATS, N, FLOATS, N, BYTES, N, N, N, N)
UNPACK = types.void(FLOATS, N, BYTES, N, N, N)


@inline
def _dot_together(kind, count, out, out_row, x, x_row, weight, size, outputs, columns):
    """_dot for so many rows, a literal number, and an even number of outputs."""
    literally(kind)
    literally(count)
    if (count == 1 and kind in WAITING[0]) or (count == 2 and kind in WAITING[1]):
        for o in range(outputs):
            dot_rows(kind, 1, count, advance(out, o), out_row, x, x_row, step(weight, o * size), size, columns)
    else:
        for o in range(0, outputs, OUTPUTS):
            dot_rows(kind, OUTPUTS, count, advance(out, o), out_row, x, x_row, step(weight, o * size), size, columns)


@inline
def _dot(kind, out, out_row, x, x_row, weight, size, outputs, columns, rows):
    """out[r * out_row + o] = x[r] . weight[o] for so many rows r and outputs o; a row of weights has `size` bytes."""
    literally(kind)
    even = outputs // OUTPUTS * OUTPUTS
    r = 0
    while r < rows:
        here, there = advance(out, r * out_row), advance(x, r * x_row)
        if r + TOGETHER <= rows:
            _dot_together(kind, TOGETHER, here, out_row, there, x_row, weight, size, even, columns)
            r += TOGETHER
        elif r + HALF <= rows:
            _dot_together(kind, HALF, here, out_row, there, x_row, weight, size, even, columns)
            r += HALF
        elif r + 2 <= rows:
            _dot_together(kind, 2, here, out_row, there, x_row, weight, size, even, columns)
            r += 2
        else:
            _dot_together(kind, 1, here, out_row, there, x_row, weight, size, even, columns)
            r += 1
    for o in range(even, outputs):
        for r in range(rows):
            here, there = advance(out, r * out_row + o), advance(x, r * x_row)
            dot_rows(kind, 1, 1, here, out_row, there, x_row, step(weight, o * size), size, columns)


@inline
def _unpack(kind, out, out_row, weight, size, outputs, columns):
    """out[o * out_row + c] = weight[o, c] for so many rows o."""
    literally(kind)
    for o in range(outputs):
        unpack_row(kind, advance(out, o * out_row), step(weight, o * size), columns)


def _dots(kind: int) -> Deferred:
    def dot(out, out_row, x, x_row, weight, size, outputs, columns, rows):
        _dot(kind, out, out_row, x, x_row, weight, size, outputs, columns, rows)

    return deferred(DOT, f"dot_{LAYOUTS[kind].name}")(dot)


def _unpacks(kind: int) -> Deferred:
    def unpack(out, out_row, weight, size, outputs, columns):
        _unpack(kind, out, out_row, weight, size, outputs, columns)

    return deferred(UNPACK, f"unpack_{LAYOUTS[kind].name}")(unpack)


_DOTS = {kind: _dots(kind) for kind in LAYOUTS}
_UNPACKS = {kind: _unpacks(kind) for kind in LAYOUTS}


def dot_of(kind: int) -> int:
    """The address of a kind's dot products, compiled when it is first asked for."""
    return _DOTS[kind].address


def unpack_of(kind: int) -> int:
    """The address of what unpacks rows of a kind, compiled when it is first asked for."""
    return _UNPACKS[kind].address


@intrinsic
def call_dot(typingctx, address, out, out_row, x, x_row, weight, size, outputs, columns, rows):
    """Call the function at an address that dot_of gave."""

    def codegen(context, builder, signature, arguments):
        _call_address(builder, *arguments)
        return context.get_dummy_value()

    return types.void(N, *DOT.args), codegen


@intrinsic
def call_unpack(typingctx, address, out, out_row, weight, size, outputs, columns):
    """Call the function at an address that unpack_of gave."""

    def codegen(context, builder, signature, arguments):
        _call_address(builder, *arguments)
        return context.get_dummy_value()

    return types.void(N, *UNPACK.args), codegen
