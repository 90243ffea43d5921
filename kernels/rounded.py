"""Dot products of weights of a few bits with rows of x rounded to 16-bit integers.

Converting a weight to float32 takes longer than multiplying with it. Integer products need no conversion: each piece of
sixteen numbers of x becomes 16-bit integers with one scale, so that

    sum over c of weight[c] x[c]  =  sum over pieces of  scale_w scale_x sum over c in the piece of n_w[c] n_x[c]

and the inner sum is exact. One x86 instruction multiplies two neighbouring 16-bit integers with two others and adds the
two products. So the weights' bytes are widened to 16 bits, those at even places in one vector, those at odd places in
another.

A part's shift is multiplied with the sum of the rounded x. Rounding moves a number of x by at most 1 / 65534 of the
largest in its piece; such errors add up like random ones, to about 1.8e-5 of a typical result. Where numbers of x
exceed 1e34, their sums may overflow float32, and a result be infinite or NaN.

Each lane is a row of weights. LANES rows are taken together, four neighbouring weights of each at a time, and
multiplied with the same four numbers of a row of x, broadcast to all lanes:

    lane 0                1                2                ...
    w[0, 0]  w[0, 2]      w[1, 0]  w[1, 2]     w[2, 0]  w[2, 2]
    x[0]     x[2]         x[0]     x[2]        x[0]     x[2]

so nothing is summed across lanes, and sixteen products are summed as integers before they become a float. The order of
a row's sum does not depend on the rows beside it, so neither do its bits.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from . import llvm
from .blocks import LAYOUTS, Part, Parts, block_of_each, for_each_block, for_each_group
from .llvm import FLOAT, HAS_WORD_PRODUCTS, HAS_WORD_SUMS, INT16, INT32, INT64, LANES, LONGS, VECTOR
from .simd import BYTES, FLOATS
from .unpacking import PIECE, BlockOfEach, quarter

__all__ = ["ROUNDED", "SPAN", "SPAN_BYTES", "round_row", "rounded_sums"]

ROUNDED = tuple(kind for kind, layout in LAYOUTS.items() if layout.floats is None and HAS_WORD_PRODUCTS)

LARGEST = 32767.0  # magnitude of a rounded number
SMALLEST = 1e-30  # pieces without a larger magnitude are rounded to zeros: 1 / scale might overflow

# A span is two pieces of x, rounded. In memory: the 16-bit words at even places of both pieces, those at odd places (at
# byte ODD), the two scales (float32, at SCALES), and (at SUMS) three float32 sums of the rounded numbers times their
# scales: of the first piece, the second, both.
SPAN = 2 * PIECE
ODD, SCALES, SUMS, SPAN_BYTES = SPAN, 2 * SPAN, 2 * SPAN + 8, 2 * SPAN + 20

_WORDS = ir.VectorType(INT16, 2 * LANES)
_PIECE_FLOATS = ir.VectorType(FLOAT, PIECE)
_PIECE_LONGS = ir.VectorType(INT32, PIECE)


def _of_pieces(builder: ir.IRBuilder, pieces: list[ir.Value], combine: Callable) -> ir.Value:
    """Combine all lanes of a piece to one value, for two pieces: the first's is in lanes 0-7, the second's in 8-15."""
    half = PIECE // 2
    low, high = ([lane + source for source in (0, PIECE) for lane in range(start, start + half)] for start in (0, half))
    both = combine(*(llvm.shuffle(builder, pieces[0], lanes, pieces[1]) for lanes in (low, high)))
    for apart in (4, 2, 1):
        both = combine(both, llvm.shuffle(builder, both, [lane ^ apart for lane in range(PIECE)]))
    return both


def _one_each(builder: ir.IRBuilder, both: ir.Value) -> ir.Value:
    """A vector of two: the values that _of_pieces gave for the two pieces."""
    return llvm.shuffle(builder, both, [0, PIECE // 2])


def _round_pieces(builder: ir.IRBuilder, pieces: list[ir.Value]) -> tuple[list[ir.Value], ir.Value]:
    """Two pieces as integers up to LARGEST in magnitude, and their scales in the lanes of _of_pieces.

    The scale of a piece that holds NaN or infinity is NaN or infinite, and so makes the results NaN.
    """

    def larger(a: ir.Value, b: ir.Value) -> ir.Value:
        return builder.select(builder.icmp_signed(">", a, b), a, b)

    # Without their sign bit, floats compare as their bits do as integers; NaN's are the largest.
    unsigned = llvm.same(INT32, PIECE, 0x7FFFFFFF)
    magnitudes = [builder.and_(builder.bitcast(floats, _PIECE_LONGS), unsigned) for floats in pieces]
    largest = builder.bitcast(_of_pieces(builder, magnitudes, larger), _PIECE_FLOATS)
    is_more = builder.fcmp_ordered(">", largest, llvm.same(FLOAT, PIECE, SMALLEST))
    inverses = builder.fdiv(llvm.same(FLOAT, PIECE, LARGEST), largest)
    inverses = builder.select(is_more, inverses, llvm.same(FLOAT, PIECE, 0.0))
    numbers = []
    for i, floats in enumerate(pieces):
        scaled = builder.fmul(floats, llvm.shuffle(builder, inverses, [i * PIECE // 2] * PIECE))
        whole = llvm.call(builder, f"llvm.rint.v{PIECE}f32", _PIECE_FLOATS, [scaled])
        is_number = builder.fcmp_ordered("ord", whole, whole)  # fptosi of NaN is undefined
        whole = builder.select(is_number, whole, llvm.same(FLOAT, PIECE, 0.0))
        numbers.append(builder.fptosi(whole, _PIECE_LONGS))
    return numbers, builder.fmul(largest, llvm.same(FLOAT, PIECE, 1.0 / LARGEST))


@intrinsic
def round_row(typingctx, to, x, columns, number, count):
    """Round x (columns,), whole spans, as row `number` of `count` rows that are multiplied together.

    Their spans alternate: span s of row r is at byte (s * count + r) * SPAN_BYTES of `to`.
    """

    def codegen(context, builder, signature, arguments):
        to, x, columns, number, count = arguments
        size = ir.Constant(INT64, SPAN_BYTES)
        row, apart = builder.mul(number, size), builder.mul(count, size)
        with cgutils.for_range(builder, builder.sdiv(columns, ir.Constant(INT64, SPAN)), intp=INT64) as loop:
            here = llvm.at(builder, to, builder.mul(loop.index, apart), row)

            def put(place: int, value: ir.Value) -> None:
                address = llvm.at(builder, here, ir.Constant(INT64, place))
                builder.store(value, builder.bitcast(address, value.type.as_pointer())).align = 4

            column = llvm.at(builder, x, builder.mul(loop.index, ir.Constant(INT64, SPAN)))
            floats = [llvm.load(builder, llvm.at(builder, column, ir.Constant(INT64, i * PIECE)), _PIECE_FLOATS)
                      for i in range(2)]  # fmt: skip
            numbers, scales = _round_pieces(builder, floats)
            for i, piece in enumerate(numbers):
                words = builder.trunc(piece, ir.VectorType(INT16, PIECE))
                put(i * PIECE, llvm.shuffle(builder, words, range(0, PIECE, 2)))
                put(i * PIECE + ODD, llvm.shuffle(builder, words, range(1, PIECE, 2)))
            sums = builder.sitofp(_of_pieces(builder, numbers, builder.add), _PIECE_FLOATS)
            sums = _one_each(builder, builder.fmul(sums, scales))
            put(SCALES, _one_each(builder, scales))
            put(SUMS, sums)
            put(SUMS + 8, builder.fadd(*(builder.extract_element(sums, ir.Constant(INT32, i)) for i in range(2))))
        return context.get_dummy_value()

    return types.void(BYTES, FLOATS, types.int64, types.int64, types.int64), codegen


_MULTIPLY_WORDS = {16: "avx512.pmaddw.d.512", 8: "avx2.pmadd.wd", 4: "sse2.pmadd.wd"}[LANES]


def _add_products(builder: ir.IRBuilder, total: ir.Value, weights: ir.Value, x: ir.Value) -> ir.Value:
    """total (int32) + w0 x0 + w1 x1, lane by lane, where each lane of weights and of x holds two 16-bit words."""
    if HAS_WORD_SUMS:
        arguments = [total, *(builder.bitcast(words, LONGS) for words in (weights, x))]
        return llvm.call(builder, f"llvm.x86.avx512.vpdpwssd.{32 * LANES}", LONGS, arguments)
    arguments = [builder.bitcast(words, _WORDS) for words in (weights, x)]
    return builder.add(total, llvm.call(builder, f"llvm.x86.{_MULTIPLY_WORDS}", LONGS, arguments))


def _words(builder: ir.IRBuilder, numbers: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The four bytes in each lane as 16-bit words: bytes 0 and 2, and bytes 1 and 3."""
    both = builder.bitcast(numbers, _WORDS)
    return builder.and_(both, llvm.same(INT16, 2 * LANES, 255)), builder.lshr(both, llvm.same(INT16, 2 * LANES, 8))


