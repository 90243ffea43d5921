"""The matrix product C = A B, after Goto and van de Geijn 2008 (Anatomy of High-Performance Matrix Multiplication).

Three ideas, from the inside out:

1. The register tile (tile.py). A TILE_ROWS x TILE_COLUMNS piece of C stays in registers while k runs; each
   step loads one row of B and multiplies it by TILE_ROWS scalars of A. So each float of B that is loaded is used
   TILE_ROWS times, and the multiply-add units need not wait for memory.
2. Packing. The tile reads rows of B that are contiguous, whatever B's layout in memory. So a block of B is first
   copied into panels, each TILE_COLUMNS wide:

       B block (depth, columns)  ->  panel 0: k=0 [c0 .. c31] k=1 [c0 .. c31] ...   panel 1: k=0 [c32 .. c63] ...

   with AVX-512; with narrower vectors a panel has 16 or 8 columns. Beyond the matrix's edge panels hold arbitrary
   numbers, as results from there are not stored. A transposed B is transposed on the way. A is read in place, row by
   row; only a transposed A is packed, and the last few rows are copied. Where C has few rows, packing B does not pay
   off: a B that is not large is read in place; instead of a transposed B, whose rows don't suit the tile, A is packed
   (multiply_few_rows).
3. Blocking. A block of B is at most DEPTH deep and as wide as the L2 cache allows, so that it stays there while all
   rows of A pass by, and a tile's piece of A, TILE_ROWS x DEPTH, stays in L1. Each block reads and writes all of C, so
   blocks are deep (384 in one costs 5% less than 256 and then 128), and a depth that must be cut is cut evenly. A
   transposed A is packed a block of ROWS at a time and shares L2; blocks are then just so deep that all columns fit,
   for A to be packed once, which is 4 to 7% faster.

Threads: C is cut into rectangles, one for each thread. The order in which an element of C is summed does not depend on
the rectangles, so its bits do not depend on the number of threads.

The gradient of a bias is the sum of dout's rows. The product for the weight's gradient packs dout anyway, as its
transposed A, so it adds up the rows meanwhile.
"""

from pathlib import Path

import numpy as np
from numba import config, types

from .jit import Linked, inline, kernel, prange, prepared
from .llvm import LANES, LINE
from .row_group import transpose, transpose_part
from .simd import (
    FLOATS,
    advance,
    advance_optional,
    broadcast,
    copy_times,
    is_null,
    null,
    optional,
    pointer,
)
from .tile import (
    COLUMNS_TOGETHER,
    ROW_UNIT,
    TILE_COLUMNS,
    TILE_ROWS,
    TRANSPOSED_ROWS,
    add_columns,
    copy_column,
    copy_columns,
    tile,
    tile_transposed,
)

linked = Linked()
P, N, B = FLOATS, types.int64, types.boolean

DEPTH = 768
PACKED_DEPTH = DEPTH // 2
ROWS = 128 // TILE_ROWS * TILE_ROWS  # whole panels: a packed block of A must not run over its room
# Floats of scratch for A: a packed block of a transposed A, and copies of one tile's rows. The rest is for B's panels.
A_ROOM = DEPTH * ROWS + (DEPTH + LINE) * TILE_ROWS + 2 * LANES

# Below this many multiply-adds a second thread costs more (3.5 us to wake it) than it saves.
SERIAL_WORK = 500_000
PACKING = 24  # packing a row of B takes as long as multiplying it by this many rows of A
EXCHANGED = 4  # moving a float of A or C from one core to another takes as long as this many multiply-adds
FEW_ROWS = 96  # for up to this many rows B is not packed
# Nor for up to twice as many, if they nearly fill their tiles: 1.05x to 1.07x as fast on a core that does two
# multiply-adds of 512 bits a cycle, less on others. But a B of fewer columns or depth than these is cheap to pack.
FEW_COLUMNS, FEW_DEPTH = 256, 256
PACKING_A = 12  # packing a row of a transposed A takes as long as multiplying it by this many columns of B
# Rows whose distance is a multiple of this many floats share a set of the L1 cache (64 sets on most CPUs), which holds
# eight lines: twelve such rows, read in place, evict each other, which makes a product 10% slower.
SAME_SET = 64 * LINE
LOW_ROWS = min(8, TILE_ROWS)  # height of the tiles for such rows

