"""How attention meets what stands in the cache (kv_cache.py): one row at a time, in the order of memory.

    dot_group   a query's dot products with the keys of LANES tokens, which stand dimension by dimension
    add_rows    the sum of rows of values, each times its weight, in registers until all are added
    stack       room for a few floats

Memory gives this its pace. So both ask for what comes next, line by line, while they are at this.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .simd import (
    _FLOAT,
    _INT,
    _VECTOR,
    FLOATS,
    LANES,
    LINE,
    VECTOR,
    _at,
    _broadcast,
    _fma,
    _lanes_below,
    _load,
    _masked_load,
    _masked_store,
    _prefetch,
    _store,
)

__all__ = ["GROUP", "add_rows", "dot_group", "stack"]

GROUP = LINE  # tokens whose keys stand together: a dimension of them is a line
SUMS = 4  # accumulators of a dot product, enough to hide a multiply-add's latency behind memory's
CHUNKS = 8, 4, 1  # vectors of a row that stay in registers while rows are added to them


def _number(value):
    return ir.Constant(_INT, value)


@intrinsic
def stack(typingctx, count):
    """The address of so many floats, a literal number, that are there until the function returns."""
    if not isinstance(count, types.IntegerLiteral):
        return None

    def codegen(context, builder, signature, arguments):
        return cgutils.alloca_once(builder, _FLOAT, size=count.literal_value)

    return FLOATS(count), codegen


@intrinsic
def dot_group(typingctx, x, keys, size, ahead):
    """For each lane the sum over d of x[d] * keys[d * GROUP + lane], d below size.

    ahead  address of as many numbers that are brought to the cache meanwhile
    """

    def codegen(context, builder, signature, arguments):
        x, keys, size, ahead = arguments
        sums = [cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [0.0] * LANES)) for _ in range(SUMS)]

        def step(d, total):
            place = builder.mul(d, _number(GROUP))
            _prefetch(builder, _at(builder, ahead, place))
            factor = _broadcast(builder, builder.load(_at(builder, x, d)))
            builder.store(_fma(builder, factor, _load(builder, _at(builder, keys, place)), builder.load(total)), total)

        rounds = builder.sdiv(size, _number(SUMS))
        with cgutils.for_range(builder, rounds, intp=_INT) as loop:
            for i, total in enumerate(sums):
                step(builder.add(builder.mul(loop.index, _number(SUMS)), _number(i)), total)
        done = builder.mul(rounds, _number(SUMS))
        with cgutils.for_range(builder, builder.sub(size, done), intp=_INT) as loop:
            step(builder.add(done, loop.index), sums[0])
        vectors = [builder.load(total) for total in sums]
        while len(vectors) > 1:
            vectors = [builder.fadd(a, b) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
        return vectors[0]

    return VECTOR(FLOATS, FLOATS, types.int64, FLOATS), codegen


@intrinsic
def add_rows(typingctx, to, weights, rows, count, size, ahead):
    """to[d] += the sum over t of weights[t] * rows[t * size + d], t below count, d below size.

    ahead  address of as many rows that are brought to the cache meanwhile
    """

    def codegen(context, builder, signature, arguments):
        to, weights, rows, count, size, ahead = arguments

        def add(offset, vectors, load, store):
            """To so many vectors of `to`."""
            places = [builder.add(offset, _number(v * LANES)) for v in range(vectors)]
            sums = [cgutils.alloca_once_value(builder, load(_at(builder, to, place))) for place in places]
            with cgutils.for_range(builder, count, intp=_INT) as loop:
                row = builder.mul(loop.index, size)
                weight = _broadcast(builder, builder.load(_at(builder, weights, loop.index)))
                for v, (place, total) in enumerate(zip(places, sums, strict=True)):
                    here = builder.add(row, place)
                    if v * LANES % GROUP == 0:
                        _prefetch(builder, _at(builder, ahead, here))
                    builder.store(
                        _fma(builder, weight, load(_at(builder, rows, here)), builder.load(total)), total
                    )
            for place, total in zip(places, sums, strict=True):
                store(builder.load(total), _at(builder, to, place))

        done = _number(0)
        for vectors in CHUNKS:
            wide = _number(vectors * LANES)
            chunks = builder.sdiv(builder.sub(size, done), wide)
            with cgutils.for_range(builder, chunks, intp=_INT) as loop:
                add(
                    builder.add(done, builder.mul(loop.index, wide)),
                    vectors,
                    lambda address: _load(builder, address),
                    lambda vector, address: _store(builder, vector, address),
                )
            done = builder.add(done, builder.mul(chunks, wide))
        with builder.if_then(builder.icmp_signed("<", done, size)):
            mask = _lanes_below(builder, builder.sub(size, done))
            add(
                done,
                1,
                lambda address: _masked_load(builder, address, mask),
                lambda vector, address: _masked_store(builder, vector, address, mask),
            )
        return context.get_dummy_value()

    return types.void(FLOATS, FLOATS, FLOATS, types.int64, types.int64, FLOATS), codegen