class _Span:
    """A rounded span of a row of x in memory."""

    def __init__(self, builder: ir.IRBuilder, address: ir.Value) -> None:
        self._builder, self._address = builder, address

    def _spread(self, place: int, kind: ir.Type) -> ir.Value:
        """Four bytes of the span, broadcast to all lanes."""
        address = llvm.at(self._builder, self._address, ir.Constant(INT64, place))
        value = self._builder.load(self._builder.bitcast(address, kind.as_pointer()))
        value.align = 4
        return llvm.broadcast(self._builder, value)

    def words(self, piece: int, k: int) -> tuple[ir.Value, ir.Value]:
        """Numbers 4 k to 4 k + 3 of a piece, in all lanes: 4 k and 4 k + 2, and 4 k + 1 and 4 k + 3."""
        place = piece * PIECE + 4 * k
        return self._spread(place, INT32), self._spread(place + ODD, INT32)

    def scale(self, piece: int) -> ir.Value:
        return self._spread(SCALES + 4 * piece, FLOAT)

    def sum(self, pieces: range) -> ir.Value:
        """The sum of the rounded numbers, times their scales, of one piece or of both."""
        return self._spread(SUMS + 4 * (pieces[0] if len(pieces) == 1 else 2), FLOAT)


def _add_part(builder: ir.IRBuilder, part: Part, spans: list[_Span], totals: list[ir.Value]) -> list[ir.Value]:
    """totals + the dot products of a part of LANES rows of weights with the spans there of some rows of x.

    spans, totals  one for each row of x
    """
    first = part.first % SPAN // PIECE
    pieces = range(first, first + len(part.pieces))
    scaled: list[ir.Value] = []
    for piece, numbers in zip(pieces, part.pieces, strict=True):
        sums = [llvm.same(INT32, LANES, 0)] * len(spans)
        for k in range(4):
            weights = _words(builder, quarter(builder, numbers, k))
            for r, span in enumerate(spans):
                for of_weights, of_x in zip(weights, span.words(piece, k), strict=True):
                    sums[r] = _add_products(builder, sums[r], of_weights, of_x)
        floats = [builder.sitofp(total, VECTOR) for total in sums]
        scales = [span.scale(piece) for span in spans]
        if not scaled:
            scaled = [builder.fmul(*of) for of in zip(floats, scales, strict=True)]
        else:
            scaled = [llvm.fma(builder, *of) for of in zip(floats, scales, scaled, strict=True)]
    totals = [llvm.fma(builder, value, part.scale, total) for value, total in zip(scaled, totals, strict=True)]
    return [llvm.fma(builder, span.sum(pieces), part.shift, total) for span, total in zip(spans, totals, strict=True)]


