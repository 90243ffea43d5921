"""What takes blocks of weights (blocks.py) apart in registers: their bytes, bits and float16 numbers.

    Block        of one row: for float32 weights, whose vectors are neighbours in a row
    BlockOfEach  of LANES rows: for rounded.py, where a lane is a row
"""

from __future__ import annotations

from llvmlite import ir

from . import llvm
from .llvm import FLOAT, INT16, INT32, INT64, LANES, LONGS
from .row_group import perfect_shuffle

__all__ = ["PIECE", "Block", "BlockOfEach", "quarter"]

PIECE = 16  # weights of one vector of bytes

_BYTE = ir.IntType(8)


class Block:
    """A block of a row. What there is one of, whole numbers and floats, is the same in all of `lanes` lanes."""

    def __init__(self, builder: ir.IRBuilder, *rows: ir.Value, lanes: int = LANES) -> None:
        self.builder = builder
        self.lanes = lanes
        self.rows = rows  # their addresses

    def load(self, offset: int, kind: ir.Type, count: int = 1) -> ir.Value:
        """A vector of `count` values of a kind, from an offset on."""
        return self._load(self.rows[0], offset, ir.VectorType(kind, count))

    def _load(self, row: ir.Value, offset: int, vector: ir.Type) -> ir.Value:
        return llvm.load(self.builder, llvm.at(self.builder, row, ir.Constant(INT64, offset)), vector, align=1)

    def moved(self, group: ir.Value, step: int) -> Block:
        """The bytes of a group, which begin so many bytes behind those of the one before."""
        offset = self.builder.mul(group, ir.Constant(INT64, step))
        return type(self)(self.builder, *(llvm.at(self.builder, row, offset) for row in self.rows), lanes=self.lanes)

    def piece(self, offset: int) -> ir.Value:
        """PIECE bytes from an offset on."""
        return self.load(offset, _BYTE, PIECE)

    def raised(self, numbers: ir.Value) -> ir.Value:
        """Numbers with a sign, from -128 to 127, as numbers from 0 to 255."""
        return self.builder.xor(numbers, _all(numbers, 128))

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

    def down(self, words: ir.Value, bits: ir.Value) -> ir.Value:
        """Words of 32 bits moved down by some bits."""
        bits = llvm.broadcast(self.builder, self.builder.trunc(bits, INT32), words.type.count)
        return self.builder.lshr(words, bits)

    def bytes_down(self, numbers: ir.Value, bits: ir.Value) -> ir.Value:
        """Numbers moved down by some bits; what comes above those that are left is anything."""
        words = self.builder.bitcast(numbers, ir.VectorType(INT32, numbers.type.count // 4))
        return self.builder.bitcast(self.down(words, bits), numbers.type)

    def byte_of(self, words: ir.Value, number: int) -> ir.Value:
        """Byte `number` of four as a float32, from 0 to 255."""
        byte = self.builder.lshr(words, llvm.same(INT32, self.lanes, 8 * number))
        return self._whole(self.builder.and_(byte, llvm.same(INT32, self.lanes, 255)))

    def signed_byte_of(self, words: ir.Value, number: int) -> ir.Value:
        """The same from -128 to 127."""
        byte = self.builder.shl(words, llvm.same(INT32, self.lanes, 24 - 8 * number))
        return self._whole(self.builder.ashr(byte, llvm.same(INT32, self.lanes, 24)))

    def _whole(self, numbers: ir.Value) -> ir.Value:
        return self.builder.sitofp(numbers, ir.VectorType(FLOAT, self.lanes))

    def fifth(self, offset: int) -> ir.Value:
        """PIECE bits from two bytes on, each worth 16."""
        bits = self.builder.bitcast(self.load(offset, INT16), ir.VectorType(ir.IntType(1), PIECE))
        return self.builder.select(bits, llvm.same(_BYTE, PIECE, 16), llvm.same(_BYTE, PIECE, 0))

    def words(self, offset: int) -> list[ir.Value]:
        """Sixteen bytes as four whole numbers of 32 bits."""
        four = self.load(offset, INT32, 4)
        return [llvm.shuffle(self.builder, four, [k] * self.lanes) for k in range(4)]

    def half(self, offset: int) -> ir.Value:
        """A float16 as a float32."""
        return llvm.shuffle(self.builder, llvm.from_half(self.builder, self.load(offset, INT16)), [0] * self.lanes)

    def times(self, vector: ir.Value, factor: float) -> ir.Value:
        """factor * vector."""
        return self.builder.fmul(vector, ir.Constant(vector.type, [factor] * self.lanes))


class BlockOfEach(Block):
    """A block of each of LANES rows, all at once: what there is one of in each, has a lane.

    A piece is four vectors, one after another: a lane of the first has numbers 0 to 3 of its row, of the second 4 to 7.
    It has its own way to what is loaded (piece, words, half and fifth); the rest is Block's.
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
        """Two bytes of each row, as a whole number of 16 bits."""
        one = ir.VectorType(INT16, 1)
        return _join(self.builder, [self._load(row, offset, one) for row in self.rows])

    def fifth(self, offset: int) -> ir.Value:
        bits, four = self.builder.zext(self._shorts(offset), LONGS), []
        for k in range(0, PIECE, 4):
            here = self.builder.lshr(bits, llvm.same(INT32, LANES, k))
            here = self.builder.and_(here, llvm.same(INT32, LANES, 15))
            here = self.builder.mul(here, llvm.same(INT32, LANES, 1 << 4 | 1 << 11 | 1 << 18 | 1 << 25))
            four.append(self.builder.and_(here, llvm.same(INT32, LANES, 0x10101010)))
        return self.builder.bitcast(_join(self.builder, four), ir.VectorType(_BYTE, PIECE * LANES))

    def words(self, offset: int) -> list[ir.Value]:
        piece = self.piece(offset)
        return [quarter(self.builder, piece, k) for k in range(4)]


def quarter(builder: ir.IRBuilder, piece: ir.Value, k: int) -> ir.Value:
    """Numbers 4 k to 4 k + 3 of each row in a piece of BlockOfEach's, as LANES words of 32 bits."""
    numbers = llvm.shuffle(builder, piece, range(4 * LANES * k, 4 * LANES * (k + 1)))
    return builder.bitcast(numbers, LONGS)


def _join(builder: ir.IRBuilder, vectors: list[ir.Value]) -> ir.Value:
    """Vectors one after another, as one; they are a power of two."""
    while len(vectors) > 1:
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [llvm.shuffle(builder, a, range(2 * a.type.count), b) for a, b in pairs]
    return vectors[0]


def _four_columns(builder: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """The columns of LANES rows of four: two shuffles each, which stay within 128 bits, where CPUs are fast."""
    vectors = [_join(builder, rows[k::4]) for k in range(4)]  # each 128 bits of one are a row, the next but three after
    for _ in range(2):
        vectors = perfect_shuffle(builder, vectors, within=4)
    return vectors


def _all(numbers: ir.Value, number: int) -> ir.Constant:
    """The same byte as often as there are numbers."""
    return llvm.same(_BYTE, numbers.type.count, number)
