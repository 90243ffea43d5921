"""The block formats in which files store weights, and how a block becomes float32 in registers.

A row of a matrix is a sequence of blocks without gaps. The formats and their numbers are ggml's
(github.com/ggml-org/ggml, ggml-common.h). d and m are float16, one per block; q is the few bits of one weight.

    number  kind    weights  bytes
      0     F32           1      4
      1     F16           1      2
     30     BF16          1      2   the upper half of a float32
      8     Q8_0         32     34   d q               q: int8
      2     Q4_0         32     18   d (q - 8)         q: 4 bits; weights j and j + 16 share a byte
      3     Q4_1         32     20   d q + m
      6     Q5_0         32     22   d (q - 16)        q: 5 bits; the fifth bits of all 32 are one word
      7     Q5_1         32     24   d q + m
     12     Q4_K        256    144   d s q - m t       q: 4 bits; s and t: 6 bits for each 32 weights
     13     Q5_K        256    176   d s q - m t       q: 5 bits
     14     Q6_K        256    210   d s (q - 32)      q: 6 bits; s: int8 for each 16 weights

Each kind has a generator that emits LLVM code for one block. The generators of F32, F16 and BF16 yield vectors of LANES
float32. The others yield `Part`s: the weights' bits as one unsigned byte each, with a scale and a shift. A long block
consists of a few groups of parts, and the code loops over the groups: unrolled, it took 20 to 30 KB, more than a core
fetches at full speed. `for_each_vectors` turns both into float32; rounded.py multiplies with the parts as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from llvmlite import ir
from numba.core import cgutils

from . import llvm
from .llvm import CACHE_LINE, FLOAT, INT16, INT32, INT64, LANES, LONGS, VECTOR
from .unpacking import PIECE, Block

__all__ = [
    "LAYOUTS", "Layout", "Part", "Parts", "Vectors", "block_of_each", "for_each_block", "for_each_group",
    "for_each_vectors", "one_weight",
]  # fmt: skip

# How many bytes ahead weights are prefetched; see block_of_each. The hardware prefetcher follows a single row well, but
# left to it, several rows at once arrived at 17 GB/s instead of 57. With 4096, eight rows of x took 1.2 times as long
# on an AMD core.
AHEAD = 5120
# The same where one row is read at a time: up to 1.1 times as fast as AHEAD on AMD, where the cores don't share the
# path to memory. On Intel it makes no difference.
AHEAD_OF_ONE = {"f32": 2048, "f16": 7168, "bf16": 7168}


Vectors = Iterator[tuple[int, ir.Value]]  # index of the first weight within its group, and LANES weights


class Part(NamedTuple):
    """Consecutive weights of a block that share a scale and a shift: weight = scale * number + shift.

    Scale and shift are float32 vectors of block.lanes lanes.
    """

    first: int  # index of the first weight within its group
    pieces: list[ir.Value]  # vectors of bytes: PIECE numbers, 0 to 255, of each row
    scale: ir.Value
    shift: ir.Value


Parts = Iterator[Part]
Groups = Callable[[ir.Value], Parts]  # from a group's number, known only at run time, to its parts


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


def _one_group(parts: Callable[[Block], Parts]) -> Callable[[Block], Groups]:
    """The groups of a short block, which has just one."""
    return lambda block: lambda number: parts(block)


def _around(block: Block, middle: int, first: int, pieces: list[ir.Value], scale: ir.Value) -> Part:
    """weight = scale * (number - middle)."""
    return Part(first, pieces, scale, block.times(scale, -middle))


def _q8_0(block: Block) -> Parts:
    pieces = [block.piece(2 + j) for j in (0, 16)]
    numbers = [block.raised(piece) for piece in pieces]
    yield _around(block, 128, 0, numbers, block.half(0))


def _q4_0(block: Block) -> Parts:
    numbers = block.piece(2)
    yield _around(block, 8, 0, [block.low(numbers), block.high(numbers)], block.half(0))


def _q4_1(block: Block) -> Parts:
    numbers = block.piece(4)
    yield Part(0, [block.low(numbers), block.high(numbers)], block.half(0), block.half(2))


def _five_bits(block: Block, fifth: int, others: int) -> list[ir.Value]:
    """The 32 numbers of a Q5_0 or Q5_1 block: fifth bits at byte `fifth`, the lower four at byte `others`."""
    numbers = block.piece(others)
    halves = block.low(numbers), block.high(numbers)
    return [block.builder.or_(half, block.fifth(fifth + 2 * i)) for i, half in enumerate(halves)]


def _q5_0(block: Block) -> Parts:
    yield _around(block, 16, 0, _five_bits(block, 2, 6), block.half(0))


def _q5_1(block: Block) -> Parts:
    yield Part(0, _five_bits(block, 4, 8), block.half(0), block.half(2))


class _Kept:
    """Vectors on the stack, so that the generated code can index them at run time."""

    def __init__(self, builder: ir.IRBuilder, vectors: list[ir.Value]) -> None:
        self._builder = builder
        self._places = cgutils.alloca_once(builder, vectors[0].type, size=ir.Constant(INT64, len(vectors)))
        self._places.align = CACHE_LINE
        for number, vector in enumerate(vectors):
            builder.store(vector, llvm.at(builder, self._places, ir.Constant(INT64, number)))

    def __getitem__(self, number: ir.Value) -> ir.Value:
        return self._builder.load(llvm.at(self._builder, self._places, number))


def _in_six_bits(block: Block) -> list[_Kept]:
    """The eight s and the eight t of a Q4_K or Q5_K block, one byte each, four to a 32-bit word.

    They are packed into twelve bytes, from byte 4 of the block on. The lower six bits of bytes 0-3 are s of parts 0-3,
    those of bytes 4-7 are t of parts 0-3. Bytes 8-11 hold the lower four bits of s (lower half) and t (upper half)
    of parts 4-7, whose upper two bits are the upper two of bytes 0-3 (s) and 4-7 (t).
    """
    b = block.builder

    def only(words: ir.Value, byte: int) -> ir.Value:
        return b.and_(words, llvm.same(INT32, block.lanes, byte * 0x01010101))

    def down(words: ir.Value, bits: int) -> ir.Value:
        return b.lshr(words, llvm.same(INT32, block.lanes, bits))

    s, t, last = block.words(0)[1:]
    s_last = b.or_(only(last, 15), only(down(s, 2), 48))
    t_last = b.or_(only(down(last, 4), 15), only(down(t, 2), 48))
    return [_Kept(b, [only(s, 63), s_last]), _Kept(b, [only(t, 63), t_last])]


def _in_scaled_parts(block: Block, first: int, has_fifth: bool) -> Groups:
    """Q4_K and Q5_K: the lower four bits of the weights begin at byte `first`, the fifth bits (Q5_K) at byte 16.

    A group is 64 weights, two parts of 32: the lower halves of 32 bytes are the first part, the upper the second. Bit p
    of byte 16 + j is the fifth bit of weight j of part p.
    """
    b = block.builder
    d, m = block.half(0), block.times(block.half(2), -1.0)
    six = _in_six_bits(block)
    fifths = [block.piece(16 + j) for j in (0, 16)] if has_fifth else []

    def group(number: ir.Value) -> Parts:
        half, odd = b.lshr(number, ir.Constant(INT64, 1)), b.and_(number, ir.Constant(INT64, 1))
        s, t = (block.down(words[half], b.mul(odd, ir.Constant(INT64, 16))) for words in six)
        both = [block.moved(number, 32).piece(first + j) for j in (0, 16)]
        above = [block.bytes_down(bits, b.mul(number, ir.Constant(INT64, 2))) for bits in fifths]
        for i, half_of in enumerate((block.low, block.high)):
            pieces = [half_of(numbers) for numbers in both]
            if has_fifth:
                pieces = [b.or_(piece, block.bits(bits, i, 1)) for piece, bits in zip(pieces, above, strict=True)]
            yield Part(32 * i, pieces, b.fmul(d, block.byte_of(s, i)), b.fmul(m, block.byte_of(t, i)))

    return group


def _q4_k(block: Block) -> Groups:
    return _in_scaled_parts(block, first=16, has_fifth=False)


def _q5_k(block: Block) -> Groups:
    return _in_scaled_parts(block, first=48, has_fifth=True)


def _q6_k(block: Block) -> Groups:
    """A group is half a block, 128 weights: 64 bytes with the lower four bits of two weights each, 32 with the upper
    two bits of four weights each.
    """
    b = block.builder
    d, scales = block.half(208), _Kept(b, block.words(192))

    def group(number: ir.Value) -> Parts:
        bits, above = block.moved(number, 64), block.moved(number, 32)
        for i in range(4):  # 32 weights each, with a scale for each 16
            half = block.high if i >= 2 else block.low
            words = scales[b.add(b.mul(number, ir.Constant(INT64, 2)), ir.Constant(INT64, i // 2))]
            for k in range(2):
                numbers = half(bits.piece(32 * (i % 2) + 16 * k))
                upper = block.bits(above.piece(128 + 16 * k), 2 * i, 3)
                scale = b.fmul(d, block.signed_byte_of(words, i % 2 * 2 + k))
                yield _around(block, 32, 32 * i + 16 * k, [b.or_(numbers, upper)], scale)

    return group


class Layout(NamedTuple):
    """The block of a kind, and its generator: either floats or groups. Of float kinds 32 weights are a block here."""

    name: str
    weights: int  # in a block
    size: int  # of a block, in bytes
    floats: Callable[[Block], Vectors] | None = None
    groups: Callable[[Block], Groups] | None = None
    group_count: int = 1
    bytes_each: int = 0  # of a weight, where a row may end in part of a block; 0 if all rows are whole blocks


LAYOUTS = {
    0: Layout("f32", 32, 128, floats=_f32, bytes_each=4),
    1: Layout("f16", 32, 64, floats=_f16, bytes_each=2),
    30: Layout("bf16", 32, 64, floats=_bf16, bytes_each=2),
    8: Layout("q8_0", 32, 34, groups=_one_group(_q8_0)),
    2: Layout("q4_0", 32, 18, groups=_one_group(_q4_0)),
    3: Layout("q4_1", 32, 20, groups=_one_group(_q4_1)),
    6: Layout("q5_0", 32, 22, groups=_one_group(_q5_0)),
    7: Layout("q5_1", 32, 24, groups=_one_group(_q5_1)),
    12: Layout("q4_k", 256, 144, groups=_q4_k, group_count=4),
    13: Layout("q5_k", 256, 176, groups=_q5_k, group_count=4),
    14: Layout("q6_k", 256, 210, groups=_q6_k, group_count=2),
}


def for_each_group(
    builder: ir.IRBuilder, layout: Layout, blocks: list[Block], first: ir.Value,
    body: Callable[[ir.Value, list[Parts]], None], ahead: ir.Value | None = None,
) -> None:  # fmt: skip
    """Emit body(index of the group's first weight, parts of each block) for each group of some blocks, group by group.

    first  index of the blocks' first weight in their rows
    ahead  address to prefetch from meanwhile, as many bytes as all the blocks have; None: no prefetch
    """
    size = layout.size * sum(len(block.rows) for block in blocks) // layout.group_count
    weights = layout.weights // layout.group_count

    def asking(parts: Parts, there: ir.Value) -> Parts:
        """The parts; with each, its share of the prefetches, as all at once would delay the loads of this group."""
        for part in parts:
            stop = part.first + PIECE * len(part.pieces)
            _ask_for(builder, there, size * part.first // weights, size * stop // weights)
            yield part

    assert layout.groups is not None
    groups = [layout.groups(block) for block in blocks]

    def group(number: ir.Value) -> None:
        each = [parts(number) for parts in groups]
        if ahead is not None:
            there = llvm.at(builder, ahead, builder.mul(number, ir.Constant(INT64, size)))
            each[0] = asking(each[0], there)
        body(builder.add(first, builder.mul(number, ir.Constant(INT64, weights))), each)

    if layout.group_count == 1:
        group(ir.Constant(INT64, 0))
        return
    with cgutils.for_range(builder, ir.Constant(INT64, layout.group_count), intp=INT64) as loop:
        group(loop.index)


def for_each_vectors(
    builder: ir.IRBuilder, layout: Layout, blocks: list[Block], first: ir.Value,
    body: Callable[[ir.Value, list[Vectors]], None], ahead: ir.Value | None = None,
) -> None:  # fmt: skip
    """As for_each_group, with the weights as vectors of LANES float32. Blocks of floats are one group."""
    if layout.floats is not None:
        if ahead is not None:
            _ask_for(builder, ahead, 0, layout.size * len(blocks))
        body(first, [layout.floats(block) for block in blocks])
        return

    def floats(first: ir.Value, each: list[Parts]) -> None:
        body(first, [_floats(builder, parts) for parts in each])

    for_each_group(builder, layout, blocks, first, floats, ahead)


def _ask_for(builder: ir.IRBuilder, address: ir.Value, start: int, stop: int) -> None:
    """Prefetch one address for each cache line's worth of the bytes address + start to address + stop - 1.

    Those are the multiples of CACHE_LINE from `address`, so that consecutive ranges prefetch no line twice.
    """
    for line in range(-(-start // CACHE_LINE) * CACHE_LINE, stop, CACHE_LINE):
        llvm.prefetch(builder, llvm.at(builder, address, ir.Constant(INT64, line)))


def _floats(builder: ir.IRBuilder, parts: Parts) -> Vectors:
    for part in parts:
        for i, piece in enumerate(part.pieces):
            for j in range(0, PIECE, LANES):
                numbers = builder.zext(llvm.shuffle(builder, piece, range(j, j + LANES)), LONGS)
                weights = llvm.fma(builder, builder.sitofp(numbers, VECTOR), part.scale, part.shift)
                yield part.first + i * PIECE + j, weights


def one_weight(builder: ir.IRBuilder, kind: int, address: ir.Value) -> ir.Value:
    """One weight of F32, F16 or BF16 as a scalar float32: for the rest of a row after its last whole block."""
    block = Block(builder, address, lanes=1)
    if kind == 0:
        number = block.load(0, FLOAT)
    elif kind == 1:
        number = block.half(0)
    else:
        number = _from_brain(builder, block.load(0, INT16))
    return builder.extract_element(number, ir.Constant(INT32, 0))


def for_each_block(builder, layout, columns, body, last):
    """Emit a loop over the blocks of a row of `columns` weights: body(first byte, first weight), from the row's start.

    last(byte, weight) does the weights beyond the last whole block, one at a time; other kinds never call it.
    """
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


def block_of_each(
    builder: ir.IRBuilder, layout: Layout, rows: list[ir.Value], byte: ir.Value
) -> tuple[list[ir.Value], ir.Value]:
    """The addresses of the rows' blocks at a byte offset, and the address to prefetch from meanwhile.

    The rows read together are neighbours in memory, so what is needed next lies beyond the last of them. While they are
    read, as many bytes are prefetched, of a stretch that begins AHEAD bytes after the start of the last row.
    """
    distance = AHEAD_OF_ONE.get(layout.name, AHEAD) if len(rows) == 1 else AHEAD
    there = builder.mul(byte, ir.Constant(INT64, len(rows)))
    ahead = llvm.at(builder, rows[-1], there, ir.Constant(INT64, distance))
    byte = llvm.opaque(builder, byte)  # else LLVM keeps a pointer for each row, and increments each
    return [llvm.at(builder, row, byte) for row in rows], ahead
