"""Dot products of weights of a few bits with rows of x that are rounded to 16 bits.

To make float32 of a weight takes longer than to multiply with it. Where whole numbers can be multiplied nothing has to
be made: x becomes, eight numbers at a time, whole numbers of 16 bits and one scale, so that

    sum over c of weight[c] x[c]  =  sum over eights of  scale_w scale_x sum over c in the eight of n_w[c] n_x[c]

and the inner sum is exact, whichever of two ways a CPU has to it:

    bytes  n_x = 256 high + low, both of 8 bits and signed; n_w is of 8 bits and not. An instruction multiplies four
           neighbours of the one with four of the other and adds the products up (HAS_BYTE_PRODUCTS)
    words  n_w is made of 16 bits, those at even places in one vector and those at odd ones in another. An instruction
           multiplies two neighbours with two of x and adds the products up (HAS_WORD_PRODUCTS). With bytes, which save
           making words, one to four rows of x take 0.8 to 0.9 times as long

That n_w is not signed, and that a kind may add a shift to its weights, is mended by the sums of the n_x and of the x. A
number of x is thereby off by at most 1 / 65278 of the largest of the eight with its scale: as good as random, 1.3e-5 of
a result. Eight numbers that add up to more than float32 holds are infinite to a kind that adds a shift.

A vector holds 1, 2 or 4 rows of x, each in four lanes (16 bytes); a piece of weights is broadcast to all rows:

    lane 0            1            2            3             4          ...
    x[0, 0..3]        x[0, 4..7]   x[0, 8..11]  x[0, 12..15]  x[1, 0..3] ...
    w[0..3]           w[4..7]      w[8..11]     w[12..15]     w[0..3]    ...

A row of x alone would fill a quarter of the widest vector. It stands there once for each of as many rows of weights,
which so get to the same lanes:

    lane 0            1            2            3             4          ...
    x[0..3]           x[4..7]      x[8..11]     x[12..15]     x[0..3]
    w[0, 0..3]        w[0, 4..7]   w[0, 8..11]  w[0, 12..15]  w[1, 0..3] ...

SPAN numbers, two such pieces, are taken together; a lane's eight have one scale. So a row is added up in the same order
whatever rows stand beside it, and has the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from . import llvm
from .blocks import LAYOUTS, PIECE, Block, Part, block_of_each, for_each_block
from .llvm import FLOAT, HAS_BYTE_PRODUCTS, HAS_WORD_PRODUCTS, INT16, INT32, INT64, LANES
from .simd import BYTES, FLOATS

__all__ = ["ROUNDED", "SPAN", "SPAN_BYTES", "round_row", "rounded_sums"]

CAN_ROUND = HAS_BYTE_PRODUCTS or HAS_WORD_PRODUCTS
ROUNDED = tuple(kind for kind, layout in LAYOUTS.items() if layout.parts is not None and CAN_ROUND)

SPAN = 2 * PIECE  # numbers of x that are taken together
LARGEST = 32639.0  # of a rounded number: 256 * 127 + 127
SMALLEST = 1e-30  # eight numbers that are all below are taken for zeros: 1 / scale would be infinite
ROWS = LANES // 4  # rows of x in the widest vector

# A span is eight vectors: two of the first piece's numbers and two of the second's, by bytes or by words; the lanes'
# scales; the sums of a lane's numbers, of both pieces and of the first alone; the sums of the floats that they were.
PIECES, SCALES, SUMS, FIRST_SUMS, FLOAT_SUMS = 0, 4, 5, 6, 7
VECTORS = 8
SPAN_BYTES = PIECE * VECTORS  # for each row of x

_BYTE = ir.IntType(8)


def _of_lanes(builder: ir.IRBuilder, span: ir.Value, i: int) -> list[ir.Value]:
    """The four numbers of each lane in piece i of a span, as four vectors of lanes."""
    return [llvm.shuffle(builder, span, range(i * PIECE + k, (i + 1) * PIECE, 4)) for k in range(4)]


def _sum(add: Callable, vectors: list[ir.Value]) -> ir.Value:
    """Of four vectors."""
    return add(add(*vectors[:2]), add(*vectors[2:]))


def _round_span(builder: ir.IRBuilder, floats: ir.Value) -> tuple[ir.Value, ir.Value]:
    """SPAN floats as whole numbers up to LARGEST, and the lanes' scales, NaN or infinite where a float is."""
    magnitudes = builder.bitcast(floats, ir.VectorType(INT32, SPAN))
    magnitudes = builder.and_(magnitudes, llvm.same(INT32, SPAN, 0x7FFFFFFF))
    # As whole numbers, the bits of floats without a sign have the order of the floats; those of NaN are the largest.
    numbers = _of_lanes(builder, magnitudes, 0) + _of_lanes(builder, magnitudes, 1)
    largest = numbers[0]
    for number in numbers[1:]:
        largest = builder.select(builder.icmp_signed(">", number, largest), number, largest)
    largest = builder.bitcast(largest, ir.VectorType(FLOAT, 4))
    is_more = builder.fcmp_ordered(">", largest, llvm.same(FLOAT, 4, SMALLEST))
    inverses = builder.select(is_more, builder.fdiv(llvm.same(FLOAT, 4, LARGEST), largest), llvm.same(FLOAT, 4, 0.0))
    scaled = builder.fmul(floats, llvm.shuffle(builder, inverses, [k % PIECE // 4 for k in range(SPAN)]))
    whole = llvm.call(builder, f"llvm.rint.v{SPAN}f32", floats.type, [scaled])
    numbers = llvm.call(builder, f"llvm.fptosi.sat.v{SPAN}i32.v{SPAN}f32", magnitudes.type, [whole])  # of NaN, 0
    return numbers, builder.fmul(largest, llvm.same(FLOAT, 4, 1.0 / LARGEST))


@intrinsic
def round_row(typingctx, to, x, columns, number, count):
    """Round a row of x, which has a number among `count` rows that are multiplied together and stand at `to`."""

    def codegen(context, builder, signature, arguments):
        to, x, columns, number, count = arguments
        rows = ir.Constant(INT64, ROWS)
        wide = builder.select(builder.icmp_signed("<", count, rows), count, rows)
        before = builder.mul(builder.sdiv(number, wide), builder.mul(wide, ir.Constant(INT64, SPAN_BYTES)))
        row = builder.add(before, builder.mul(builder.srem(number, wide), ir.Constant(INT64, PIECE)))
        apart = builder.mul(wide, ir.Constant(INT64, PIECE))  # bytes from one of a span's vectors to the next
        with cgutils.for_range(builder, builder.sdiv(columns, ir.Constant(INT64, SPAN)), intp=INT64) as loop:
            span = builder.mul(loop.index, builder.mul(count, ir.Constant(INT64, SPAN_BYTES)))
            here = llvm.at(builder, to, span, row)

            def put(number: int, value: ir.Value) -> None:
                llvm.store(builder, value, llvm.at(builder, here, builder.mul(apart, ir.Constant(INT64, number))))

            column = builder.mul(loop.index, ir.Constant(INT64, SPAN))
            floats = llvm.load(builder, llvm.at(builder, x, column), ir.VectorType(FLOAT, SPAN))
            numbers, scales = _round_span(builder, floats)
            for i in range(2):
                piece = llvm.shuffle(builder, numbers, range(i * PIECE, (i + 1) * PIECE))
                for half, vector in enumerate(_split(builder, piece)):
                    put(PIECES + 2 * i + half, vector)
            first_sums = _sum(builder.add, _of_lanes(builder, numbers, 0))
            put(FIRST_SUMS, first_sums)
            put(SUMS, builder.add(first_sums, _sum(builder.add, _of_lanes(builder, numbers, 1))))
            both = (_sum(builder.fadd, _of_lanes(builder, floats, i)) for i in range(2))
            put(FLOAT_SUMS, builder.fadd(*both))
            put(SCALES, scales)
        return context.get_dummy_value()

    return types.void(BYTES, FLOATS, types.int64, types.int64, types.int64), codegen


def _bytes(builder: ir.IRBuilder, numbers: ir.Value) -> tuple[ir.Value, ir.Value]:
    """A piece of rounded numbers as high and low bytes."""
    above = builder.add(numbers, llvm.same(INT32, PIECE, 128))
    above = builder.ashr(above, llvm.same(INT32, PIECE, 8))
    high, low = (builder.trunc(part, ir.VectorType(_BYTE, PIECE)) for part in (above, numbers))
    return high, low


def _words(builder: ir.IRBuilder, numbers: ir.Value) -> tuple[ir.Value, ir.Value]:
    """A piece of rounded numbers as words: those at even places and those at odd ones."""
    words = builder.trunc(numbers, ir.VectorType(INT16, PIECE))
    return llvm.shuffle(builder, words, range(0, PIECE, 2)), llvm.shuffle(builder, words, range(1, PIECE, 2))


Halves = tuple[ir.Value, ir.Value]  # of a piece of each row of x


def _sums_of_bytes(builder: ir.IRBuilder, total: ir.Value, pieces: list[ir.Value], x: list[Halves]) -> ir.Value:
    """total + the sums of each lane's products of pieces of weights with pieces of x, by bytes."""
    lanes = total.type.count
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    above = llvm.same(INT32, lanes, 0)
    for piece, (high, low) in zip(pieces, x, strict=True):
        above = llvm.call(builder, name, total.type, [above, piece, high])
        total = llvm.call(builder, name, total.type, [total, piece, low])
    return builder.add(total, builder.shl(above, llvm.same(INT32, lanes, 8)))


_MULTIPLY_WORDS = {16: "avx512.pmaddw.d.512", 8: "avx2.pmadd.wd", 4: "sse2.pmadd.wd"}  # by lanes of the sums


def _sums_of_words(builder: ir.IRBuilder, total: ir.Value, pieces: list[ir.Value], x: list[Halves]) -> ir.Value:
    """The same by words."""
    lanes = total.type.count
    words = ir.VectorType(INT16, 2 * lanes)
    for piece, halves in zip(pieces, x, strict=True):
        both = builder.bitcast(piece, words)
        even = builder.and_(both, llvm.same(INT16, 2 * lanes, 255))
        odd = builder.lshr(both, llvm.same(INT16, 2 * lanes, 8))
        for weights, half in zip((even, odd), halves, strict=True):
            arguments = [weights, builder.bitcast(half, words)]
            products = llvm.call(builder, f"llvm.x86.{_MULTIPLY_WORDS[lanes]}", total.type, arguments)
            total = builder.add(total, products)
    return total


_split, _add_products = (_bytes, _sums_of_bytes) if HAS_BYTE_PRODUCTS else (_words, _sums_of_words)


class _Span:
    """What is known of a span of some rows of x, and what it adds to dot products with rows of weights."""

    def __init__(self, builder: ir.IRBuilder, address: ir.Value, rows: int, outputs: int) -> None:
        self._builder, self._address, self._rows, self._outputs = builder, address, rows, outputs
        self._lanes = 4 * rows * outputs

    def _vector(self, number: int, kind: ir.Type) -> ir.Value:
        """One of the span's vectors, once for each row of weights."""
        lanes = 4 * self._rows
        place = llvm.at(self._builder, self._address, ir.Constant(INT64, number * lanes * 4))
        vector = llvm.load(self._builder, place, ir.VectorType(kind, lanes))
        return llvm.shuffle(self._builder, vector, list(range(lanes)) * self._outputs)

    def _halves(self, i: int) -> Halves:
        """Both vectors of each row's numbers in piece i."""
        return self._vector(PIECES + 2 * i, INT32), self._vector(PIECES + 2 * i + 1, INT32)

    def _spread(self, piece: ir.Value) -> ir.Value:
        """A piece of each row of weights, once for each row of x."""
        words = self._builder.bitcast(piece, ir.VectorType(INT32, 4 * self._outputs))
        lanes = [4 * output + lane for output in range(self._outputs) for _ in range(self._rows) for lane in range(4)]
        return llvm.shuffle(self._builder, words, lanes)

    def _sums(self, pieces: range) -> ir.Value:
        """Sums of the numbers that lanes are multiplied with."""
        if pieces == range(1):
            return self._vector(FIRST_SUMS, INT32)
        both = self._vector(SUMS, INT32)
        return both if len(pieces) == 2 else self._builder.sub(both, self._vector(FIRST_SUMS, INT32))

    def add(self, total: ir.Value, part: Part) -> ir.Value:
        """total + the products of the rows with a part of each row of weights, which this span has."""
        builder, lanes = self._builder, self._lanes
        first = part.first % SPAN // PIECE
        there = range(first, first + len(part.pieces))
        sums = builder.mul(self._sums(there), llvm.same(INT32, lanes, -part.middle))
        weights = [self._spread(piece) for piece in part.pieces]
        sums = _add_products(builder, sums, weights, [self._halves(i) for i in there])
        scales = self._vector(SCALES, FLOAT)
        factor = builder.fmul(scales, part.scale)
        total = llvm.fma(builder, builder.sitofp(sums, scales.type), factor, total)
        if part.shift is None:
            return total
        shift = llvm.fma(builder, part.scale, llvm.same(FLOAT, lanes, part.middle), part.shift)
        return llvm.fma(builder, self._vector(FLOAT_SUMS, FLOAT), shift, total)


def _totals(builder: ir.IRBuilder, total: ir.Value) -> list[ir.Value]:
    """The sums of four lanes each."""
    for _ in range(2):
        lanes = range(total.type.count)
        total = builder.fadd(llvm.shuffle(builder, total, lanes[::2]), llvm.shuffle(builder, total, lanes[1::2]))
    return [builder.extract_element(total, ir.Constant(INT32, i)) for i in range(total.type.count)]


def rounded_sums(builder: ir.IRBuilder, kind: int, weights: list[ir.Value], x: ir.Value, rows: int, columns) -> dict:
    """The dot product of each row of weights with each of so many rows of x, by their numbers; x from round_row."""
    layout, wide = LAYOUTS[kind], min(rows, ROWS)
    beside = min(ROWS, len(weights)) if rows == 1 else 1
    assert layout.parts is not None
    zeros = llvm.same(FLOAT, 4 * wide * beside, 0.0)
    firsts = [(o, r) for r in range(0, rows, wide) for o in range(0, len(weights), beside)]
    sums = {pair: cgutils.alloca_once_value(builder, zeros) for pair in firsts}

    def body(byte: ir.Value, first: ir.Value) -> None:
        starts = block_of_each(builder, layout, weights, byte)
        spans = builder.mul(builder.sdiv(first, ir.Constant(INT64, SPAN)), ir.Constant(INT64, rows * SPAN_BYTES))
        here = llvm.at(builder, x, spans)
        together = range(0, len(weights), beside)
        blocks = [Block(builder, starts[o : o + beside], 4 * wide * beside) for o in together]
        for parts in zip(*map(layout.parts, blocks), strict=True):
            number = parts[0].first // SPAN
            for o, r in firsts:
                place = llvm.at(builder, here, ir.Constant(INT64, (number * rows + r) * SPAN_BYTES))
                added = _Span(builder, place, wide, beside).add(builder.load(sums[o, r]), parts[o // beside])
                builder.store(added, sums[o, r])

    for_each_block(builder, layout, columns, body, last=None)
    each = [(o + i // wide, r + i % wide) for o, r in firsts for i in range(beside * wide)]
    totals = [total for pair in firsts for total in _totals(builder, builder.load(sums[pair]))]
    return dict(zip(each, totals, strict=True))
