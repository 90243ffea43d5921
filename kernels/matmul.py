"""The matrix product C = A B, after Goto and van de Geijn 2008 (Anatomy of High-Performance Matrix Multiplication).

Three ideas, from the inside out:

1. The register tile (`simd.tile`). A TILE_ROWS x TILE_COLUMNS piece of C stays in registers while k runs; each
   step loads one row of B and multiplies it by TILE_ROWS scalars of A. So a float of B, once loaded, is used
   TILE_ROWS times, and the adders never wait for memory.
2. Packing. The tile wants B's rows one after another and the same whatever the layout in memory. So a block of
   B is first copied into panels, each TILE_COLUMNS wide:

       B block (depth, columns)  ->  panel 0: k=0 [c0 .. c31] k=1 [c0 .. c31] ...   panel 1: k=0 [c32 .. c63] ...

   Beyond the matrix the panels hold zeros, so edges need no code of their own. A transposed B is transposed
   on the way. A is read where it stands, in rows; only a transposed A, and the last few rows, are packed.
3. Blocking. A block of B is DEPTH x COLUMNS, so that it stays in the second-level cache while all rows of A
   pass by, and a tile's piece of A, TILE_ROWS x DEPTH, stays in the first.

Threads: C is cut into rectangles, one for each thread. Every element of C is summed in the same order
whatever the rectangle, so the bits do not depend on the number of threads.
"""

import numpy as np
from numba import config, types

from .jit import kernel, linked, prange
from .simd import (
    FLOATS,
    LANES,
    TILE_COLUMNS,
    TILE_ROWS,
    advance,
    advance_optional,
    copy,
    null,
    pointer,
    tile,
    transpose,
)

P, N, B = FLOATS, types.int64, types.boolean

DEPTH = 256
COLUMNS = 384
ROWS = 128 // TILE_ROWS * TILE_ROWS  # whole panels: a packed block of A must not run over its room
PANELS = DEPTH * (COLUMNS + TILE_COLUMNS)
SCRATCH = PANELS + DEPTH * (ROWS + TILE_ROWS) + 2 * LANES

# Below this many multiply-adds a second thread costs more (3.5 us to wake it) than it takes over.
SERIAL_WORK = 500_000
# C is cut across its columns, so that no two threads pack the same part of B, unless it has this many times more
# tiles of rows than of columns: then packing costs little, and each thread reads its own part of A.
PREFER_COLUMNS = 8

NO_MATRIX = np.empty((0, 0), np.float32)
NO_ROW = np.empty(0, np.float32)


def matmul_scratch():
    """Room for packed panels, a row for each thread, to pass to the products below; readies what they call."""
    linked.compile()
    return np.empty((config.NUMBA_NUM_THREADS, SCRATCH), np.float32)


@linked(types.void(P, P, N, N, N))
def pack_rows(panels, source, row, depth, columns):
    """Pack B[k, j] = source[k * row + j] into panels; floats beyond `columns` are zero."""
    for j in range(0, columns, TILE_COLUMNS):
        to = advance(panels, j * depth)
        within = min(TILE_COLUMNS, columns - j)
        if within == TILE_COLUMNS:
            for k in range(depth):
                for v in range(0, TILE_COLUMNS, LANES):
                    copy(advance(to, k * TILE_COLUMNS + v), advance(source, k * row + j + v))
        else:
            for k in range(depth):
                for v in range(within):
                    to[k * TILE_COLUMNS + v] = source[k * row + j + v]
                for v in range(within, TILE_COLUMNS):
                    to[k * TILE_COLUMNS + v] = np.float32(0)


@linked(types.void(P, P, N, N, N))
def pack_transposed(panels, source, row, depth, columns):
    """Pack B[k, j] = source[j * row + k] into panels; floats beyond `columns` are zero."""
    for j in range(0, columns, TILE_COLUMNS):
        to = advance(panels, j * depth)
        for v in range(0, TILE_COLUMNS, LANES):
            done = 0
            if j + v + LANES <= columns:
                done = depth // LANES * LANES
                for k in range(0, done, LANES):
                    transpose(
                        advance(to, k * TILE_COLUMNS + v), TILE_COLUMNS, advance(source, (j + v) * row + k), row
                    )
            for lane in range(v, v + LANES):
                if j + lane < columns:
                    for k in range(done, depth):
                        to[k * TILE_COLUMNS + lane] = source[(j + lane) * row + k]
                else:
                    for k in range(depth):
                        to[k * TILE_COLUMNS + lane] = np.float32(0)


@linked(types.void(P, P, N, N, N, N))
def pack_a(panels, source, row, step, depth, rows):
    """Pack A[i, k] = source[i * row + k * step] into panels of TILE_ROWS; rows beyond `rows` are zero."""
    for i in range(0, rows, TILE_ROWS):
        to = advance(panels, i * depth)
        within = min(TILE_ROWS, rows - i)
        start = advance(source, i * row)
        if within == TILE_ROWS and row == 1:
            for k in range(depth):
                for r in range(TILE_ROWS):
                    to[k * TILE_ROWS + r] = start[k * step + r]
        else:
            for k in range(depth):
                for r in range(within):
                    to[k * TILE_ROWS + r] = start[r * row + k * step]
                for r in range(within, TILE_ROWS):
                    to[k * TILE_ROWS + r] = np.float32(0)