def rounded_sums(builder: ir.IRBuilder, kind: int, weights: list[ir.Value], x: ir.Value, rows: int, columns) -> list:
    """The dot products of LANES rows of weights with each of `rows` rows of x: a vector of LANES for each row of x.

    weights  LANES addresses; x: as round_row wrote it
    """
    layout = LAYOUTS[kind]
    llvm.align_stack(builder)
    sums = [cgutils.alloca_once_value(builder, ir.Constant(VECTOR, [0.0] * LANES)) for _ in range(rows)]

    def body(byte: ir.Value, first: ir.Value) -> None:
        starts, ahead = block_of_each(builder, layout, weights, byte)
        for_each_group(builder, layout, [BlockOfEach(builder, *starts)], first, add, ahead)

    def add(first: ir.Value, each: list[Parts]) -> None:
        before = builder.mul(builder.sdiv(first, ir.Constant(INT64, SPAN)), ir.Constant(INT64, rows * SPAN_BYTES))
        for part in each[0]:
            number = part.first // SPAN * rows
            places = [ir.Constant(INT64, (number + r) * SPAN_BYTES) for r in range(rows)]
            spans = [_Span(builder, llvm.at(builder, x, before, place)) for place in places]
            totals = _add_part(builder, part, spans, [builder.load(total) for total in sums])
            for place, total in zip(sums, totals, strict=True):
                builder.store(total, place)

    for_each_block(builder, layout, columns, body, last=None)
    return [builder.load(total) for total in sums]
