"""How files keep weights, and what turns a row of them into float32 on its way to the registers.

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

For each kind `_EMIT` has a generator that writes LLVM code for one block and yields it as vectors of LANES float32,
a vector at a time: (number of the first weight, vector). Two intrinsics take them:

    dot_rows    multiplies them with rows of x while they are in registers
    unpack_row  stores them

A function for each kind (`dot_q4_0`, ...) is compiled when a model first needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import deferred, inline, literally
from .simd import _FLOAT, _INT, _VECTOR, FLOATS, HAS_HALF, LANES, _broadcast, _call, _fma, _reduce, advance

__all__ = ["BYTES", "block_weights", "call_dot", "call_unpack", "dot_of", "step", "unpack_of"]

BYTES = types.CPointer(types.uint8)

_BYTE, _SHORT, _LONG = ir.IntType(8), ir.IntType(16), ir.IntType(32)
_SHORTS, _LONGS = ir.VectorType(_SHORT, LANES), ir.VectorType(_LONG, LANES)
_FIRST = ir.Constant(_LONGS, [0] * LANES)  # shuffles the first lane into all

Vectors = Iterator[tuple[int, ir.Value]]

# A dot product is the sum of so many accumulators. With those of OUTPUTS rows of weights and TOGETHER rows of x at a
# time, a multiply-add need not wait for the one before, a weight is unpacked once and an x loaded once for several, and
# all stay in the registers, of which AVX2 has 16.
SUMS = 2
OUTPUTS = 2
# Bytes that weights are asked for ahead of their use. CPUs do that by themselves for one stretch of memory; of several
# rows at once they make less: 17 GB/s in place of 57.
AHEAD = 4096
CACHE_LINE = 64
TOGETHER = 2 if LANES == 8 else 4


class Block:
    """One block at an address, and the code that takes it apart."""

    def __init__(self, builder: ir.IRBuilder, address: ir.Value) -> None:
        self.builder = builder
        self.address = address

    def _load(self, offset: int, kind: ir.Type) -> ir.Value:
        place = self.builder.gep(self.address, [ir.Constant(_INT, offset)])
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
    centre = block.times(scale, -8.0)
    for half in (block.low, block.high):
        for j in range(0, 16, LANES):
            yield j + (16 if half == block.high else 0), block.weights(half(block.unsigned(2 + j)), scale, centre)


def _q4_1(block: Block) -> Vectors:
    scale, shift = block.half(0), block.half(2)
    for half in (block.low, block.high):
        for j in range(0, 16, LANES):
            yield j + (16 if half == block.high else 0), block.weights(half(block.unsigned(4 + j)), scale, shift)


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


def _q4_k(block: Block) -> Vectors:
    d, m = block.half(0), block.times(block.half(2), -1.0)
    for part in range(8):
        scale, shift = _scale_and_shift(block, part, d, m)
        half = block.high if part % 2 else block.low
        for j in range(0, 32, LANES):
            numbers = half(block.unsigned(16 + part // 2 * 32 + j))
            yield 32 * part + j, block.weights(numbers, scale, shift)


def _q5_k(block: Block) -> Vectors:
    d, m = block.half(0), block.times(block.half(2), -1.0)
    for part in range(8):
        scale, shift = _scale_and_shift(block, part, d, m)
        half = block.high if part % 2 else block.low
        for j in range(0, 32, LANES):
            numbers = half(block.unsigned(48 + part // 2 * 32 + j))
            fifth = block.bits(block.unsigned(16 + j), part, 1)
            yield 32 * part + j, block.weights(block.builder.or_(numbers, fifth), scale, shift)


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


class _Layout(NamedTuple):
    weights: int  # that `emit` yields at a time
    size: int  # their bytes
    emit: Callable[[Block], Vectors]
    bytes_each: int = 0  # of a weight where rows may have any length, which the last ones then need


_LAYOUTS = {
    0: _Layout(32, 128, _f32, 4),
    1: _Layout(32, 64, _f16, 2),
    30: _Layout(32, 64, _bf16, 2),
    8: _Layout(32, 34, _q8_0),
    2: _Layout(32, 18, _q4_0),
    3: _Layout(32, 20, _q4_1),
    6: _Layout(32, 22, _q5_0),
    7: _Layout(32, 24, _q5_1),
    12: _Layout(256, 144, _q4_k),
    13: _Layout(256, 176, _q5_k),
    14: _Layout(256, 210, _q6_k),
}


def block_weights(kind: int) -> int:
    """Weights in a block of a kind: a row may be cut between blocks."""
    layout = _LAYOUTS[kind]
    return 1 if layout.bytes_each else layout.weights


def _one_weight(builder: ir.IRBuilder, kind: int, address: ir.Value) -> ir.Value:
    """A lone weight of F32, F16 or BF16."""
    block = Block(builder, address)
    if kind == 0:
        return block._load(0, _FLOAT)
    if kind == 1:
        return builder.extract_element(block.half(0), ir.Constant(_LONG, 0))
    bits = builder.zext(block._load(0, _SHORT), _LONG)
    return builder.bitcast(builder.shl(bits, ir.Constant(_LONG, 16)), _FLOAT)


def _prefetch_read(builder: ir.IRBuilder, pointer: ir.Value) -> None:
    """Bring the line of an address to the first cache, to be read; nothing happens where there is no memory."""
    read, keep, data = (ir.Constant(_LONG, value) for value in (0, 3, 1))
    _call(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, read, keep, data])


def _advance(builder: ir.IRBuilder, pointer: ir.Value, offset: ir.Value) -> ir.Value:
    return builder.gep(pointer, [offset])


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

    Its accumulators are the same whatever the others are, so a row has the same bits alone or beside others.
    """
    layout = _LAYOUTS[kind]
    pairs = [(o, r) for o in range(len(weights)) for r in range(len(rows))]
    zero, zeros = ir.Constant(_FLOAT, 0.0), ir.Constant(_VECTOR, [0.0] * LANES)
    sums = {pair: [cgutils.alloca_once_value(builder, zeros) for _ in range(SUMS)] for pair in pairs}
    rests = {pair: cgutils.alloca_once_value(builder, zero) for pair in pairs}

    def body(byte: ir.Value, first: ir.Value) -> None:
        starts = [_advance(builder, weight, byte) for weight in weights]
        for start in starts:
            for line in range(0, layout.size, CACHE_LINE):
                _prefetch_read(builder, _advance(builder, start, ir.Constant(_INT, AHEAD + line)))
        blocks = [layout.emit(Block(builder, start)) for start in starts]
        for number, vectors in enumerate(zip(*blocks, strict=True)):
            offset = vectors[0][0]
            factors = []
            for row in rows:
                here = _advance(builder, row, builder.add(first, ir.Constant(_INT, offset)))
                factors.append(builder.load(builder.bitcast(here, _VECTOR.as_pointer())))
                factors[-1].align = 4
            for o, r in pairs:
                accumulator = sums[o, r][number % SUMS]
                product = _fma(builder, vectors[o][1], factors[r], builder.load(accumulator))
                builder.store(product, accumulator)

    def last(byte: ir.Value, number: ir.Value) -> None:
        values = [_one_weight(builder, kind, _advance(builder, weight, byte)) for weight in weights]
        factors = [builder.load(_advance(builder, row, number)) for row in rows]
        for o, r in pairs:
            rest = rests[o, r]
            product = _call(builder, "llvm.fma.f32", _FLOAT, [values[o], factors[r], builder.load(rest)])
            builder.store(product, rest)

    _for_each_block(builder, layout, columns, body, last)
    totals = {}
    for pair, (first, second) in sums.items():
        both = builder.fadd(builder.load(first), builder.load(second))
        totals[pair] = builder.fadd(_reduce(builder, both, builder.fadd), builder.load(rests[pair]))
    return totals


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
        weights = [_advance(builder, weight, builder.mul(size, ir.Constant(_INT, o))) for o in range(o_count)]
        starts = [_advance(builder, x, builder.mul(x_row, ir.Constant(_INT, r))) for r in range(r_count)]
        for (o, r), total in _sums(builder, number, weights, starts, columns).items():
            place = builder.add(builder.mul(out_row, ir.Constant(_INT, r)), ir.Constant(_INT, o))
            builder.store(total, _advance(builder, out, place)).align = 4
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
        layout = _LAYOUTS[number]

        def body(byte, first):
            for offset, values in layout.emit(Block(builder, _advance(builder, weight, byte))):
                place = _advance(builder, out, builder.add(first, ir.Constant(_INT, offset)))
                builder.store(values, builder.bitcast(place, _VECTOR.as_pointer())).align = 4

        def last(byte, position):
            value = _one_weight(builder, number, _advance(builder, weight, byte))
            builder.store(value, _advance(builder, out, position))

        _for_each_block(builder, layout, columns, body, last)
        return context.get_dummy_value()

    return types.void(kind, FLOATS, BYTES, types.int64), codegen


