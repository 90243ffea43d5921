"""How files keep weights: in blocks, and how a block becomes float32 in the registers.

A row is blocks, one after another. The formats are ggml's (github.com/ggml-org/ggml, ggml-common.h), with their
numbers there. d and m are float16; q is a weight's few bits.

    number  kind    weights  bytes
      0     F32           1      4
      1     F16           1      2
     30     BF16          1      2   the upper half of a float32
      8     Q8_0         32     34   d q               q: int8
      2     Q4_0         32     18   d (q - 8)         4 bits: weight j and weight j + 16 share a byte
      3     Q4_1         32     20   d q + m
      6     Q5_0         32     22   d (q - 16)        the fifth bits of all stand in four bytes
      7     Q5_1         32     24   d q + m
     12     Q4_K        256    144   d s q - m t       s and t: 6 bits for each 32 weights
     13     Q5_K        256    176   d s q - m t
     14     Q6_K        256    210   d s (q - 32)      s: int8 for each 16 weights

A kind's generator writes LLVM code for one block. Those of F32, F16 and BF16 yield vectors of LANES float32, a vector
at a time. The others yield `Part`s: numbers of a byte each, and what they are multiplied with and moved by. `vectors`
makes float32 of both, and rounded.py multiplies with the bytes as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from llvmlite import ir
from numba.core import cgutils

from . import llvm
from .llvm import CACHE_LINE, FLOAT, INT16, INT32, INT64, LANES, VECTOR

__all__ = ["LAYOUTS", "PIECE", "Block", "Layout", "Part", "block_of_each", "for_each_block", "one_weight", "vectors"]

PIECE = 16  # weights of one vector of bytes
# Bytes that weights are asked for ahead of the last of the rows that are read together. CPUs do that by themselves for
# one stretch of memory; of several rows at once they make less: 17 GB/s in place of 57. With 4096, eight rows of x took
# 1.2 times as long on an AMD core.
AHEAD = 5120
# Of a lone row: up to 1.1 times as fast on AMD, where the cores don't share the way to memory. On Intel all are alike.
AHEAD_OF_ONE = {"f32": 2048, "f16": 7168, "bf16": 7168}

_BYTE = ir.IntType(8)
_LONGS = ir.VectorType(INT32, LANES)

Vectors = Iterator[tuple[int, ir.Value]]  # number of the first weight, and LANES of them


class Part(NamedTuple):
    """Neighbours in a block: weight = scale * (number - middle), or, with a shift, scale * number + shift.

    Scale and shift are float32, in as many lanes as the block was asked for.
    """

    first: int  # number of the first weight
    pieces: list[ir.Value]  # of PIECE numbers of each row, 0 to 255
    scale: ir.Value
    middle: int  # of the numbers
    shift: ir.Value | None = None


Parts = Iterator[Part]


class Block:
    """A block of each of a few rows, all at once, and the code that takes them apart.

    rows   addresses of the blocks; of 16 numbers of each a vector is made, those of one row after those of another
    lanes  of vectors of float32: each row has as many for its scales and shifts
    """

    def __init__(self, builder: ir.IRBuilder, rows: list[ir.Value], lanes: int = LANES) -> None:
        self.builder = builder
        self.rows = rows
        self.lanes = lanes

    def load(self, offset: int, kind: ir.Type, count: int = 1) -> ir.Value:
        """`count` values of a kind, from an offset on, of each row: one vector."""
        vectors = []
        for row in self.rows:
            place = llvm.at(self.builder, row, ir.Constant(INT64, offset))
            vectors.append(llvm.load(self.builder, place, ir.VectorType(kind, count), align=1))
        while len(vectors) > 1:
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            vectors = [llvm.shuffle(self.builder, a, range(2 * a.type.count), b) for a, b in pairs]
        return vectors[0]

    def piece(self, offset: int) -> ir.Value:
        """PIECE bytes from an offset on."""
        return self.load(offset, _BYTE, PIECE)

    def low(self, numbers: ir.Value) -> ir.Value:
        """The lower four bits of each number."""
        return self.builder.and_(numbers, _all(numbers, 15))

    def high(self, numbers: ir.Value) -> ir.Value:
        """What stands above the lower four bits."""
        return self.builder.lshr(numbers, _all(numbers, 4))

    def bits(self, numbers: ir.Value, first: int, mask: int) -> ir.Value:
        """The bits from `first` on, by a mask, moved to the place above the lower four."""
        there = self.builder.and_(self.builder.lshr(numbers, _all(numbers, first)), _all(numbers, mask))
        return self.builder.shl(there, _all(numbers, 4))

    def fifth(self, offset: int) -> ir.Value:
        """PIECE bits from two bytes on, each worth 16."""
        count = PIECE * len(self.rows)
        bits = self.builder.bitcast(self.load(offset, INT16), ir.VectorType(ir.IntType(1), count))
        return self.builder.select(bits, llvm.same(_BYTE, count, 16), llvm.same(_BYTE, count, 0))

    def byte(self, offset: int) -> ir.Value:
        """One byte of each row as a whole number 0 to 255."""
        return self.builder.zext(self.load(offset, _BYTE), self._longs)

    def signed(self, offset: int) -> ir.Value:
        """One byte of each row as a whole number -128 to 127."""
        return self.builder.sext(self.load(offset, _BYTE), self._longs)

    @property
    def _longs(self) -> ir.Type:
        return ir.VectorType(INT32, len(self.rows))

    def half(self, offset: int) -> ir.Value:
        """A float16 of each row, in its lanes as a float32."""
        return self._spread(llvm.from_half(self.builder, self.load(offset, INT16)))

    def whole(self, numbers: ir.Value) -> ir.Value:
        """A whole number of each row, in its lanes as a float32."""
        return self._spread(self.builder.sitofp(numbers, ir.VectorType(FLOAT, len(self.rows))))

    def _spread(self, vector: ir.Value) -> ir.Value:
        """One value of each row in all of its lanes."""
        return llvm.shuffle(self.builder, vector, [lane * len(self.rows) // self.lanes for lane in range(self.lanes)])

    def times(self, vector: ir.Value, factor: float) -> ir.Value:
        """factor * vector."""
        return self.builder.fmul(vector, ir.Constant(vector.type, [factor] * self.lanes))


def _all(numbers: ir.Value, number: int) -> ir.Constant:
    """The same byte as often as there are numbers."""
    return llvm.same(_BYTE, numbers.type.count, number)


def _f32(block: Block) -> Vectors:
    for j in range(0, 32, LANES):
        yield j, block.load(4 * j, FLOAT, LANES)


def _f16(block: Block) -> Vectors:
    for j in range(0, 32, LANES):
        yield j, llvm.from_half(block.builder, block.load(2 * j, INT16, LANES))


def _bf16(block: Block) -> Vectors:
    for j in range(0, 32, LANES):
        yield j, _from_brain(block.builder, block.load(2 * j, INT16, LANES))


def _from_brain(builder: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    """float32 from the bits of bfloat16, lane by lane."""
    lanes = bits.type.count
    wide = builder.zext(bits, ir.VectorType(INT32, lanes))
    return builder.bitcast(builder.shl(wide, llvm.same(INT32, lanes, 16)), ir.VectorType(FLOAT, lanes))


def _q8_0(block: Block) -> Parts:
    pieces = [block.piece(2 + j) for j in (0, 16)]
    numbers = [block.builder.xor(piece, _all(piece, 128)) for piece in pieces]  # of -128 makes 0, of 127 255
    yield Part(0, numbers, block.half(0), middle=128)


def _q4_0(block: Block) -> Parts:
    numbers = block.piece(2)
    yield Part(0, [block.low(numbers), block.high(numbers)], block.half(0), middle=8)


def _q4_1(block: Block) -> Parts:
    numbers = block.piece(4)
    yield Part(0, [block.low(numbers), block.high(numbers)], block.half(0), middle=8, shift=block.half(2))


def _five_bits(block: Block, fifth: int, others: int) -> list[ir.Value]:
    """The 32 numbers of a block of Q5_0 or Q5_1, whose fifth bits and other bits begin at these bytes."""
    numbers = block.piece(others)
    halves = block.low(numbers), block.high(numbers)
    return [block.builder.or_(half, block.fifth(fifth + 2 * i)) for i, half in enumerate(halves)]


def _q5_0(block: Block) -> Parts:
    yield Part(0, _five_bits(block, 2, 6), block.half(0), middle=16)


def _q5_1(block: Block) -> Parts:
    yield Part(0, _five_bits(block, 4, 8), block.half(0), middle=16, shift=block.half(2))


def _scale_and_shift(block: Block, part: int, d: ir.Value, m: ir.Value) -> tuple[ir.Value, ir.Value]:
    """d s and -m t of 32 weights in a block of Q4_K or Q5_K.

    The twelve bytes of 6-bit numbers begin at 4. Bytes 0-3 and 4-7 of them have s and t of parts 0-3 in their lower
    six bits; bytes 8-11 the lower four bits of s and t of parts 4-7, whose upper two stand above those six.
    """
    b = block.builder

    def number(value: int) -> ir.Constant:
        return llvm.same(INT32, len(block.rows), value)

    if part < 4:
        s = b.and_(block.byte(4 + part), number(63))
        t = b.and_(block.byte(8 + part), number(63))
    else:
        low = block.byte(8 + part)
        s_above = b.shl(b.lshr(block.byte(part), number(6)), number(4))
        t_above = b.shl(b.lshr(block.byte(4 + part), number(6)), number(4))
        s = b.or_(b.and_(low, number(15)), s_above)
        t = b.or_(b.lshr(low, number(4)), t_above)
    return b.fmul(d, block.whole(s)), b.fmul(m, block.whole(t))


def _in_scaled_parts(block: Block, first: int, has_fifth: bool) -> Parts:
    """Q4_K and Q5_K: four bits of each weight stand from byte `first` on, the fifth ones from 16 on."""
    d, m = block.half(0), block.times(block.half(2), -1.0)
    for part in range(8):
        half, pieces = block.high if part % 2 else block.low, []
        for j in (0, 16):
            numbers = half(block.piece(first + part // 2 * 32 + j))
            if has_fifth:
                numbers = block.builder.or_(numbers, block.bits(block.piece(16 + j), part, 1))
            pieces.append(numbers)
        scale, shift = _scale_and_shift(block, part, d, m)
        yield Part(32 * part, pieces, scale, middle=16 if has_fifth else 8, shift=shift)


def _q4_k(block: Block) -> Parts:
    return _in_scaled_parts(block, first=16, has_fifth=False)


def _q5_k(block: Block) -> Parts:
    return _in_scaled_parts(block, first=48, has_fifth=True)


def _q6_k(block: Block) -> Parts:
    d = block.half(208)
    for part in range(8):  # of 32 weights; four of them share the bytes of half a block
        half = block.high if part % 4 >= 2 else block.low
        for j in (0, 16):
            numbers = half(block.piece(64 * (part // 4) + 32 * (part % 2) + j))
            above = block.bits(block.piece(128 + 32 * (part // 4) + j), 2 * (part % 4), 3)
            scale = block.builder.fmul(d, block.whole(block.signed(192 + 2 * part + j // 16)))
            yield Part(32 * part + j, [block.builder.or_(numbers, above)], scale, middle=32)


class Layout(NamedTuple):
    """What a kind's blocks are."""

    name: str
    weights: int  # that the generator yields at a time
    size: int  # their bytes
    floats: Callable[[Block], Vectors] | None = None  # one of the two
    parts: Callable[[Block], Parts] | None = None
    bytes_each: int = 0  # of a weight where rows may have any length, which the last ones then need


