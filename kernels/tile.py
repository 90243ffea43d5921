"""The register tile (micro-kernel) of the matrix product, and the copies that pack panels of A for it.

    tile             a tile of C = A B whose accumulators stay in registers
    tile_transposed  the same, with the result written transposed
    copy_column      copies one step (TILE_ROWS floats) of a packed panel of A;  copy_columns  COLUMNS_TOGETHER of them
    add_columns      sums COLUMNS_TOGETHER steps of a packed panel
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from . import llvm
from .llvm import FLOAT, INT64, IS_X86, LANES, VECTOR
from .row_group import perfect_shuffle
from .simd import FLOATS

__all__ = [
    "COLUMNS_TOGETHER",
    "ROW_UNIT",
    "TILE_COLUMNS",
    "TILE_ROWS",
    "TRANSPOSED_ROWS",
    "add_columns",
    "copy_column",
    "copy_columns",
    "tile",
    "tile_transposed",
]

# The tile's accumulators, one row of B and a broadcast number of A must fit the registers: 12*2+2+1 = 27 of 32
# (AVX-512), 6*2+2+1 = 15 of 16 (AVX2, SSE), 8*2+2+1 = 19 of 32 (NEON). The more rows, the less of B is loaded for each
# multiply-add: where a core does two of 512 bits a cycle and B comes from the L2 cache, a tile of 8 rows runs at 91% of
# the peak, one of 12 rows at 97%. Eight accumulators are enough to hide the latency of a multiply-add.
TILE_HEIGHTS, TILE_VECTORS = {16: ((4, 8, 12), 2), 8: ((6,), 2), 4: ((6,) if IS_X86 else (8,), 2)}[LANES]
TILE_ROWS = TILE_HEIGHTS[-1]
ROW_UNIT = TILE_HEIGHTS[0]  # rows of A are read in whole units of this many
TRANSPOSED_ROWS = min(8, TILE_ROWS)  # height of tile_transposed
TILE_COLUMNS = TILE_VECTORS * LANES
# Steps of the loop over k that are written out, a power of two. Where a step is 12 multiply-adds and 8 loads, counting,
# moving pointers and prefetching took 16 instructions more. That is as much as a core can do in the time of the
# multiply-adds, and too much for one that runs another thread besides (hyper-threading): products took 1.4 times as
# long.
UNROLLED = 1 if LANES == 16 else 8
PREFETCH_STEPS = 4  # steps of the loop for each prefetched line of C; a power of two
COLUMNS_TOGETHER = 16  # steps of `copy_columns` and `add_columns`; a power of two

_COLUMN = ir.VectorType(FLOAT, TILE_ROWS)
_MASK, _IN_COLUMN = ir.VectorType(ir.IntType(1), LANES), [int(lane < TILE_ROWS) for lane in range(LANES)]
_EIGHT = ir.VectorType(FLOAT, 8)

# The vectors of a tile's row, from the narrowest tile to the widest; a call takes the narrowest that holds its columns.
# A transposed tile's columns are the rows of a batch, often few; on a CPU that computes 512 bits in two halves, a
# vector of eight costs half as much.
_WIDTHS = tuple((VECTOR,) * vectors for vectors in range(1, TILE_VECTORS + 1))
_TRANSPOSED_WIDTHS = ((_EIGHT,), (VECTOR,), (VECTOR, _EIGHT), (VECTOR, VECTOR)) if LANES == 16 else _WIDTHS


def _load_column(builder, source):
    """TILE_ROWS floats. Twelve (AVX-512) are one masked load: as two loads, packing took twice as long."""
    if LANES == 16:
        return llvm.masked_load(builder, source, ir.Constant(_MASK, _IN_COLUMN))
    return llvm.load(builder, source, _COLUMN)


def _store_column(builder, value, to):
    if value.type == VECTOR:
        llvm.masked_store(builder, value, to, ir.Constant(_MASK, _IN_COLUMN))
    else:
        llvm.store(builder, value, to)


@intrinsic
def copy_column(typingctx, to, source):
    """Copy TILE_ROWS floats: one step of a packed panel of A."""

    def codegen(context, builder, signature, arguments):
        to, source = arguments
        _store_column(builder, _load_column(builder, source), to)
        return context.get_dummy_value()

    return types.void(FLOATS, FLOATS), codegen


@intrinsic
def copy_columns(typingctx, to, source, row):
    """copy_column for COLUMNS_TOGETHER steps: `row` floats apart in source, contiguous in `to`.

    The next COLUMNS_TOGETHER steps of source are prefetched. The hardware prefetcher would not do it, as this reads
    only a few numbers of each of many rows.
    """

    def codegen(context, builder, signature, arguments):
        to, source, row = arguments
        values, ahead = [], builder.mul(row, ir.Constant(INT64, COLUMNS_TOGETHER))
        for _ in range(COLUMNS_TOGETHER):
            values.append(_load_column(builder, source))
            llvm.prefetch(builder, llvm.at(builder, source, ahead))
            source = llvm.at(builder, source, row)
        for k, value in enumerate(values):
            _store_column(builder, value, llvm.at(builder, to, ir.Constant(INT64, k * TILE_ROWS)))
        return context.get_dummy_value()

    return types.void(FLOATS, FLOATS, types.int64), codegen


@intrinsic
def add_columns(typingctx, to, source):
    """Add COLUMNS_TOGETHER steps of a packed panel of A, TILE_ROWS floats each, to the TILE_ROWS floats at `to`."""

    def codegen(context, builder, signature, arguments):
        to, source = arguments
        columns = [
            _load_column(builder, llvm.at(builder, source, ir.Constant(INT64, k * TILE_ROWS)))
            for k in range(COLUMNS_TOGETHER)
        ]
        while len(columns) > 1:  # in pairs: a short chain of dependent additions
            columns = [builder.fadd(*pair) for pair in zip(columns[::2], columns[1::2], strict=True)]
        _store_column(builder, builder.fadd(_load_column(builder, to), columns[0]), to)
        return context.get_dummy_value()

    return types.void(FLOATS, FLOATS), codegen


_SIZES = types.int64
_TILE = types.void(
    FLOATS, _SIZES, FLOATS, _SIZES, _SIZES, FLOATS, _SIZES, _SIZES, _SIZES, _SIZES, FLOATS, _SIZES, FLOATS
)  # fmt: skip


@intrinsic
def tile(typingctx, c, c_row, a, a_row, a_step, b, b_step, depth, rows, columns, addend, addend_row, bias):
    """c = a @ b + addend + bias for one register tile of at most TILE_ROWS x TILE_COLUMNS.

    c       address; row r starts at c + r * c_row; the first `rows` rows and `columns` columns are written
    a       element (r, k) at a + r * a_row + k * a_step, where a_row or a_step is 1; rows are read in whole units of
            ROW_UNIT, so those beyond `rows` must be readable
    b       step k at b + k * b_step: TILE_COLUMNS floats; columns are read in whole vectors, so those beyond `columns`
            must be readable, but their values don't matter
    addend  laid out as c, with rows addend_row apart, or null; may be c itself, to accumulate
    bias    one row of `columns` floats, added to all rows, or null

    Rows and strides are in floats. All of c stays in registers during the loop over k, whose step is TILE_ROWS
    broadcasts of a, TILE_VECTORS loads of b and TILE_ROWS * TILE_VECTORS multiply-adds. There are smaller loops for
    fewer rows (TILE_HEIGHTS) and for fewer columns (whole vectors).
    """

    def codegen(context, builder, signature, arguments):
        _tile_of_any_width(builder, _ROWS_END, TILE_HEIGHTS, _WIDTHS, *arguments)
        return context.get_dummy_value()

    return _TILE, codegen


@intrinsic
def tile_transposed(typingctx, c, c_row, a, a_row, a_step, b, b_step, depth, rows, columns, addend, addend_row, bias):
    """As tile, but c, addend and bias are transposed: c^T = a @ b + addend^T + bias. At most TRANSPOSED_ROWS rows.

    a       TRANSPOSED_ROWS rows are read, whatever `rows` is
    c       column j of the tile is written to the row that starts at c + j * c_row; addend likewise
    bias    one float for each of the tile's rows, or null
    """

    def codegen(context, builder, signature, arguments):
        _tile_of_any_width(builder, _COLUMNS_END, (TRANSPOSED_ROWS,), _TRANSPOSED_WIDTHS, *arguments)
        return context.get_dummy_value()

    return _TILE, codegen


def _tile_of_any_width(builder, end, heights, widths, *arguments):
    """The narrowest tile that holds `columns`. widths: for each tile, narrowest first, the types of a row's vectors."""
    columns = arguments[9]
    done = builder.append_basic_block("tile.end")
    for vectors in widths[:-1]:
        is_narrow = builder.icmp_signed("<=", columns, ir.Constant(INT64, sum(vector.count for vector in vectors)))
        narrow = builder.append_basic_block("tile.narrow")
        wider = builder.append_basic_block("tile.wider")
        builder.cbranch(is_narrow, narrow, wider)
        builder.position_at_end(narrow)
        _tile(builder, end, heights, vectors, *arguments)
        builder.branch(done)
        builder.position_at_end(wider)
    _tile(builder, end, heights, widths[-1], *arguments)
    builder.branch(done)
    builder.position_at_end(done)