@intrinsic
def step(typingctx, pointer, offset):
    """The address so many bytes further."""

    def codegen(context, builder, signature, arguments):
        return _advance(builder, *arguments)

    return BYTES(BYTES, types.int64), codegen


N = types.int64
DOT = types.void(FLOATS, N, FLOATS, N, BYTES, N, N, N, N)
UNPACK = types.void(FLOATS, N, BYTES, N, N, N)



@inline
def _dot(kind, out, out_row, x, x_row, weight, size, outputs, columns, rows):
    """out[r * out_row + o] = x[r] . weight[o] for so many rows r and outputs o; a row of weights has `size` bytes."""
    literally(kind)
    whole, together = outputs // OUTPUTS * OUTPUTS, rows // TOGETHER * TOGETHER
    for o in range(0, whole, OUTPUTS):
        row, to = step(weight, o * size), advance(out, o)
        for r in range(0, together, TOGETHER):
            here, there = advance(to, r * out_row), advance(x, r * x_row)
            dot_rows(kind, OUTPUTS, TOGETHER, here, out_row, there, x_row, row, size, columns)
        for r in range(together, rows):
            here, there = advance(to, r * out_row), advance(x, r * x_row)
            dot_rows(kind, OUTPUTS, 1, here, out_row, there, x_row, row, size, columns)
    for o in range(whole, outputs):
        row, to = step(weight, o * size), advance(out, o)
        for r in range(rows):
            dot_rows(kind, 1, 1, advance(to, r * out_row), out_row, advance(x, r * x_row), x_row, row, size, columns)


