"""How blocks of weights (blocks.py) are taken apart in registers: their bytes, bits and float16 numbers.

    Block        a block of one row: for conversion to float32, where a vector holds neighbours of one row
    BlockOfEach  a block of each of LANES rows: for rounded.py, where each lane is a row
"""

from __future__ import annotations

from llvmlite import ir

from . import llvm
from .llvm import FLOAT, INT16, INT32, INT64, LANES, LONGS
from .row_group import perfect_shuffle

__all__ = ["PIECE", "Block", "BlockOfEach", "quarter"]

PIECE = 16  # weights that are unpacked together, a byte each

_BYTE = ir.IntType(8)


class Block:
    """A block of one row. What the block has once, such as its scale, is broadcast to `lanes` lanes.

    Offsets are bytes from the start of the block.
    """

    def __init__(self, builder: ir.IRBuilder, *rows: ir.Value, lanes: int = LANES) -> None:
        self.builder = builder
        self.lanes = lanes
        self.rows = rows  # addresses of the blocks: one here, LANES in BlockOfEach

    def load(self, offset: int, kind: ir.Type, count: int = 1) -> ir.Value:
        """A vector of `count` values of a type, which begin at an offset."""
        return self._load(self.rows[0], offset, ir.VectorType(kind, count))

    def _load(self, row: ir.Value, offset: int, vector: ir.Type) -> ir.Value:
        return llvm.load(self.builder, llvm.at(self.builder, row, ir.Constant(INT64, offset)), vector, align=1)

    def moved(self, group: ir.Value, step: int) -> Block:
        """This block with all offsets moved by group * step bytes; the group's number is known at run time only."""
        offset = self.builder.mul(group, ir.Constant(INT64, step))
        return type(self)(self.builder, *(llvm.at(self.builder, row, offset) for row in self.rows), lanes=self.lanes)

    def piece(self, offset: int) -> ir.Value:
        """PIECE bytes (of each row) from an offset on."""
        return self.load(offset, _BYTE, PIECE)

    def raised(self, numbers: ir.Value) -> ir.Value:
        """Signed bytes, from -128 to 127, plus 128: from 0 to 255."""
        return self.builder.xor(numbers, _all(numbers, 128))

    def low(self, numbers: ir.Value) -> ir.Value:
        """The lower four bits of each number."""
        return self.builder.and_(numbers, _all(numbers, 15))

    def high(self, numbers: ir.Value) -> ir.Value:
        """The upper four bits of each number, moved down."""
        return self.builder.lshr(numbers, _all(numbers, 4))

    def bits(self, numbers: ir.Value, first: int, mask: int) -> ir.Value:
        """(number >> first) & mask for each number, moved to above the lower four bits."""
        there = self.builder.and_(self.builder.lshr(numbers, _all(numbers, first)), _all(numbers, mask))
        return self.builder.shl(there, _all(numbers, 4))

    def down(self, words: ir.Value, bits: ir.Value) -> ir.Value:
        """Words of 32 bits shifted right by a number of bits known at run time only."""
        bits = llvm.broadcast(self.builder, self.builder.trunc(bits, INT32), words.type.count)
        return self.builder.lshr(words, bits)

    def bytes_down(self, numbers: ir.Value, bits: ir.Value) -> ir.Value:
        """Bytes shifted right by `bits`, four in a word at once: their upper bits then come from the next byte."""
        words = self.builder.bitcast(numbers, ir.VectorType(INT32, numbers.type.count // 4))
        return self.builder.bitcast(self.down(words, bits), numbers.type)

    def byte_of(self, words: ir.Value, number: int) -> ir.Value:
        """Byte `number` (0 to 3) of each word as a float32, from 0 to 255."""
        byte = self.builder.lshr(words, llvm.same(INT32, self.lanes, 8 * number))
        return self._whole(self.builder.and_(byte, llvm.same(INT32, self.lanes, 255)))

    def signed_byte_of(self, words: ir.Value, number: int) -> ir.Value:
        """As byte_of, for signed bytes: from -128 to 127."""
        byte = self.builder.shl(words, llvm.same(INT32, self.lanes, 24 - 8 * number))
        return self._whole(self.builder.ashr(byte, llvm.same(INT32, self.lanes, 24)))

    def _whole(self, numbers: ir.Value) -> ir.Value:
        return self.builder.sitofp(numbers, ir.VectorType(FLOAT, self.lanes))

    def fifth(self, offset: int) -> ir.Value:
        """The PIECE bits of the two bytes at an offset, as bytes of 16 or 0: the fifth bits of PIECE numbers."""
        bits = self.builder.bitcast(self.load(offset, INT16), ir.VectorType(ir.IntType(1), PIECE))
        return self.builder.select(bits, llvm.same(_BYTE, PIECE, 16), llvm.same(_BYTE, PIECE, 0))

    def words(self, offset: int) -> list[ir.Value]:
        """The sixteen bytes at an offset as four 32-bit words: a vector for each."""
        four = self.load(offset, INT32, 4)
        return [llvm.shuffle(self.builder, four, [k] * self.lanes) for k in range(4)]

    def half(self, offset: int) -> ir.Value:
        """The float16 at an offset as a float32."""
        return llvm.shuffle(self.builder, llvm.from_half(self.builder, self.load(offset, INT16)), [0] * self.lanes)

    def times(self, vector: ir.Value, factor: float) -> ir.Value:
        """factor * vector."""
        return self.builder.fmul(vector, ir.Constant(vector.type, [factor] * self.lanes))


class BlockOfEach(Block):
    """A block of each of LANES rows at once. What each block has once, such as its scale, has a lane for each row.

    A piece has PIECE * LANES bytes: four vectors of LANES words, one after another. Lane r of vector k has numbers 4 k
    to 4 k + 3 of row r. Only what loads differs from Block: piece, words, half and fifth.
    """

    def load(self, offset: int, kind: ir.Type, count: int = 1) -> ir.Value:
        raise NotImplementedError("there is a way to a piece, words, a half and fifth bits of each row")

    def piece(self, offset: int) -> ir.Value:
        words = [self._load(row, offset, ir.VectorType(INT32, 4)) for row in self.rows]
        columns = _join(self.builder, _four_columns(self.builder, words))
        return self.builder.bitcast(columns, ir.VectorType(_BYTE, PIECE * LANES))

    def half(self, offset: int) -> ir.Value:
        return llvm.from_half(self.builder, self._shorts(offset))

    def _shorts(self, offset: int) -> ir.Value:
        """The two bytes at an offset of each row, as a 16-bit integer."""
        one = ir.VectorType(INT16, 1)
        return _join(self.builder, [self._load(row, offset, one) for row in self.rows])

    def fifth(self, offset: int) -> ir.Value:
        bits, four = self.builder.zext(self._shorts(offset), LONGS), []
        for k in range(0, PIECE, 4):
            here = self.builder.lshr(bits, llvm.same(INT32, LANES, k))
            here = self.builder.and_(here, llvm.same(INT32, LANES, 15))
            # Bit i of these four goes to bit 8 i + 4: a byte each, worth 16.
            here = self.builder.mul(here, llvm.same(INT32, LANES, 1 << 4 | 1 << 11 | 1 << 18 | 1 << 25))
            four.append(self.builder.and_(here, llvm.same(INT32, LANES, 0x10101010)))
        return self.builder.bitcast(_join(self.builder, four), ir.VectorType(_BYTE, PIECE * LANES))

    def words(self, offset: int) -> list[ir.Value]:
        piece = self.piece(offset)
        return [quarter(self.builder, piece, k) for k in range(4)]


def quarter(builder: ir.IRBuilder, piece: ir.Value, k: int) -> ir.Value:
    """Numbers 4 k to 4 k + 3 of each row in a piece of a BlockOfEach, as LANES 32-bit words."""
    numbers = llvm.shuffle(builder, piece, range(4 * LANES * k, 4 * LANES * (k + 1)))
    return builder.bitcast(numbers, LONGS)


def _join(builder: ir.IRBuilder, vectors: list[ir.Value]) -> ir.Value:
    """Vectors, a power of two of them, concatenated to one."""
    while len(vectors) > 1:
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [llvm.shuffle(builder, a, range(2 * a.type.count), b) for a, b in pairs]
    return vectors[0]


def _four_columns(builder: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Transpose LANES rows of four words to four vectors of LANES.

    After rows are joined, that is two shuffles a vector which stay within 128 bits: CPUs are fastest at these.
    """
    vectors = [_join(builder, rows[k::4]) for k in range(4)]  # vector k: rows k, k + 4, k + 8 ..., 128 bits each
    for _ in range(2):
        vectors = perfect_shuffle(builder, vectors, within=4)
    return vectors


def _all(numbers: ir.Value, number: int) -> ir.Constant:
    """A constant byte, in as many lanes as the numbers have."""
    return llvm.same(_BYTE, numbers.type.count, number)
