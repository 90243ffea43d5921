"""LANES rows at a time, which is how attention on the cache meets keys and values.

    dot_rows_of_group   the dot products of one row with LANES others, as one vector
    add_rows_of_group   the sum of LANES rows, each multiplied by one lane of a vector, added to a row in memory

What stands AHEAD floats further is asked for meanwhile: a quarter of the time was waiting for memory.

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
    _rows_from,
    _rows_there,
    _store,
    _sums_of_lanes,
)

__all__ = ["add_rows_of_group", "dot_rows_of_group"]

AHEAD = 1024  # a constant, for it to be part of the address and to take no register
CHUNK = 4  # vectors of a row that stay in registers while LANES rows are added to them


def _either_group(builder, first, row, count, work):
    """work(addresses of the rows), for a whole group or a part of one."""
    with builder.if_else(builder.icmp_signed(">=", count, ir.Constant(_INT, LANES))) as (whole, part):
        with whole:
            work(_rows_from(builder, first, row))
        with part:
            work(_rows_there(builder, first, row, count))


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