LAYOUTS = {
    0: Layout("f32", 32, 128, floats=_f32, bytes_each=4),
    1: Layout("f16", 32, 64, floats=_f16, bytes_each=2),
    30: Layout("bf16", 32, 64, floats=_bf16, bytes_each=2),
    8: Layout("q8_0", 32, 34, parts=_q8_0),
    2: Layout("q4_0", 32, 18, parts=_q4_0),
    3: Layout("q4_1", 32, 20, parts=_q4_1),
    6: Layout("q5_0", 32, 22, parts=_q5_0),
    7: Layout("q5_1", 32, 24, parts=_q5_1),
    12: Layout("q4_k", 256, 144, parts=_q4_k),
    13: Layout("q5_k", 256, 176, parts=_q5_k),
    14: Layout("q6_k", 256, 210, parts=_q6_k),
}


def vectors(layout: Layout, block: Block) -> Vectors:
    """A block's weights as float32."""
    if layout.floats is not None:
        yield from layout.floats(block)
        return
    assert layout.parts is not None
    builder = block.builder
    for part in layout.parts(block):
        shift = block.times(part.scale, -part.middle) if part.shift is None else part.shift
        for i, piece in enumerate(part.pieces):
            for j in range(0, PIECE, LANES):
                numbers = builder.zext(llvm.shuffle(builder, piece, range(j, j + LANES)), _LONGS)
                yield part.first + i * PIECE + j, llvm.fma(builder, builder.sitofp(numbers, VECTOR), part.scale, shift)