def _tile(
    builder, end, heights, vectors, c, c_row, a, a_row, a_step, b, b_step, depth, rows, columns, addend, addend_row,
    bias,
):
    """`tile` for columns that fit vectors of these types; `end` writes the result. The lowest height that fits."""
    after = builder.append_basic_block("tile.after")
    there_are_steps = builder.append_basic_block("tile.steps")
    results = [(builder.block, [])]
    builder.cbranch(builder.icmp_signed(">", depth, ir.Constant(INT64, 0)), there_are_steps, after)
    builder.position_at_end(there_are_steps)
    for height in heights:
        higher = None
        if height < heights[-1]:
            these = builder.append_basic_block("tile.height")
            higher = builder.append_basic_block("tile.higher")
            builder.cbranch(builder.icmp_signed("<=", rows, ir.Constant(INT64, height)), these, higher)
            builder.position_at_end(these)
        sums = _sum_products(builder, end, height, vectors, c, c_row, a, a_row, a_step, b, b_step, depth)
        results.append((builder.block, sums))
        builder.branch(after)
        if higher:
            builder.position_at_end(higher)

    builder.position_at_end(after)
    zeros = _zeros(vectors, heights[-1])
    totals = _merge(builder, *((block, sums + zeros[len(sums) :]) for block, sums in results))
    end.finish(builder, totals, c, c_row, rows, columns, addend, addend_row, bias)


