"""How attention meets what stands in the cache (kv_cache.py): in the order of memory, a few queries at a time.

    dot_group   queries' dot products with the keys of LANES tokens, which stand dimension by dimension
    add_rows    the sums of rows of values, each times its weights, in registers until all are added
    stack       room for a few floats

Keys and values are floats or halves, which become floats in the registers.

Memory gives this its pace. So both ask for what comes next, line by line, while they are at this.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from . import llvm
from .llvm import FLOAT, INT64, LANES, LINE, VECTOR
from .simd import FLOATS, HALVES

__all__ = ["AHEAD", "GROUP", "TOGETHER", "add_rows", "dot_group", "stack"]

GROUP = LINE  # tokens whose keys stand together: a dimension of them is a line, or half of one
AHEAD = {FLOATS: GROUP, HALVES: 4 * GROUP}  # tokens that are asked for ahead: halves are done with sooner
TOGETHER = 4  # queries at most that a key and a value, once loaded, are multiplied with
SUMS = 4  # accumulators of a dot product, enough to hide a multiply-add's latency behind memory's
# Vectors that stay in registers: 4 queries' 4 sums, or so many vectors of the rows that are added up.
REGISTERS = 16 if LANES == 16 else 8


def _number(value):
    return ir.Constant(INT64, value)


@intrinsic
def stack(typingctx, count):
    """The address of so many floats, a literal number, that are there until the function returns."""
    if not isinstance(count, types.IntegerLiteral):
        return None

    def codegen(context, builder, signature, arguments):
        return cgutils.alloca_once(builder, FLOAT, size=count.literal_value)

    return FLOATS(count), codegen


@intrinsic
def dot_group(typingctx, count, scores, scores_row, x, keys, size, ahead):
    """scores[i * scores_row + lane] = the sum over d of x[i * size + d] * keys[d * GROUP + lane], d below size.

    count  queries i, a literal number up to TOGETHER: a key is loaded once for all
    ahead  address of as many numbers that are brought to the cache meanwhile
    """
    if not isinstance(count, types.IntegerLiteral):
        return None
    queries = range(count.literal_value)

    def codegen(context, builder, signature, arguments):
        _, scores, scores_row, x, keys, size, ahead = arguments
        zeros = ir.Constant(VECTOR, [0.0] * LANES)
        parts = min(SUMS, REGISTERS // len(queries))
        sums = [[cgutils.alloca_once_value(builder, zeros) for _ in range(parts)] for _ in queries]
        starts = [llvm.at(builder, x, builder.mul(size, _number(i))) for i in queries]
        groups = 2 if llvm.is_of_halves(keys) else 1  # of a dimension, in a line

        def step(d, part):
            place = builder.mul(d, _number(GROUP))
            if part % groups == 0:
                llvm.prefetch(builder, llvm.at(builder, ahead, place))
            key = llvm.read(builder, llvm.at(builder, keys, place))
            for i in queries:
                factor = llvm.broadcast(builder, builder.load(llvm.at(builder, starts[i], d)))
                builder.store(llvm.fma(builder, factor, key, builder.load(sums[i][part])), sums[i][part])

        rounds = builder.sdiv(size, _number(parts))
        with cgutils.for_range(builder, rounds, intp=INT64) as loop:
            for part in range(parts):
                step(builder.add(builder.mul(loop.index, _number(parts)), _number(part)), part)
        done = builder.mul(rounds, _number(parts))
        with cgutils.for_range(builder, builder.sub(size, done), intp=INT64) as loop:
            step(builder.add(done, loop.index), 0)
        for i in queries:
            total = builder.load(sums[i][0])
            for part in sums[i][1:]:
                total = builder.fadd(total, builder.load(part))
            llvm.store(builder, total, llvm.at(builder, scores, builder.mul(scores_row, _number(i))))
        return context.get_dummy_value()

    return types.void(count, FLOATS, types.int64, FLOATS, keys, types.int64, keys), codegen


@intrinsic
def add_rows(typingctx, count, to, to_row, weights, weights_row, rows, tokens, size, after):
    """to[i * to_row + d] += the sum over t of weights[i * weights_row + t] * rows[t * size + d], t below tokens.

    count  queries i, a literal number up to TOGETHER: a row is loaded once for all
    after  address of the AHEAD rows to ask for while the last AHEAD of these are read
    """
    if not isinstance(count, types.IntegerLiteral):
        return None
    queries = range(count.literal_value)

    def codegen(context, builder, signature, arguments):
        _, to, to_row, weights, weights_row, rows, tokens, size, after = arguments
        distance = _number(AHEAD[HALVES if llvm.is_of_halves(rows) else FLOATS])
        early = builder.sub(tokens, distance)
        beyond = builder.mul(distance, size)
        ahead = llvm.at(builder, rows, beyond)
        later = llvm.at(builder, after, builder.neg(builder.mul(early, size)))
        targets = [llvm.at(builder, to, builder.mul(to_row, _number(i))) for i in queries]
        factors = [llvm.at(builder, weights, builder.mul(weights_row, _number(i))) for i in queries]
        line = 2 * LINE if llvm.is_of_halves(rows) else LINE

        def add(offset, vectors, mask=None):
            """To so many vectors of each `to`, or to the lanes of one that a mask has."""
            places = [builder.add(offset, _number(v * LANES)) for v in range(vectors)]
            sums = [
                [cgutils.alloca_once_value(builder, llvm.read(builder, llvm.at(builder, target, place), mask))
                 for place in places]
                for target in targets
            ]
            with cgutils.for_range(builder, tokens, intp=INT64) as loop:
                row = builder.mul(loop.index, size)
                next_rows = builder.select(builder.icmp_signed("<", loop.index, early), ahead, later)
                addresses = [llvm.at(builder, factor, loop.index) for factor in factors]
                each = [llvm.broadcast(builder, builder.load(address)) for address in addresses]
                for v, place in enumerate(places):
                    here = builder.add(row, place)
                    if v * LANES % line == 0:
                        llvm.prefetch(builder, llvm.at(builder, next_rows, here))
                    value = llvm.read(builder, llvm.at(builder, rows, here), mask)
                    for weight, totals in zip(each, sums, strict=True):
                        builder.store(llvm.fma(builder, weight, value, builder.load(totals[v])), totals[v])
            for target, totals in zip(targets, sums, strict=True):
                for place, total in zip(places, totals, strict=True):
                    llvm.write(builder, builder.load(total), llvm.at(builder, target, place), mask)

        done = _number(0)
        widths = [width for width in (8, 4, 2) if width * len(queries) <= REGISTERS][:2]
        for vectors in (*widths, 1):
            wide = _number(vectors * LANES)
            chunks = builder.sdiv(builder.sub(size, done), wide)
            with cgutils.for_range(builder, chunks, intp=INT64) as loop:
                add(builder.add(done, builder.mul(loop.index, wide)), vectors)
            done = builder.add(done, builder.mul(chunks, wide))
        with builder.if_then(builder.icmp_signed("<", done, size)):
            add(done, 1, llvm.lanes_below(builder, builder.sub(size, done)))
        return context.get_dummy_value()

    floats, whole = FLOATS, types.int64
    return types.void(count, floats, whole, floats, whole, rows, whole, whole, rows), codegen