NO_MATRIX = np.empty((0, 0), np.float32)
NO_ROW = np.empty(0, np.float32)


def matmul_scratch():
    """Scratch for the products below: (threads, floats), a row for each thread."""
    return thread_rooms(panel_floats())


def panel_floats():
    """Floats of scratch for one thread's product: panels of B, and A_ROOM."""
    panels = second_cache_size() * 3 // 4 // 4  # floats; A and C pass through the last quarter
    return max(FEW_ROWS * DEPTH, min(3 << 16, panels)) + A_ROOM


def thread_rooms(floats):
    """Scratch (threads, at least `floats`), in which each row begins at a cache line."""
    threads, row = config.NUMBA_NUM_THREADS, (floats + LINE - 1) // LINE * LINE
    raw = np.empty(threads * row + LINE, np.float32)
    start = -(raw.ctypes.data // 4) % LINE
    return raw[start : start + threads * row].reshape(threads, row)


def second_cache_size():
    """Bytes of a core's L2 cache; half a megabyte where the system doesn't tell."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text()
        return int(text.strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        return 1 << 19


@inline
def padded(columns):
    """The number of columns rounded up to whole tiles."""
    return (columns + TILE_COLUMNS - 1) // TILE_COLUMNS * TILE_COLUMNS


@inline
def even_block(depth, deepest):
    """The depth of blocks that cut `depth` evenly into as few as possible of at most `deepest`."""
    blocks = max(1, (depth + deepest - 1) // deepest)
    return max(1, (depth + blocks - 1) // blocks)


@linked(types.void(P, P, N, N, N, types.float32))
def pack_rows(panels, source, row, depth, columns, factor):
    """Pack B[k, j] = factor * source[k * row + j] into panels."""
    factors = broadcast(factor)
    for j in range(0, columns, TILE_COLUMNS):
        to = advance(panels, j * depth)
        within = min(TILE_COLUMNS, columns - j)
        if within == TILE_COLUMNS:
            for k in range(depth):
                for v in range(0, TILE_COLUMNS, LANES):
                    copy_times(advance(to, k * TILE_COLUMNS + v), advance(source, k * row + j + v), factors)
        else:
            for k in range(depth):
                for v in range(within):
                    to[k * TILE_COLUMNS + v] = factor * source[k * row + j + v]


@linked(types.void(P, P, N, N, N))
def pack_transposed(panels, source, row, depth, columns):
    """Pack B[k, j] = source[j * row + k] into panels."""
    whole = depth // LANES * LANES
    for j in range(0, columns, LANES):
        to = advance(panels, j // TILE_COLUMNS * TILE_COLUMNS * depth + j % TILE_COLUMNS)
        start, count = advance(source, j * row), min(LANES, columns - j)
        if count == LANES:
            for k in range(0, whole, LANES):
                transpose(advance(to, k * TILE_COLUMNS), TILE_COLUMNS, advance(start, k), row)
        else:
            for k in range(0, whole, LANES):
                transpose_part(advance(to, k * TILE_COLUMNS), TILE_COLUMNS, advance(start, k), row, count)
        for lane in range(count):
            for k in range(whole, depth):
                to[k * TILE_COLUMNS + lane] = start[lane * row + k]


@linked(types.void(P, N, P, N, N, N, types.float32))
def scale_rows(to, to_row, source, source_row, rows, columns, factor):
    """to (rows, columns) = source * factor; to_row and source_row are the floats from one row to the next."""
    for n in range(rows):
        here, there = advance(to, n * to_row), advance(source, n * source_row)
        for d in range(columns):
            here[d] = there[d] * factor


@inline
def copied_row(columns):
    """Floats from one copied row to the next: an odd number of lines, so that rows are spread over the cache's sets."""
    return ((columns + LINE - 1) // LINE | 1) * LINE


@linked(types.void(P, P, P, N, N, N))
def pack_a_transposed(panels, sums, source, row, depth, rows):
    """Pack A[i, k] = source[k * row + i] into panels of TILE_ROWS; sums[i] += sum over k, unless null."""
    whole = rows // TILE_ROWS * TILE_ROWS
    for first in range(0, depth, COLUMNS_TOGETHER):  # a few rows of source for all panels: these stay in L1
        last = min(depth, first + COLUMNS_TOGETHER)
        for i in range(0, whole, TILE_ROWS):
            to = advance(panels, i * depth)
            if last - first == COLUMNS_TOGETHER:
                copy_columns(advance(to, first * TILE_ROWS), advance(source, first * row + i), row)
                if not is_null(sums):
                    add_columns(advance(sums, i), advance(to, first * TILE_ROWS))
                continue
            for k in range(first, last):
                copy_column(advance(to, k * TILE_ROWS), advance(source, k * row + i))
                if not is_null(sums):
                    for r in range(i, i + TILE_ROWS):
                        sums[r] += source[k * row + r]
    if whole < rows:
        to = advance(panels, whole * depth)
        for k in range(depth):
            for i in range(whole, rows):
                to[k * TILE_ROWS + i - whole] = source[k * row + i]
                if not is_null(sums):
                    sums[i] += source[k * row + i]


@linked(types.void(P, N, P, N, N, P, N, N, N, N, N, P, N, P, P))
def multiply_tile_row(
    c, c_row, a, a_row, a_step, panels, panel, b_step, rows, columns, depth, addend, addend_row, bias, spare
):
    """As multiply_panels, for at most TILE_ROWS rows.

    panel   floats from one panel of B (TILE_COLUMNS columns) to the next
    b_step  floats from one k to the next in a panel: TILE_COLUMNS if B is packed
    spare   room for copies of TILE_ROWS rows of A, needed if rows are not whole ROW_UNITs, for which a_step must be 1;
            null: A is read in place, in whole ROW_UNITs, so the rows beyond must be readable
    """
    if rows % ROW_UNIT and not is_null(spare):  # the tile reads whole units: in spare, it may
        scale_rows(spare, copied_row(depth), a, a_row, rows, depth, np.float32(1))
        a, a_row = spare, copied_row(depth)
    for j in range(0, columns, TILE_COLUMNS):
        tile(
            advance(c, j),
            c_row,
            a,
            a_row,
            a_step,
            advance(panels, j // TILE_COLUMNS * panel),
            b_step,
            depth,
            rows,
            columns - j,
            advance_optional(addend, j),
            addend_row,
            advance_optional(bias, j),
        )


@linked(types.void(P, N, P, N, N, P, N, N, N, N, N, P, N, P, P))
def multiply_panels(
    c, c_row, a, a_row, a_step, panels, panel, b_step, rows, columns, depth, addend, addend_row, bias, spare
):
    """C (rows, columns) = A @ B + addend + bias, for one block; B and the rest as in multiply_tile_row.

    a_row, a_step  floats from an element of A to the one in the next row, and to the next k; a_step is 1 if A is not
                   packed, else TILE_ROWS
    """
    is_packed = a_step != 1
    tall = LOW_ROWS if a_row % SAME_SET == 0 and not is_packed else TILE_ROWS
    for i in range(0, rows, tall):
        multiply_tile_row(
            advance(c, i * c_row),
            c_row,
            advance(a, i * (depth if is_packed else a_row)),
            a_row,
            a_step,
            panels,
            panel,
            b_step,
            min(tall, rows - i),
            columns,
            depth,
            advance_optional(addend, i * addend_row),
            addend_row,
            bias,
            null() if is_packed else spare,
        )


@linked(types.void(P, N, P, N, B, P, N, B, N, N, N, P, N, P, P, P, N))
def multiply(
    c, c_row, a, a_row, a_transposed, b, b_row, b_transposed, rows, columns, depth, addend, addend_row, bias, sums,
    scratch, room,
):
    """C (rows, columns) = op(A) @ op(B) + addend + bias on one thread; all are addresses.

    c_row         floats from one row of C to the next. C may be some columns of a wider matrix; the depth of a
                  transposed A's blocks follows from c_row, so that the bits do not depend on how C is cut
    a_row, b_row  floats from one row of A and B, as stored, to the next
    sums          (rows,) the sums over k of a transposed A are added to this; null: no sums
    scratch       `room` floats: a row of matmul_scratch()
    """
    b_room, deepest = room - A_ROOM, DEPTH
    spare = advance(scratch, b_room + DEPTH * ROWS)
    if a_transposed:
        deepest = min(DEPTH, (b_room + PACKED_DEPTH * ROWS) // (padded(c_row) + ROWS))
        if deepest < PACKED_DEPTH // 2:  # too many columns: cut these instead
            deepest = PACKED_DEPTH
    block = even_block(depth, deepest)
    a_panels = advance(spare, -padded(block * ROWS))
    if a_transposed:
        b_room += (PACKED_DEPTH - block) * ROWS  # the shallower A's blocks are, the more room is left for B
    most = b_room // block // TILE_COLUMNS * TILE_COLUMNS
    is_b_in_place = not (a_transposed or b_transposed) and rows <= FEW_ROWS and columns % LANES == 0
    is_b_in_place = is_b_in_place and columns * depth <= room - A_ROOM  # read once for each tile row: must stay in L2
    for j in range(0, columns, most):
        width = min(most, columns - j)
        for k in range(0, max(1, depth), block):
            deep = min(block, depth - k)
            panels, panel, b_step = scratch, TILE_COLUMNS * deep, TILE_COLUMNS
            if is_b_in_place:
                panels, panel, b_step = advance(b, k * b_row + j), TILE_COLUMNS, b_row
            elif b_transposed:
                pack_transposed(scratch, advance(b, j * b_row + k), b_row, deep, width)
            else:
                pack_rows(scratch, advance(b, k * b_row + j), b_row, deep, width, np.float32(1))
            for i in range(0, rows, ROWS):
                high = min(ROWS, rows - i)
                here = advance(c, i * c_row + j)
                if a_transposed:
                    first_sums = advance_optional(sums, i) if j == 0 else null()
                    pack_a_transposed(a_panels, first_sums, advance(a, k * a_row + i), a_row, deep, high)
                    a_here, row, step = a_panels, 1, TILE_ROWS
                else:
                    a_here, row, step = advance(a, i * a_row + k), a_row, 1
                first = k == 0
                multiply_panels(
                    here,
                    c_row,
                    a_here,
                    row,
                    step,
                    panels,
                    panel,
                    b_step,
                    high,
                    width,
                    deep,
                    advance_optional(addend, i * addend_row + j) if first else here,
                    addend_row if first else c_row,
                    advance_optional(bias, j) if first else null(),
                    spare,
                )


@linked(types.void(P, N, P, N, P, N, N, N, N, P, N, P, P, N), ordered=True)
def multiply_few_rows(
    c, c_row, a, a_row, b, b_row, rows, columns, depth, addend, addend_row, bias, scratch, room
):
    """C (rows, columns) = A @ B^T + addend + bias on one thread, as `multiply` and with the same bits, for few rows.

    A and B change roles: B is read in place, row by row, and A is packed. So B is read once, during the multiply-adds,
    and not packed, which would cost more than few rows can gain from it.
    """
    spare = advance(scratch, room - A_ROOM + DEPTH * ROWS)
    block = even_block(depth, DEPTH)
    for k in range(0, max(1, depth), block):
        deep = min(block, depth - k)
        pack_transposed(scratch, advance(a, k), a_row, deep, rows)
        for o in range(0, columns, TRANSPOSED_ROWS):
            high = min(TRANSPOSED_ROWS, columns - o)
            b_here, row = advance(b, o * b_row + k), b_row
            if high < TRANSPOSED_ROWS:
                scale_rows(spare, copied_row(deep), b_here, b_row, high, deep, np.float32(1))
                b_here, row = spare, copied_row(deep)
            for i in range(0, rows, TILE_COLUMNS):
                here = advance(c, i * c_row + o)
                tile_transposed(
                    here,
                    c_row,
                    b_here,
                    row,
                    1,
                    advance(scratch, i * deep),
                    TILE_COLUMNS,
                    deep,
                    high,
                    rows - i,
                    advance_optional(addend, i * addend_row + o) if k == 0 else here,
                    addend_row if k == 0 else c_row,
                    advance_optional(bias, o) if k == 0 else null(),
                )


@inline
def row_unit(a_transposed):
    """C's rows are divided among threads in units of this many; whole tiles for a transposed A, because of its sums."""
    return TILE_ROWS if a_transposed else ROW_UNIT


@inline
def rows_are_cut(rows, columns, depth, a_transposed, parts):
    """Whether to cut C across its rows, rather than its columns: whichever takes the largest part less time.

    The kernels before and after are cut across rows. If C is cut across columns, each thread packs only its part of B,
    but reads rows of A that other threads have written, and others read its columns of C.
    """
    unit = row_unit(a_transposed)
    tall = (rows + unit - 1) // unit
    wide = (columns + TILE_COLUMNS - 1) // TILE_COLUMNS
    more = PACKING_A if a_transposed else 0
    by_rows = ((tall + parts - 1) // parts * unit + PACKING) * (wide * TILE_COLUMNS + more)
    by_columns = (rows + PACKING) * ((wide + parts - 1) // parts * TILE_COLUMNS + more)
    exchanged = rows * (depth + columns) * (parts - 1) // parts
    return by_rows * depth <= by_columns * depth + EXCHANGED * exchanged


@inline
def rows_are_few(rows, columns, depth, room):
    """Whether rows are so few that packing A is faster than packing a transposed B."""
    if rows <= FEW_ROWS:
        return True
    fits = padded(rows) * even_block(depth, DEPTH) <= room - A_ROOM
    is_full = 2 * (padded(rows) - rows) <= TILE_COLUMNS
    return rows <= 2 * FEW_ROWS and fits and is_full and columns >= FEW_COLUMNS and depth >= FEW_DEPTH


@linked(types.void(P, N, N, P, N, B, P, N, B, N, P, P, P, P, N, N, N))
def product_part(
    c, rows, columns, a, a_row, a_transposed, b, b_row, b_transposed, depth, addend, bias, sums, scratch, room, part,
    parts,
):
    """The share of thread number `part` of `parts` in `product`; scratch has a row for each of them."""
    are_few = b_transposed and not a_transposed and rows_are_few(rows, columns, depth, room)
    by_rows = not are_few and rows_are_cut(rows, columns, depth, a_transposed, parts)
    unit = TRANSPOSED_ROWS if are_few else row_unit(a_transposed) if by_rows else TILE_COLUMNS
    tiles = ((rows if by_rows else columns) + unit - 1) // unit
    start, stop = tiles * part // parts * unit, tiles * (part + 1) // parts * unit
    if by_rows:
        i, high, j, wide = start, min(stop, rows) - start, 0, columns
    else:
        i, high, j, wide = 0, rows, start, min(stop, columns) - start
    if are_few:
        multiply_few_rows(
            advance(c, j), columns, a, a_row, advance(b, j * b_row), b_row, rows, wide, depth,
            advance_optional(addend, j), columns, advance_optional(bias, j), advance(scratch, part * room), room,
        )
        return
    multiply(
        advance(c, i * columns + j),
        columns,
        advance(a, i if a_transposed else i * a_row),
        a_row,
        a_transposed,
        advance(b, j * b_row if b_transposed else j),
        b_row,
        b_transposed,
        high,
        wide,
        depth,
        advance_optional(addend, i * columns + j),
        columns,
        advance_optional(bias, j),
        advance_optional(sums, i) if by_rows or start == 0 else null(),  # not part == 0, which may be empty
        advance(scratch, part * room),
        room,
    )


@kernel(parallel=True, calls=linked)
def product(out, a, b, transpose_a, transpose_b, addend, bias, scratch):
    """out (M, N) = op(a) @ op(b) + addend + bias on all threads.

    addend   (M, N), or (0, 0) for none; may be out itself, to accumulate
    bias     (N,), or (0,) for none
    """
    rows, columns = out.shape
    depth = a.shape[0] if transpose_a else a.shape[1]
    work = rows * columns * depth
    threads, room = scratch.shape
    parts = 1 if work < SERIAL_WORK else threads
    c, pa, pb, extra, offset = pointer(out), pointer(a), pointer(b), optional(addend), optional(bias)
    spare = pointer(scratch)
    if parts == 1:
        product_part(
            c, rows, columns, pa, a.shape[1], transpose_a, pb, b.shape[1], transpose_b, depth, extra, offset, null(),
            spare, room, 0, 1,
        )
        return
    for part in prange(parts):
        product_part(
            c, rows, columns, pa, a.shape[1], transpose_a, pb, b.shape[1], transpose_b, depth, extra, offset, null(),
            spare, room, part, parts,
        )


@prepared
def matmul(out, a, b, transpose_a, transpose_b, accumulate, scratch):
    """out (M, N) = op(a) @ op(b), added to out if accumulate; op is the transpose where transpose_a or _b says so.

    a  (M, K), or (K, M) if transpose_a       b  (K, N), or (N, K) if transpose_b
    scratch  from matmul_scratch()
    """
    return product, (out, a, b, transpose_a, transpose_b, out if accumulate else NO_MATRIX, NO_ROW, scratch)