@inline
def _unpack(kind, out, out_row, weight, size, outputs, columns):
    """out[o * out_row + c] = weight[o, c] for so many rows o."""
    literally(kind)
    for o in range(outputs):
        unpack_row(kind, advance(out, o * out_row), step(weight, o * size), columns)


@deferred(DOT)
def dot_f32(out, out_row, x, x_row, weight, size, outputs, columns, rows):
    _dot(0, out, out_row, x, x_row, weight, size, outputs, columns, rows)


@deferred(UNPACK)
def unpack_f32(out, out_row, weight, size, outputs, columns):
    _unpack(0, out, out_row, weight, size, outputs, columns)


@deferred(DOT)
def dot_f16(out, out_row, x, x_row, weight, size, outputs, columns, rows):
    _dot(1, out, out_row, x, x_row, weight, size, outputs, columns, rows)


@deferred(UNPACK)
def unpack_f16(out, out_row, weight, size, outputs, columns):
    _unpack(1, out, out_row, weight, size, outputs, columns)


@deferred(DOT)
def dot_bf16(out, out_row, x, x_row, weight, size, outputs, columns, rows):
    _dot(30, out, out_row, x, x_row, weight, size, outputs, columns, rows)


@deferred(UNPACK)
def unpack_bf16(out, out_row, weight, size, outputs, columns):
    _unpack(30, out, out_row, weight, size, outputs, columns)


@deferred(DOT)
def dot_q8_0(out, out_row, x, x_row, weight, size, outputs, columns, rows):
    _dot(8, out, out_row, x, x_row, weight, size, outputs, columns, rows)


@deferred(UNPACK)
def unpack_q8_0(out, out_row, weight, size, outputs, columns):
    _unpack(8, out, out_row, weight, size, outputs, columns)


@deferred(DOT)
def dot_q4_0(out, out_row, x, x_row, weight, size, outputs, columns, rows):
    _dot(2, out, out_row, x, x_row, weight, size, outputs, columns, rows)


@deferred(UNPACK)
def unpack_q4_0(out, out_row, weight, size, outputs, columns):
    _unpack(2, out, out_row, weight, size, outputs, columns)