@linked(types.void(P, N, P, N, N, N, P, N, N, N, P, N, P, P))
def multiply_panels(
    c, c_row, a, a_row, a_step, a_tile, panels, rows, columns, depth, addend, addend_row, bias, spare
):
    """C (rows, columns) = A @ (packed B) + addend + bias, for one block; addresses as in `simd.tile`.

    a_row, a_step  floats from one element of A to the next row's, and to the next k's
    a_tile         floats from one tile of rows to the next: TILE_ROWS * a_row, or TILE_ROWS * depth if packed
    spare          scratch of TILE_ROWS * depth floats, for the last rows
    """
    for i in range(0, rows, TILE_ROWS):
        within = min(TILE_ROWS, rows - i)
        here, row, step = advance(a, i // TILE_ROWS * a_tile), a_row, a_step
        if within < TILE_ROWS:  # the tile reads all its rows: give it zeros for those that are not there
            pack_a(spare, here, a_row, a_step, depth, within)
            here, row, step = spare, 1, TILE_ROWS
        for j in range(0, columns, TILE_COLUMNS):
            tile(
                advance(c, i * c_row + j),
                c_row,
                here,
                row,
                step,
                advance(panels, j * depth),
                depth,
                within,
                columns - j,
                advance_optional(addend, i * addend_row + j),
                addend_row,
                advance_optional(bias, j),
            )


@linked(types.void(P, N, P, N, B, P, N, B, N, N, N, P, N, P, P))
def multiply(
    c, c_row, a, a_row, a_transposed, b, b_row, b_transposed, rows, columns, depth, addend, addend_row, bias, scratch
):
    """C (rows, columns) = op(A) @ op(B) + addend + bias on one thread; all are addresses.

    a_row, b_row  floats from one row in memory to the next
    scratch       SCRATCH floats
    """
    a_panels = advance(scratch, PANELS)
    spare = advance(a_panels, DEPTH * ROWS)
    for j in range(0, columns, COLUMNS):
        width = min(COLUMNS, columns - j)
        for k in range(0, depth, DEPTH):
            deep = min(DEPTH, depth - k)
            if b_transposed:
                pack_transposed(scratch, advance(b, j * b_row + k), b_row, deep, width)
            else:
                pack_rows(scratch, advance(b, k * b_row + j), b_row, deep, width)
            for i in range(0, rows, ROWS):
                high = min(ROWS, rows - i)
                here = advance(c, i * c_row + j)
                if a_transposed:
                    pack_a(a_panels, advance(a, k * a_row + i), 1, a_row, deep, high)
                    a_here, row, step, next_tile = a_panels, 1, TILE_ROWS, TILE_ROWS * deep
                else:
                    a_here, row, step, next_tile = advance(a, i * a_row + k), a_row, 1, TILE_ROWS * a_row
                first = k == 0
                multiply_panels(
                    here,
                    c_row,
                    a_here,
                    row,
                    step,
                    next_tile,
                    scratch,
                    high,
                    width,
                    deep,
                    advance_optional(addend, i * addend_row + j) if first else here,
                    addend_row if first else c_row,
                    advance_optional(bias, j) if first else null(),
                    spare,
                )


@kernel(parallel=True)
def product(out, a, b, transpose_a, transpose_b, addend, bias, scratch):
    """out (M, N) = op(a) @ op(b) + addend + bias on all threads.

    addend   (M, N), or (0, 0) for none; may be out itself, to accumulate
    bias     (N,), or (0,) for none
    """
    rows, columns = out.shape
    depth = a.shape[0] if transpose_a else a.shape[1]
    c, pa, pb, room = pointer(out), pointer(a), pointer(b), pointer(scratch)
    a_row, b_row, size = a.shape[1], b.shape[1], scratch.shape[1]
    extra = pointer(addend) if addend.size else null()
    offset = pointer(bias) if bias.size else null()
    parts = scratch.shape[0]
    if parts == 1 or rows * columns * depth < SERIAL_WORK:
        multiply(
            c, columns, pa, a_row, transpose_a, pb, b_row, transpose_b, rows, columns, depth,
            extra, columns, offset, room,
        )
        return
    # Cut the longer side (in tiles): whoever has all rows packs his part of B alone.
    tall = rows * TILE_COLUMNS > columns * TILE_ROWS * PREFER_COLUMNS
    unit = TILE_ROWS if tall else TILE_COLUMNS
    tiles = ((rows if tall else columns) + unit - 1) // unit
    for part in prange(parts):
        start, stop = tiles * part // parts * unit, tiles * (part + 1) // parts * unit
        if tall:
            i, high, j, wide = start, min(stop, rows) - start, 0, columns
        else:
            i, high, j, wide = 0, rows, start, min(stop, columns) - start
        multiply(
            advance(c, i * columns + j),
            columns,
            advance(pa, i if transpose_a else i * a_row),
            a_row,
            transpose_a,
            advance(pb, j * b_row if transpose_b else j),
            b_row,
            transpose_b,
            high,
            wide,
            depth,
            advance_optional(extra, i * columns + j),
            columns,
            advance_optional(offset, j),
            advance(room, part * size),
        )


def matmul(out, a, b, transpose_a, transpose_b, accumulate, scratch):
    """out (M, N) = op(a) @ op(b), or out += op(a) @ op(b); op transposes if told to.

    a  (M, K), or (K, M) if transpose_a       b  (K, N), or (N, K) if transpose_b
    scratch  from matmul_scratch()
    """
    product(out, a, b, transpose_a, transpose_b, out if accumulate else NO_MATRIX, NO_ROW, scratch)
