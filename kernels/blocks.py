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

For each kind LAYOUTS has a generator that writes LLVM code for one block and yields it as vectors of LANES float32, a
vector at a time: (number of the first weight, vector).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from llvmlite import ir

from .simd import _FLOAT, _INT, _VECTOR, HAS_HALF, LANES, _at, _broadcast, _call, _fma

__all__ = ["LAYOUTS", "Block", "Layout", "one_weight"]

_BYTE, _SHORT, _LONG = ir.IntType(8), ir.IntType(16), ir.IntType(32)
_SHORTS, _LONGS = ir.VectorType(_SHORT, LANES), ir.VectorType(_LONG, LANES)
_FIRST = ir.Constant(_LONGS, [0] * LANES)  # shuffles the first lane into all

Vectors = Iterator[tuple[int, ir.Value]]


class Block:
    """One block at an address, and the code that takes it apart."""

    def __init__(self, builder: ir.IRBuilder, address: ir.Value) -> None:
        self.builder = builder
        self.address = address

    def _load(self, offset: int, kind: ir.Type) -> ir.Value:
        place = _at(self.builder, self.address, ir.Constant(_INT, offset))
        value = self.builder.load(self.builder.bitcast(place, kind.as_pointer()))
        value.align = 1
        return value

    def same(self, number: int) -> ir.Constant:
        """A vector of whole numbers, all the same."""
        return ir.Constant(_LONGS, [number] * LANES)

    def unsigned(self, offset: int) -> ir.Value:
        """LANES bytes from an offset on, as whole numbers 0 to 255."""
        return self.builder.zext(self._load(offset, ir.VectorType(_BYTE, LANES)), _LONGS)

    def signed(self, offset: int) -> ir.Value:
        """LANES bytes from an offset on, as whole numbers -128 to 127."""
        return self.builder.sext(self._load(offset, ir.VectorType(_BYTE, LANES)), _LONGS)

    def low(self, numbers: ir.Value) -> ir.Value:
        """The lower four bits of each number."""
        return self.builder.and_(numbers, self.same(15))

    def high(self, numbers: ir.Value) -> ir.Value:
        """What stands above the lower four bits."""
        return self.builder.lshr(numbers, self.same(4))

    def bits(self, numbers: ir.Value, first: int, mask: int) -> ir.Value:
        """The bits from `first` on, by a mask, moved to the place above the lower four."""
        there = self.builder.and_(self.builder.lshr(numbers, self.same(first)), self.same(mask))
        return self.builder.shl(there, self.same(4))

    def fifth(self, offset: int, first: int) -> ir.Value:
        """Bits first, first + 1, ... of four bytes, one for each lane, each worth 16."""
        word = self._load(offset, _LONG)
        one = self.builder.insert_element(ir.Constant(_LONGS, ir.Undefined), word, ir.Constant(_LONG, 0))
        all_lanes = self.builder.shuffle_vector(one, ir.Constant(_LONGS, ir.Undefined), self.same(0))
        shifts = ir.Constant(_LONGS, [first + lane for lane in range(LANES)])
        bit = self.builder.and_(self.builder.lshr(all_lanes, shifts), self.same(1))
        return self.builder.shl(bit, self.same(4))

    def byte(self, offset: int) -> ir.Value:
        """One byte as a whole number 0 to 255."""
        return self.builder.zext(self._load(offset, _BYTE), _LONG)

    def half(self, offset: int) -> ir.Value:
        """A float16, in all lanes as a float32."""
        bits = self._load(offset, _SHORT)
        one = self.builder.insert_element(ir.Constant(_SHORTS, ir.Undefined), bits, ir.Constant(_LONG, 0))
        return _from_half(self.builder, self.builder.shuffle_vector(one, ir.Constant(_SHORTS, ir.Undefined), _FIRST))

    def halves(self, offset: int) -> ir.Value:
        """LANES float16 as float32."""
        return _from_half(self.builder, self._load(offset, _SHORTS))

    def brain(self, offset: int) -> ir.Value:
        """LANES bfloat16 as float32."""
        wide = self.builder.zext(self._load(offset, ir.VectorType(_SHORT, LANES)), _LONGS)
        return self.builder.bitcast(self.builder.shl(wide, self.same(16)), _VECTOR)

    def floats(self, offset: int) -> ir.Value:
        """LANES float32."""
        return self._load(offset, _VECTOR)

    def weights(self, numbers: ir.Value, scale: ir.Value, shift: ir.Value | None = None) -> ir.Value:
        """scale * numbers, plus shift: vectors both."""
        values = self.builder.sitofp(numbers, _VECTOR)
        if shift is None:
            return self.builder.fmul(values, scale)
        return _fma(self.builder, values, scale, shift)

    def four_bits(self, scale: ir.Value, shift: ir.Value) -> Callable[[ir.Value, bool], ir.Value]:
        """What makes scale * q + shift of bytes, with q in the upper or the lower half of each: (bytes, is upper).

        Where a vector has sixteen lanes, all sixteen results are made once and looked up.
        """
        if LANES < 16:
            return lambda numbers, is_upper: self.weights(
                self.high(numbers) if is_upper else self.low(numbers), scale, shift
            )
        table = _fma(self.builder, ir.Constant(_VECTOR, [float(q) for q in range(16)]), scale, shift)

        def look_up(numbers: ir.Value, is_upper: bool) -> ir.Value:
            numbers = self.high(numbers) if is_upper else numbers  # of a number its lower four bits count
            return _call(self.builder, "llvm.x86.avx512.permvar.sf.512", _VECTOR, [table, numbers])

        return look_up

    def times(self, vector: ir.Value, factor: float) -> ir.Value:
        """factor * vector."""
        return self.builder.fmul(vector, ir.Constant(_VECTOR, [factor] * LANES))

    def all(self, scalar: ir.Value) -> ir.Value:
        """A float32 in all lanes."""
        return _broadcast(self.builder, scalar)


