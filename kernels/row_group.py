"""LANES rows at a time: how attention on the cache meets keys and values, and how a matrix is transposed.

    dot_rows_of_group   the dot products of one row with LANES others, as one vector
    add_rows_of_group   the sum of LANES rows, each multiplied by one lane of a vector, added to a row in memory
    transpose           a LANES x LANES block, in registers;  transpose_part  one of fewer rows

What stands a few lines further is asked for meanwhile: a quarter of attention's time was waiting for memory.

Of the last group fewer rows may be there: the last one then stands for those that are missing, so that nothing is read
beyond, and its lanes are the caller's to leave out.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .simd import (
    _INT,
    _VECTOR,
    FLOATS,
    LANES,
    VECTOR,
    _at,
    _fma,
    _lanes_below,
    _load,
    _masked_load,
    _masked_store,
    _prefetch,
    _store,
)

__all__ = ["add_rows_of_group", "dot_rows_of_group", "transpose", "transpose_part"]

AHEAD = 1024  # floats; a constant, for it to be part of the address and to take no register
TRANSPOSE_AHEAD = 128
CHUNK = 4  # vectors of a row that stay in registers while LANES rows are added to them


def _rows_from(builder, first, row):
    """The addresses of LANES rows, `row` floats apart."""
    return [_at(builder, first, builder.mul(ir.Constant(_INT, k), row)) for k in range(LANES)]


def _rows_there(builder, first, row, count):
    """As _rows_from, where only `count` rows are there, 1 or more: the last one stands for those that are missing."""
    last = builder.sub(count, ir.Constant(_INT, 1))
    addresses = []
    for k in range(LANES):
        number = ir.Constant(_INT, k)
        number = builder.select(builder.icmp_signed("<", number, last), number, last)
        addresses.append(_at(builder, first, builder.mul(number, row)))
    return addresses


def _either_group(builder, first, row, count, work):
    """work(addresses of the rows), for a whole group or a part of one."""
    with builder.if_else(builder.icmp_signed(">=", count, ir.Constant(_INT, LANES))) as (whole, part):
        with whole:
            work(_rows_from(builder, first, row))
        with part:
            work(_rows_there(builder, first, row, count))


def _pair(builder, a, b, width):
    """Two vectors, each made of runs of `width` lanes that are to be added up: one vector of half as long runs of both.

    Lane by lane: sums of a's and b's neighbouring halves of runs.
    """
    half = width // 2
    low, high = [], []
    for start in range(0, LANES, width):
        low += range(start, start + half)
        high += range(start + half, start + width)
    index = ir.VectorType(ir.IntType(32), LANES)
    order = [lane + source for source in (0, LANES) for lane in low]
    other = [lane + source for source in (0, LANES) for lane in high]
    return builder.fadd(
        builder.shuffle_vector(a, b, ir.Constant(index, order)),
        builder.shuffle_vector(a, b, ir.Constant(index, other)),
    )


def _sums_of_lanes(builder, vectors):
    """The sums of the lanes of LANES vectors, as the lanes of one; each is added up as _reduce does it."""
    width = LANES
    while len(vectors) > 1:
        vectors = [_pair(builder, a, b, width) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
        width //= 2
    return vectors[0]


def _ask_ahead(builder, address, offset):
    """Bring to the cache what is AHEAD of the float at an offset."""
    _prefetch(builder, _at(builder, address, offset, ir.Constant(_INT, AHEAD)), is_write=False)


@intrinsic
def dot_rows_of_group(typingctx, x, first, row, count, size):
    """For each lane k the sum over c of x[c] * first[k * row + c], c below size; count rows are there, 1 or more."""

    def codegen(context, builder, signature, arguments):
        x, first, row, count, size = arguments
        result = cgutils.alloca_once(builder, _VECTOR)
        whole = builder.and_(size, ir.Constant(_INT, -LANES))

        def work(rows):
            zeros = ir.Constant(_VECTOR, [0.0] * LANES)
            sums = [cgutils.alloca_once(builder, _VECTOR) for _ in rows]
            for total in sums:
                builder.store(zeros, total)

            def step(offset, load):
                factor = load(_at(builder, x, offset))
                for address, total in zip(rows, sums, strict=True):
                    _ask_ahead(builder, address, offset)
                    builder.store(
                        _fma(builder, factor, load(_at(builder, address, offset)), builder.load(total)), total
                    )

            vectors = builder.sdiv(whole, ir.Constant(_INT, LANES))
            with cgutils.for_range(builder, vectors, intp=_INT) as loop:
                step(builder.mul(loop.index, ir.Constant(_INT, LANES)), lambda address: _load(builder, address))
            with builder.if_then(builder.icmp_signed("<", whole, size)):
                mask = _lanes_below(builder, builder.sub(size, whole))
                step(whole, lambda address: _masked_load(builder, address, mask))
            builder.store(_sums_of_lanes(builder, [builder.load(total) for total in sums]), result)

        _either_group(builder, first, row, count, work)
        return builder.load(result)

    return VECTOR(FLOATS, FLOATS, types.int64, types.int64, types.int64), codegen


@intrinsic
def add_rows_of_group(typingctx, to, factors, first, row, count, size):
    """to[c] += the sum over k of lane k of factors * first[k * row + c], c below size; count rows are there."""

    def codegen(context, builder, signature, arguments):
        to, factors, first, row, count, size = arguments
        index = ir.VectorType(ir.IntType(32), LANES)
        weights = [builder.shuffle_vector(factors, factors, ir.Constant(index, [k] * LANES)) for k in range(LANES)]

        def step(rows, offset, vectors, load, store):
            places = [builder.add(offset, ir.Constant(_INT, v * LANES)) for v in range(vectors)]
            sums = [load(_at(builder, to, place)) for place in places]
            for weight, address in zip(weights, rows, strict=True):
                for place in places:
                    _ask_ahead(builder, address, place)
                sums = [
                    _fma(builder, weight, load(_at(builder, address, place)), total)
                    for place, total in zip(places, sums, strict=True)
                ]
            for place, total in zip(places, sums, strict=True):
                store(total, _at(builder, to, place))

        def load(address):
            return _load(builder, address)

        def store(vector, address):
            _store(builder, vector, address)

        def work(rows):
            chunk, wide = (ir.Constant(_INT, count * LANES) for count in (CHUNK, 1))
            chunks = builder.sdiv(size, chunk)
            with cgutils.for_range(builder, chunks, intp=_INT) as loop:
                step(rows, builder.mul(loop.index, chunk), CHUNK, load, store)
            begin = builder.mul(chunks, chunk)
            vectors = builder.sdiv(builder.sub(size, begin), wide)
            with cgutils.for_range(builder, vectors, intp=_INT) as loop:
                step(rows, builder.add(begin, builder.mul(loop.index, wide)), 1, load, store)
            done = builder.add(begin, builder.mul(vectors, wide))
            with builder.if_then(builder.icmp_signed("<", done, size)):
                mask = _lanes_below(builder, builder.sub(size, done))
                step(
                    rows,
                    done,
                    1,
                    lambda address: _masked_load(builder, address, mask),
                    lambda vector, address: _masked_store(builder, vector, address, mask),
                )

        _either_group(builder, first, row, count, work)
        return context.get_dummy_value()

    return types.void(FLOATS, VECTOR, FLOATS, types.int64, types.int64, types.int64), codegen


def _perfect_shuffle(builder, rows):
    """Interleave the first half of some vectors with the second: i with i + half, one pair after another."""
    low = [i // 2 + LANES * (i % 2) for i in range(LANES)]
    high = [LANES // 2 + i for i in low]
    index, half = ir.VectorType(ir.IntType(32), LANES), len(rows) // 2
    return [
        builder.shuffle_vector(first, second, ir.Constant(index, order))
        for first, second in zip(rows[:half], rows[half:], strict=True)
        for order in (low, high)
    ]


def _transpose(builder, to, to_row, sources):
    """As many perfect shuffles as halve LANES rows to one."""
    rows = [_load(builder, source) for source in sources]
    for _ in range(LANES.bit_length() - 1):
        rows = _perfect_shuffle(builder, rows)
    for row in rows:
        _store(builder, row, to)
        to = _at(builder, to, to_row)


@intrinsic
def transpose(typingctx, to, to_row, source, source_row):
    """Transpose a block of LANES x LANES floats: to[k * to_row + r] = source[r * source_row + k].

    What stands TRANSPOSE_AHEAD floats further in each row is asked for: CPUs do that by themselves for fewer rows.
    """

    def codegen(context, builder, signature, arguments):
        to, to_row, source, source_row = arguments
        rows = _rows_from(builder, source, source_row)
        for row in rows:
            _prefetch(builder, _at(builder, row, ir.Constant(_INT, TRANSPOSE_AHEAD)), is_write=False)
        _transpose(builder, to, to_row, rows)
        return context.get_dummy_value()

    return types.void(FLOATS, types.int64, FLOATS, types.int64), codegen


@intrinsic
def transpose_part(typingctx, to, to_row, source, source_row, count):
    """As transpose, of `count` rows, 1 or more; what the result has beyond them is anything."""

    def codegen(context, builder, signature, arguments):
        to, to_row, source, source_row, count = arguments
        _transpose(builder, to, to_row, _rows_there(builder, source, source_row, count))
        return context.get_dummy_value()

    return types.void(FLOATS, types.int64, FLOATS, types.int64, types.int64), codegen
