"""The register tile, the heart of the matrix product, and the packing of A that it wants.

    tile          a piece of the product that stays in registers: see its docstring;  tile_transposed  of a transposed B
    copy_column   one step of a packed panel of A;  copy_columns  several of them;  add_columns  those added up
"""

from __future__ import annotations

from collections.abc import Callable
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

# The register tile of the matrix product. Its accumulators, one row of B and a broadcast of A must fit the
# registers: 12*2+2+1 = 27 of 32 (AVX-512), 6*2+2+1 = 15 of 16 (AVX2, SSE), 8*2+2+1 of 32 (NEON). The more rows, the
# less of B is fetched for a multiply-add: where a core does two of 512 bits a cycle, 8 rows of B in the L2 cache
# run at 91% of its peak, 12 at 97%. Eight accumulators hide the latency of a multiply-add.
TILE_HEIGHTS, TILE_VECTORS = {16: ((4, 8, 12), 2), 8: ((6,), 2), 4: ((6,) if IS_X86 else (8,), 2)}[LANES]
TILE_ROWS = TILE_HEIGHTS[-1]
ROW_UNIT = TILE_HEIGHTS[0]  # rows are computed, and so read, in whole units
TRANSPOSED_ROWS = min(8, TILE_ROWS)  # of tile_transposed
TILE_COLUMNS = TILE_VECTORS * LANES
PREFETCH_STEPS = 4  # a power of two
COLUMNS_TOGETHER = 16  # of `copy_columns` and `add_columns`, a power of two

_COLUMN = ir.VectorType(FLOAT, TILE_ROWS)
_MASK, _IN_COLUMN = ir.VectorType(ir.IntType(1), LANES), [int(lane < TILE_ROWS) for lane in range(LANES)]
_EIGHT = ir.VectorType(FLOAT, 8)

# The vectors of tiles as wide as their columns need. A transposed tile's columns are the rows of a batch, often few;
# where 512 bits are computed in two halves, a vector of eight costs half as much.
_WIDTHS = tuple((VECTOR,) * vectors for vectors in range(1, TILE_VECTORS + 1))
_TRANSPOSED_WIDTHS = ((_EIGHT,), (VECTOR,), (VECTOR, _EIGHT), (VECTOR, VECTOR)) if LANES == 16 else _WIDTHS


def _load_column(builder, source):
    """TILE_ROWS floats. Twelve are one vector with a mask: in two parts, packing took twice as long."""
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
    """copy_column for COLUMNS_TOGETHER steps, `row` floats apart where they come from; as many further are asked for.

    CPUs do not by themselves: these are a few lines of each of many rows.
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
        while len(columns) > 1:  # pairs of pairs, so that no sum waits long for another
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
    a       element (r, k) at a + r * a_row + k * a_step; rows are read in whole units of ROW_UNIT, so those beyond
            the matrix must be readable
    b       step k at b + k * b_step: TILE_COLUMNS floats, anything beyond the matrix; columns are read in whole vectors
    addend  as c, or null; often c itself, to accumulate
    bias    one row, or null

    All of c stays in registers over the loop in k: TILE_ROWS broadcasts of a, TILE_VECTORS loads of b and
    TILE_ROWS * TILE_VECTORS multiply-adds a step. For fewer rows (TILE_HEIGHTS) and fewer columns (whole vectors) there
    are loops that do less.
    """

    def codegen(context, builder, signature, arguments):
        _tile_of_any_width(builder, _ROWS_END, TILE_HEIGHTS, _WIDTHS, *arguments)
        return context.get_dummy_value()

    return _TILE, codegen


@intrinsic
def tile_transposed(typingctx, c, c_row, a, a_row, a_step, b, b_step, depth, rows, columns, addend, addend_row, bias):
    """As tile, with c, addend and bias the other way round, c^T = a @ b, for at most TRANSPOSED_ROWS rows, all read.

    c       column j of the tile is written to the row that starts at c + j * c_row; addend likewise
    bias    a float for each row of the tile, or null
    """

    def codegen(context, builder, signature, arguments):
        _tile_of_any_width(builder, _COLUMNS_END, (TRANSPOSED_ROWS,), _TRANSPOSED_WIDTHS, *arguments)
        return context.get_dummy_value()

    return _TILE, codegen


def _tile_of_any_width(builder, end, heights, widths, *arguments):
    """The narrowest tile that holds the columns, of some widths, each the types of its vectors."""
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
    """`tile` for columns that vectors of these types hold; `end` says where the result goes."""
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
        results.append(
            _sum_products(builder, end, height, vectors, c, c_row, a, a_row, a_step, b, b_step, depth, after)
        )
        if higher:
            builder.position_at_end(higher)

    builder.position_at_end(after)
    zeros = [ir.Constant(vector, [0.0] * vector.count) for vector in vectors]
    totals = [[builder.phi(vector) for vector in vectors] for _ in range(heights[-1])]
    for r, total in enumerate(totals):
        for v, phi in enumerate(total):
            for block, sums in results:
                phi.add_incoming(sums[r][v] if r < len(sums) else zeros[v], block)
    end.finish(builder, totals, c, c_row, rows, columns, addend, addend_row, bias)