def _zeros(vectors, height):
    """Accumulators: for each row, a vector of zeros of each type."""
    return [[llvm.same(FLOAT, vector.count, 0.0) for vector in vectors] for _ in range(height)]


def _merge(builder, *origins):
    """Accumulators that are those of the block from which control came. origins: blocks, each with its accumulators."""
    _, first = origins[0]
    merged = [[builder.phi(total.type) for total in row] for row in first]
    for block, sums in origins:
        for phis, row in zip(merged, sums, strict=True):
            for phi, total in zip(phis, row, strict=True):
                phi.add_incoming(total, block)
    return merged


def _sum_products(builder, end, height, vectors, c, c_row, a, a_row, a_step, b, b_step, depth):
    """Emit the loops over k for `height` rows of vectors of these types; depth > 0. Returns their accumulators."""
    sums = _zeros(vectors, height)
    if UNROLLED == 1:
        return _loop(builder, sums, 1, a, a_row, a_step, b, b_step, depth, partial(end.prefetch, builder, c, c_row))

    one, entry = ir.Constant(INT64, 1), builder.block
    whole = builder.and_(depth, ir.Constant(INT64, -UNROLLED))
    with builder.if_then(builder.icmp_signed(">", whole, ir.Constant(INT64, 0))):
        with builder.if_else(builder.icmp_signed("==", a_step, one)) as (is_apart, is_adjacent):
            with is_apart:
                apart = _loop(builder, sums, UNROLLED, a, a_row, one, b, b_step, whole)
                apart_end = builder.block
            with is_adjacent:
                adjacent = _loop(builder, sums, UNROLLED, a, None, a_step, b, b_step, whole)
                adjacent_end = builder.block
        unrolled = _merge(builder, (apart_end, apart), (adjacent_end, adjacent))
        unrolled_end = builder.block
    sums, entry = _merge(builder, (entry, sums), (unrolled_end, unrolled)), builder.block
    with builder.if_then(builder.icmp_signed("<", whole, depth)):
        a_rest, b_rest = (
            llvm.at(builder, start, builder.mul(whole, step)) for start, step in ((a, a_step), (b, b_step))
        )
        last = _loop(builder, sums, 1, a_rest, a_row, a_step, b_rest, b_step, builder.sub(depth, whole))
        last_end = builder.block
    return _merge(builder, (entry, sums), (last_end, last))