def _from_half(builder: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    """float32 from the bits of float16, lane by lane; exact for all finite numbers.

    Where no instruction does it, exponent and fraction move to their places in a float32, which is then 2^112 times
    too small; so subnormal numbers come out right too. Infinity and NaN become finite: weights have none.
    """
    if HAS_HALF:
        return builder.fpext(builder.bitcast(bits, ir.VectorType(ir.HalfType(), LANES)), _VECTOR)

    def same(number: int) -> ir.Constant:
        return ir.Constant(_LONGS, [number] * LANES)

    wide = builder.zext(bits, _LONGS)
    magnitude = builder.bitcast(builder.shl(builder.and_(wide, same(0x7FFF)), same(13)), _VECTOR)
    number = builder.fmul(magnitude, ir.Constant(_VECTOR, [2.0**112] * LANES))
    sign = builder.shl(builder.and_(wide, same(0x8000)), same(16))
    return builder.bitcast(builder.or_(builder.bitcast(number, _LONGS), sign), _VECTOR)


def _f32(block: Block) -> Vectors:
    for j in range(0, 32, LANES):
        yield j, block.floats(4 * j)


def _f16(block: Block) -> Vectors:
    for j in range(0, 32, LANES):
        yield j, block.halves(2 * j)


def _bf16(block: Block) -> Vectors:
    for j in range(0, 32, LANES):
        yield j, block.brain(2 * j)


def _q8_0(block: Block) -> Vectors:
    scale = block.half(0)
    for j in range(0, 32, LANES):
        yield j, block.weights(block.signed(2 + j), scale)


def _q4_0(block: Block) -> Vectors:
    scale = block.half(0)
    weight = block.four_bits(scale, block.times(scale, -8.0))
    for is_upper in (False, True):
        for j in range(0, 16, LANES):
            yield j + 16 * is_upper, weight(block.unsigned(2 + j), is_upper)


def _q4_1(block: Block) -> Vectors:
    weight = block.four_bits(block.half(0), block.half(2))
    for is_upper in (False, True):
        for j in range(0, 16, LANES):
            yield j + 16 * is_upper, weight(block.unsigned(4 + j), is_upper)


def _q5_0(block: Block) -> Vectors:
    scale = block.half(0)
    centre = block.times(scale, -16.0)
    for half in (block.low, block.high):
        for j in range(0, 16, LANES):
            first = j + (16 if half == block.high else 0)
            number = block.builder.or_(half(block.unsigned(6 + j)), block.fifth(2, first))
            yield first, block.weights(number, scale, centre)


def _q5_1(block: Block) -> Vectors:
    scale, shift = block.half(0), block.half(2)
    for half in (block.low, block.high):
        for j in range(0, 16, LANES):
            first = j + (16 if half == block.high else 0)
            number = block.builder.or_(half(block.unsigned(8 + j)), block.fifth(4, first))
            yield first, block.weights(number, scale, shift)


def _scale_and_shift(block: Block, part: int, d: ir.Value, m: ir.Value) -> tuple[ir.Value, ir.Value]:
    """d s and -m t, in all lanes, of 32 weights in a block of Q4_K or Q5_K.

    The twelve bytes of 6-bit numbers begin at 4. Bytes 0-3 and 4-7 of them have s and t of parts 0-3 in their lower
    six bits; bytes 8-11 the lower four bits of s and t of parts 4-7, whose upper two stand above those six.
    """
    b = block.builder

    def number(value: int) -> ir.Constant:
        return ir.Constant(_LONG, value)

    if part < 4:
        s = b.and_(block.byte(4 + part), number(63))
        t = b.and_(block.byte(8 + part), number(63))
    else:
        low = block.byte(8 + part)
        s_above = b.shl(b.lshr(block.byte(part), number(6)), number(4))
        t_above = b.shl(b.lshr(block.byte(4 + part), number(6)), number(4))
        s = b.or_(b.and_(low, number(15)), s_above)
        t = b.or_(b.lshr(low, number(4)), t_above)
    return b.fmul(d, block.all(b.sitofp(s, _FLOAT))), b.fmul(m, block.all(b.sitofp(t, _FLOAT)))


def _in_scaled_parts(block: Block, first: int, has_fifth: bool) -> Vectors:
    """Q4_K and Q5_K: four bits of each weight stand from byte `first` on, the fifth ones from 16 on."""
    d, m = block.half(0), block.times(block.half(2), -1.0)
    for part in range(8):
        scale, shift = _scale_and_shift(block, part, d, m)
        half, weight = block.high if part % 2 else block.low, block.four_bits(scale, shift)
        for j in range(0, 32, LANES):
            numbers = block.unsigned(first + part // 2 * 32 + j)
            if has_fifth:
                numbers = block.builder.or_(half(numbers), block.bits(block.unsigned(16 + j), part, 1))
                yield 32 * part + j, block.weights(numbers, scale, shift)
            else:
                yield 32 * part + j, weight(numbers, part % 2 == 1)


def _q4_k(block: Block) -> Vectors:
    return _in_scaled_parts(block, first=16, has_fifth=False)


def _q5_k(block: Block) -> Vectors:
    return _in_scaled_parts(block, first=48, has_fifth=True)


def _q6_k(block: Block) -> Vectors:
    d = block.half(208)
    for part in range(8):  # of 32 weights; four of them share the bytes of half a block
        half = block.high if part % 4 >= 2 else block.low
        for j in range(0, 32, LANES):
            numbers = half(block.unsigned(64 * (part // 4) + 32 * (part % 2) + j))
            above = block.bits(block.unsigned(128 + 32 * (part // 4) + j), 2 * (part % 4), 3)
            centred = block.builder.sub(block.builder.or_(numbers, above), block.same(32))
            s = block.builder.sext(block._load(192 + 2 * part + j // 16, _BYTE), _LONG)
            scale = block.builder.fmul(d, block.all(block.builder.sitofp(s, _FLOAT)))
            yield 32 * part + j, block.weights(centred, scale)


class Layout(NamedTuple):
    """What a kind's blocks are."""

    name: str
    weights: int  # that `emit` yields at a time
    size: int  # their bytes
    emit: Callable[[Block], Vectors]
    bytes_each: int = 0  # of a weight where rows may have any length, which the last ones then need


LAYOUTS = {
    0: Layout("f32", 32, 128, _f32, 4),
    1: Layout("f16", 32, 64, _f16, 2),
    30: Layout("bf16", 32, 64, _bf16, 2),
    8: Layout("q8_0", 32, 34, _q8_0),
    2: Layout("q4_0", 32, 18, _q4_0),
    3: Layout("q4_1", 32, 20, _q4_1),
    6: Layout("q5_0", 32, 22, _q5_0),
    7: Layout("q5_1", 32, 24, _q5_1),
    12: Layout("q4_k", 256, 144, _q4_k),
    13: Layout("q5_k", 256, 176, _q5_k),
    14: Layout("q6_k", 256, 210, _q6_k),
}


def one_weight(builder: ir.IRBuilder, kind: int, address: ir.Value) -> ir.Value:
    """A lone weight of F32, F16 or BF16."""
    block = Block(builder, address)
    if kind == 0:
        return block._load(0, _FLOAT)
    if kind == 1:
        return builder.extract_element(block.half(0), ir.Constant(_LONG, 0))
    bits = builder.zext(block._load(0, _SHORT), _LONG)
    return builder.bitcast(builder.shl(bits, ir.Constant(_LONG, 16)), _FLOAT)