def one_weight(builder: ir.IRBuilder, kind: int, address: ir.Value) -> ir.Value:
    """A lone weight of F32, F16 or BF16."""
    block = Block(builder, [address], lanes=1)
    if kind == 0:
        number = block.load(0, FLOAT)
    elif kind == 1:
        number = block.half(0)
    else:
        number = _from_brain(builder, block.load(0, INT16))
    return builder.extract_element(number, ir.Constant(INT32, 0))


def for_each_block(builder, layout, columns, body, last):
    """body(number of its first byte, of its first weight) for each block, last(byte, weight) for lone weights."""
    whole = builder.sdiv(columns, ir.Constant(INT64, layout.weights))
    with cgutils.for_range(builder, whole, intp=INT64) as loop:
        body(
            builder.mul(loop.index, ir.Constant(INT64, layout.size)),
            builder.mul(loop.index, ir.Constant(INT64, layout.weights)),
        )
    if layout.bytes_each:
        done = builder.mul(whole, ir.Constant(INT64, layout.weights))
        with cgutils.for_range(builder, builder.sub(columns, done), intp=INT64) as loop:
            number = builder.add(done, loop.index)
            last(builder.mul(number, ir.Constant(INT64, layout.bytes_each)), number)


def block_of_each(builder: ir.IRBuilder, layout: Layout, rows: list[ir.Value], byte: ir.Value) -> list[ir.Value]:
    """The addresses of the rows' blocks that begin at a byte.

    As many bytes as these blocks have are asked for, further on in memory, where the next rows stand one after another.
    """
    count = ir.Constant(INT64, len(rows))
    distance = AHEAD_OF_ONE.get(layout.name, AHEAD) if len(rows) == 1 else AHEAD
    ahead = llvm.at(builder, rows[-1], builder.mul(byte, count), ir.Constant(INT64, distance))
    for line in range(0, layout.size * len(rows), CACHE_LINE):
        llvm.prefetch(builder, llvm.at(builder, ahead, ir.Constant(INT64, line)))
    return [llvm.at(builder, row, byte) for row in rows]
