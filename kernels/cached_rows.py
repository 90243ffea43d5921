"""The inner loops of attention over the cache (kv_cache.py): they read memory in order, for a few queries at a time.

    dot_group   dot products of a few queries with the keys of LANES tokens, which are stored dimension by dimension
    add_rows    weighted sums of rows of values, for a few queries; the sums stay in registers over all rows
    stack       scratch on the stack

Keys and values are float32, or float16, which is converted in registers.

Memory bandwidth limits both. So they prefetch what comes next, a line at a time, while they work.
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

GROUP = LINE  # tokens whose keys are stored together: one dimension of them is a cache line, or half a line of float16
AHEAD = {FLOATS: GROUP, HALVES: 4 * GROUP}  # how many tokens ahead to prefetch: halves take less time each
TOGETHER = 4  # at most so many queries share one load of a key or value
SUMS = 4  # accumulators of a dot product, so that memory is waited for, not multiply-adds
# Accumulators that fit the registers: in dot_group queries x parts of a sum, in add_rows queries x vectors of a row.
REGISTERS = 16 if LANES == 16 else 8


def _number(value):
    return ir.Constant(INT64, value)


@intrinsic
def stack(typingctx, count):
    """The address of `count` floats (a literal) on the stack, valid until the function that inlines this returns."""
    if not isinstance(count, types.IntegerLiteral):
        return None

    def codegen(context, builder, signature, arguments):
        return cgutils.alloca_once(builder, FLOAT, size=count.literal_value)

    return FLOATS(count), codegen


@intrinsic
def dot_group(typingctx, count, scores, scores_row, x, keys, size, ahead):
    """scores[i * scores_row + lane] = sum over d < size of x[i * size + d] * keys[d * GROUP + lane], for LANES lanes.

    count  queries i, a literal up to TOGETHER: each key is loaded once for all of them
    ahead  address to prefetch GROUP * size numbers from meanwhile
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
        groups = 2 if llvm.is_of_halves(keys) else 1  # dimensions of a group of keys in a cache line

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
    """to[i * to_row + d] += sum over t < tokens of weights[i * weights_row + t] * rows[t * size + d], for d < size.

    count  queries i, a literal up to TOGETHER: each row is loaded once for all of them
    after  address of AHEAD further rows, prefetched while the last AHEAD of `rows` are read
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
            """Do `vectors` vectors of each query's sum, from column `offset` on; or one, masked."""
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