@deferred(DOT)
def dot_q4_1(out, out_row, x, x_row, weight, size, outputs, columns, rows):
    _dot(3, out, out_row, x, x_row, weight, size, outputs, columns, rows)


@deferred(UNPACK)
def unpack_q4_1(out, out_row, weight, size, outputs, columns):
    _unpack(3, out, out_row, weight, size, outputs, columns)


@deferred(DOT)
def dot_q5_0(out, out_row, x, x_row, weight, size, outputs, columns, rows):
    _dot(6, out, out_row, x, x_row, weight, size, outputs, columns, rows)


@deferred(UNPACK)
def unpack_q5_0(out, out_row, weight, size, outputs, columns):
    _unpack(6, out, out_row, weight, size, outputs, columns)


@deferred(DOT)
def dot_q5_1(out, out_row, x, x_row, weight, size, outputs, columns, rows):
    _dot(7, out, out_row, x, x_row, weight, size, outputs, columns, rows)


@deferred(UNPACK)
def unpack_q5_1(out, out_row, weight, size, outputs, columns):
    _unpack(7, out, out_row, weight, size, outputs, columns)


@deferred(DOT)
def dot_q4_k(out, out_row, x, x_row, weight, size, outputs, columns, rows):
    _dot(12, out, out_row, x, x_row, weight, size, outputs, columns, rows)


@deferred(UNPACK)
def unpack_q4_k(out, out_row, weight, size, outputs, columns):
    _unpack(12, out, out_row, weight, size, outputs, columns)


@deferred(DOT)
def dot_q5_k(out, out_row, x, x_row, weight, size, outputs, columns, rows):
    _dot(13, out, out_row, x, x_row, weight, size, outputs, columns, rows)


@deferred(UNPACK)
def unpack_q5_k(out, out_row, weight, size, outputs, columns):
    _unpack(13, out, out_row, weight, size, outputs, columns)


@deferred(DOT)
def dot_q6_k(out, out_row, x, x_row, weight, size, outputs, columns, rows):
    _dot(14, out, out_row, x, x_row, weight, size, outputs, columns, rows)


@deferred(UNPACK)
def unpack_q6_k(out, out_row, weight, size, outputs, columns):
    _unpack(14, out, out_row, weight, size, outputs, columns)


_DOTS = {
    0: dot_f32,
    1: dot_f16,
    30: dot_bf16,
    8: dot_q8_0,
    2: dot_q4_0,
    3: dot_q4_1,
    6: dot_q5_0,
    7: dot_q5_1,
    12: dot_q4_k,
    13: dot_q5_k,
    14: dot_q6_k,
}
_UNPACKS = {
    0: unpack_f32,
    1: unpack_f16,
    30: unpack_bf16,
    8: unpack_q8_0,
    2: unpack_q4_0,
    3: unpack_q4_1,
    6: unpack_q5_0,
    7: unpack_q5_1,
    12: unpack_q4_k,
    13: unpack_q5_k,
    14: unpack_q6_k,
}


def dot_of(kind: int) -> int:
    """The address of a kind's dot products, compiled when it is first asked for."""
    return _DOTS[kind].address


def unpack_of(kind: int) -> int:
    """The address of what unpacks rows of a kind, compiled when it is first asked for."""
    return _UNPACKS[kind].address


def _call_address(builder, address, result, arguments):
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    builder.call(builder.inttoptr(address, kind.as_pointer()), arguments)


@intrinsic
def call_dot(typingctx, address, out, out_row, x, x_row, weight, size, outputs, columns, rows):
    """Call the function at an address that dot_of gave."""

    def codegen(context, builder, signature, arguments):
        _call_address(builder, arguments[0], ir.VoidType(), arguments[1:])
        return context.get_dummy_value()

    return types.void(N, *DOT.args), codegen


@intrinsic
def call_unpack(typingctx, address, out, out_row, weight, size, outputs, columns):
    """Call the function at an address that unpack_of gave."""

    def codegen(context, builder, signature, arguments):
        _call_address(builder, arguments[0], ir.VoidType(), arguments[1:])
        return context.get_dummy_value()

    return types.void(N, *UNPACK.args), codegen