def _sum_products(builder, end, height, vectors, c, c_row, a, a_row, a_step, b, b_step, depth, after):
    """The loop in k for so many rows and vectors of these types, which goes on to `after`: its block and the sums."""
    zeros = [ir.Constant(vector, [0.0] * vector.count) for vector in vectors]
    entry = builder.block
    loop = builder.append_basic_block("tile.loop")
    # Rows in groups of three, each group with one address: x86 addresses base, base + row and
    # base + 2 * row, so a tile of 12 rows takes 4 registers for a, not 12.
    twice = builder.add(a_row, a_row)
    groups = [a]
    for _ in range(3, height, 3):
        groups.append(llvm.at(builder, groups[-1], twice, a_row))
    builder.branch(loop)

    builder.position_at_end(loop)
    k = builder.phi(INT64)
    b_now = builder.phi(b.type)
    a_now = [builder.phi(a.type) for _ in groups]
    sums = [[builder.phi(vector) for vector in vectors] for _ in range(height)]
    end.prefetch(builder, c, c_row, k, height)
    b_row = [
        llvm.load(builder, llvm.at(builder, b_now, ir.Constant(INT64, v * LANES)), vector)
        for v, vector in enumerate(vectors)
    ]
    # LLVM, if it knew how the groups relate, would reach each row by an addition to the one before: a chain that takes
    # longer than the multiply-adds.
    bases = [llvm.opaque(builder, base) for base in a_now]
    new = []
    for r in range(height):
        base = bases[r // 3]
        address = (base, llvm.at(builder, base, a_row), llvm.at(builder, base, twice))[r % 3]
        x = builder.load(address)
        xs = [llvm.broadcast(builder, x, vector.count) for vector in vectors]
        new.append([llvm.fma(builder, *of) for of in zip(xs, b_row, sums[r], strict=True)])
    k_next = builder.add(k, ir.Constant(INT64, 1))
    b_next = llvm.at(builder, b_now, b_step)
    a_next = [llvm.at(builder, base, a_step) for base in bases]
    builder.cbranch(builder.icmp_signed("<", k_next, depth), loop, after)
    for phi, start, following in [
        (k, ir.Constant(INT64, 0), k_next),
        (b_now, b, b_next),
        *zip(a_now, groups, a_next, strict=True),
        *[(sums[r][v], zero, new[r][v]) for r in range(height) for v, zero in enumerate(zeros)],
    ]:
        phi.add_incoming(start, entry)
        phi.add_incoming(following, loop)
    return loop, new


# In step k of a tile's loop one line of c is brought into the L1 cache, where the end of the loop wants it. All at
# once, before the loop, they would hold up the loads of b: that cost 4% of a large product. So there is one each
# PREFETCH_STEPS steps.


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
    """The end of `tile`: add what is to be added and store, within the bounds of the matrix."""
    vectors = len(totals[0])
    is_whole = builder.icmp_signed(">=", columns, ir.Constant(INT64, vectors * LANES))
    with builder.if_else(is_whole) as (whole, edge):
        with whole:
            _finish_some(builder, totals, c, c_row, rows, addend, addend_row, bias, None)
        with edge:
            firsts = [ir.Constant(INT64, v * LANES) for v in range(vectors)]
            masks = [llvm.lanes_below(builder, builder.sub(columns, first)) for first in firsts]
            _finish_some(builder, totals, c, c_row, rows, addend, addend_row, bias, masks)


def _finish_some(builder, totals, c, c_row, rows, addend, addend_row, bias, masks):
    null_pointer = ir.Constant(c.type, None)

    def add_row(row, source):
        """row + the row at source, or row itself where source is null."""
        before = builder.block
        with builder.if_then(builder.icmp_unsigned("!=", source, null_pointer)):
            added = []
            for v in range(len(row)):
                address = llvm.at(builder, source, ir.Constant(INT64, v * LANES))
                loaded = llvm.masked_load(builder, address, masks[v]) if masks else llvm.load(builder, address)
                added.append(builder.fadd(row[v], loaded))
            inside = builder.block
        chosen = [builder.phi(VECTOR) for _ in row]
        for phi, old, new in zip(chosen, row, added, strict=True):
            phi.add_incoming(old, before)
            phi.add_incoming(new, inside)
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
                address = llvm.at(builder, to, ir.Constant(INT64, v * LANES))
                if masks:
                    llvm.masked_store(builder, row[v], address, masks[v])
                else:
                    llvm.store(builder, row[v], address)


def _finish_columns(builder, totals, c, c_row, rows, columns, addend, addend_row, bias):
    """The end of `tile_transposed`: the same sums in the same order, turned round in registers."""
    null_pointer = ir.Constant(c.type, None)
    mask = llvm.lanes_below(builder, rows, 8)
    zeros = ir.Constant(_EIGHT, [0.0] * 8)

    def load(source):
        """Eight floats, as many as there are rows; zeros from null."""
        before = builder.block
        with builder.if_then(builder.icmp_unsigned("!=", source, null_pointer)):
            loaded = llvm.masked_load(builder, source, mask)
            inside = builder.block
        value = builder.phi(_EIGHT)
        value.add_incoming(zeros, before)
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
                result = builder.fadd(builder.fadd(column, added), offsets)
                llvm.masked_store(builder, result, llvm.at(builder, c, builder.mul(number, c_row)), mask)


def _columns_of_eight(builder, rows):
    """The columns of eight vectors, each a vector of eight: three perfect shuffles."""
    for _ in range(3):
        rows = perfect_shuffle(builder, rows)
    lanes = rows[0].type.count
    if lanes == 4:  # two make a column
        return [llvm.shuffle(builder, rows[2 * lane], range(8), rows[2 * lane + 1]) for lane in range(lanes)]
    return [llvm.shuffle(builder, row, range(start, start + 8)) for row in rows for start in range(0, lanes, 8)]


class _End(NamedTuple):
    """Where a tile's result goes."""

    prefetch: Callable[..., None]
    finish: Callable[..., None]


_ROWS_END = _End(_prefetch_rows, _finish_rows)
_COLUMNS_END = _End(_prefetch_columns, _finish_columns)