def _loop(builder, start, steps, a, a_row, a_step, b, b_step, depth, prefetch=None):
    """Emit a loop over k, `steps` at a time, from the accumulators `start`. Returns the accumulators after it.

    a_row     None: the rows of a are adjacent
    depth     a multiple of `steps`, greater than 0
    prefetch  called at the loop's start with k and the height
    """
    entry, height, vectors = builder.block, len(start), [total.type for total in start[0]]
    loop, after = builder.append_basic_block("tile.loop"), builder.append_basic_block("tile.loop.end")
    zero = ir.Constant(INT64, 0)
    if a_row is None:
        groups, places = [a], [ir.Constant(INT64, r) for r in range(height)]
    else:
        # Groups of three rows share one pointer: x86 can address base, base + row and base + 2 * row, so the 12 rows of
        # a take 4 pointers, not 12.
        twice = builder.add(a_row, a_row)
        groups, places = [a], [zero, a_row, twice]
        for _ in range(3, height, 3):
            groups.append(llvm.at(builder, groups[-1], twice, a_row))
    numbers = [ir.Constant(INT64, n) for n in range(steps + 1)]
    a_steps, b_steps = ([builder.mul(step, number) for number in numbers] for step in (a_step, b_step))
    builder.branch(loop)

    builder.position_at_end(loop)
    k = builder.phi(INT64)
    b_now = builder.phi(b.type)
    a_now = [builder.phi(a.type) for _ in groups]
    sums = new = [[builder.phi(vector) for vector in vectors] for _ in range(height)]
    if prefetch:
        prefetch(k, height)
    # If LLVM knew how the groups are related, it would compute each row's address from the one before: a chain of
    # additions that takes longer than the multiply-adds. Likewise the steps'.
    bases = [llvm.opaque(builder, base) for base in a_now]
    b_base = llvm.opaque(builder, b_now) if steps > 1 else b_now
    for n in range(steps):
        b_row = [
            llvm.load(builder, llvm.at(builder, b_base, b_steps[n], ir.Constant(INT64, v * LANES)), vector)
            for v, vector in enumerate(vectors)
        ]
        old, new = new, []
        for r in range(height):
            base, place = bases[r // len(places)], places[r % len(places)]
            x = builder.load(llvm.at(builder, base, a_steps[n], place))
            xs = [llvm.broadcast(builder, x, vector.count) for vector in vectors]
            new.append([llvm.fma(builder, *of) for of in zip(xs, b_row, old[r], strict=True)])
    k_next = builder.add(k, ir.Constant(INT64, steps))
    b_next = llvm.at(builder, b_base, b_steps[steps])
    a_next = [llvm.at(builder, base, a_steps[steps]) for base in bases]
    builder.cbranch(builder.icmp_signed("<", k_next, depth), loop, after)
    for phi, first, following in [
        (k, zero, k_next),
        (b_now, b, b_next),
        *zip(a_now, groups, a_next, strict=True),
        *((sums[r][v], start[r][v], new[r][v]) for r in range(height) for v in range(len(vectors))),
    ]:
        phi.add_incoming(first, entry)
        phi.add_incoming(following, loop)
    builder.position_at_end(after)
    return new


# During a tile's loop the lines of c are prefetched into the L1 cache, as they are needed after the loop. All at once,
# before the loop, they would delay the loads of b, which cost 4% of a large product. So each step prefetches one line,
# the same for PREFETCH_STEPS steps; a long loop goes on with the lines of the last row. The smaller tiles, whose steps
# are written out, gain nothing from it: without, products take 0.98 of the time.


def _prefetch_rows(builder, c, c_row, k, height):
    number = builder.lshr(k, ir.Constant(INT64, PREFETCH_STEPS.bit_length() - 1))
    r = builder.udiv(number, ir.Constant(INT64, TILE_VECTORS))
    v = builder.urem(number, ir.Constant(INT64, TILE_VECTORS))
    last = ir.Constant(INT64, height - 1)
    r = builder.select(builder.icmp_unsigned("<", r, last), r, last)
    row = builder.mul(r, c_row)
    place = builder.add(row, builder.mul(v, ir.Constant(INT64, LANES)))
    llvm.prefetch(builder, llvm.at(builder, c, place), is_write=True)


def _prefetch_columns(builder, c, c_row, k, height):
    number = builder.lshr(k, ir.Constant(INT64, PREFETCH_STEPS.bit_length() - 1))
    last = ir.Constant(INT64, TILE_COLUMNS - 1)
    number = builder.select(builder.icmp_unsigned("<", number, last), number, last)
    llvm.prefetch(builder, llvm.at(builder, c, builder.mul(number, c_row)), is_write=True)


def _finish_rows(builder, totals, c, c_row, rows, columns, addend, addend_row, bias):
    """The end of `tile`: add addend and bias, and store the first `rows` rows and `columns` columns."""
    vectors = len(totals[0])
    is_whole = builder.icmp_signed(">=", columns, ir.Constant(INT64, vectors * LANES))
    with builder.if_else(is_whole) as (whole, edge):
        with whole:
            _finish_some(builder, totals, c, c_row, rows, addend, addend_row, bias, [None] * vectors)
        with edge:
            firsts = [ir.Constant(INT64, v * LANES) for v in range(vectors)]
            masks = [llvm.lanes_below(builder, builder.sub(columns, first)) for first in firsts]
            _finish_some(builder, totals, c, c_row, rows, addend, addend_row, bias, masks)


def _finish_some(builder, totals, c, c_row, rows, addend, addend_row, bias, masks):
    """masks: for each vector of a row, which of its lanes there are; None: all."""
    null_pointer = ir.Constant(c.type, None)

    def add_row(row, source):
        """row + the row at source, or row itself if source is null (tested at run time)."""
        before = builder.block
        with builder.if_then(builder.icmp_unsigned("!=", source, null_pointer)):
            added = []
            for v in range(len(row)):
                address = llvm.at(builder, source, ir.Constant(INT64, v * LANES))
                added.append(builder.fadd(row[v], llvm.read(builder, address, masks[v])))
            inside = builder.block
        (chosen,) = _merge(builder, (before, [row]), (inside, [added]))
        return chosen

    for r, total in enumerate(totals):
        number = ir.Constant(INT64, r)
        with builder.if_then(builder.icmp_signed("<", number, rows)):
            moved = llvm.at(builder, addend, builder.mul(number, addend_row))
            is_null = builder.icmp_unsigned("==", addend, null_pointer)
            row = add_row(total, builder.select(is_null, null_pointer, moved))
            row = add_row(row, bias)
            to = llvm.at(builder, c, builder.mul(number, c_row))
            for v in range(len(row)):
                llvm.write(builder, row[v], llvm.at(builder, to, ir.Constant(INT64, v * LANES)), masks[v])


def _finish_columns(builder, totals, c, c_row, rows, columns, addend, addend_row, bias):
    """The end of `tile_transposed`: transpose in registers, then as the end of `tile`, with the same order of sums."""
    place = totals, c, c_row, columns, addend, addend_row, bias
    if LANES == 16:
        _finish_some_columns(builder, *place, llvm.lanes_below(builder, rows, 8))
        return
    # Without AVX-512 a masked store may be slow: Zen 3 takes twelve cycles; SSE and NEON test lane after lane.
    with builder.if_else(builder.icmp_signed(">=", rows, ir.Constant(INT64, TRANSPOSED_ROWS))) as (whole, edge):
        with whole:
            _finish_some_columns(builder, *place, None)
        with edge:
            _finish_some_columns(builder, *place, llvm.lanes_below(builder, rows, 8))


def _finish_some_columns(builder, totals, c, c_row, columns, addend, addend_row, bias, mask):
    """mask: which of eight rows there are; None: all TRANSPOSED_ROWS."""
    null_pointer = ir.Constant(c.type, None)
    kind = _EIGHT if mask else ir.VectorType(FLOAT, TRANSPOSED_ROWS)

    def load(source):
        """The floats at source for the rows that there are, 0 for the rest; zeros if source is null."""
        before = builder.block
        with builder.if_then(builder.icmp_unsigned("!=", source, null_pointer)):
            loaded = llvm.masked_load(builder, source, mask) if mask else llvm.load(builder, source, kind)
            inside = builder.block
        value = builder.phi(kind)
        value.add_incoming(llvm.same(FLOAT, kind.count, 0.0), before)
        value.add_incoming(loaded, inside)
        return value

    offsets = load(bias)
    for v in range(len(totals[0])):
        vectors = [total[v] for total in totals]
        vectors += [ir.Constant(vectors[0].type, ir.Undefined)] * (8 - TRANSPOSED_ROWS)
        for lane, column in enumerate(_columns_of_eight(builder, vectors)):
            number = ir.Constant(INT64, v * LANES + lane)
            with builder.if_then(builder.icmp_signed("<", number, columns)):
                moved = llvm.at(builder, addend, builder.mul(number, addend_row))
                is_null = builder.icmp_unsigned("==", addend, null_pointer)
                added = load(builder.select(is_null, null_pointer, moved))
                column = column if mask else llvm.shuffle(builder, column, range(kind.count))
                result = builder.fadd(builder.fadd(column, added), offsets)
                llvm.write(builder, result, llvm.at(builder, c, builder.mul(number, c_row)), mask)


def _columns_of_eight(builder, rows):
    """The columns of eight vectors, each as a vector of eight, by three perfect shuffles."""
    for _ in range(3):
        rows = perfect_shuffle(builder, rows)
    lanes = rows[0].type.count
    if lanes == 4:  # a column is two vectors
        return [llvm.shuffle(builder, rows[2 * lane], range(8), rows[2 * lane + 1]) for lane in range(lanes)]
    return [llvm.shuffle(builder, row, range(start, start + 8)) for row in rows for start in range(0, lanes, 8)]


class _End(NamedTuple):
    """How a tile's result is written: by rows or by columns."""

    prefetch: Callable[..., None]
    finish: Callable[..., None]


_ROWS_END = _End(_prefetch_rows, _finish_rows)
_COLUMNS_END = _End(_prefetch_columns, _finish_columns)
