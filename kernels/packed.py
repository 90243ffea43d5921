"""Linear maps whose weights stay in a file's format (blocks.py): a few are unpacked at a time, never the whole matrix.

    out = x @ weight.T + bias + residual        dx = dout @ weight + residual

Up to three matrices with the same input (query, key and value; gate and up), each of its own kind, make one map, so
that one parallel region is enough. There are two ways to compute it:

    by rows      dot products, for few rows, as in decoding: each row of weights is multiplied with several rows of x as
                 it arrives from memory, whose bandwidth is the limit. A row's results don't depend on the other rows.
                 Where the CPU can, weights of a few bits are multiplied with x rounded to 16 bits (rounded.py)
    by products  for many rows: strips of weights are unpacked into the cache and go through the matrix product
"""

from functools import cache

import numpy as np

from .block_rows import call_dot, call_round, call_unpack, dot_of, rounding_of, unpack_of
from .blocks import LAYOUTS
from .jit import chunk_count, inline, kernel, prange, prepared
from .matmul import linked, multiply, panel_floats, thread_rooms
from .simd import advance, advance_optional, as_bytes, null, optional, pointer
from .tile import TILE_COLUMNS

CHUNK = 32  # outputs in a parallel task
SERIAL_PRODUCTS = 65536  # below this many multiply-adds, waking a second thread costs more than it saves
STRIP = 131072  # floats of an unpacked strip: half a megabyte, which fits L2 caches
# Columns of a strip in backward. Each strip adds to as many columns of dx: the narrower strips are, the more rows of
# weights they have, and the less often dx is read and written.
STRIP_COLUMNS = 512


def packed_scratch(columns, rows):
    """Scratch for maps of up to `columns` inputs: a row for each thread, with room for a strip and panels.

    rows  the most rows that are mapped by rows: rounded, they take at most the 4 * rows * columns bytes counted here
    """
    return thread_rooms(max(_strip_floats.py_func(columns) + panel_floats(), rows * columns))


@inline
def _strip_floats(columns):
    return max(STRIP, TILE_COLUMNS * columns)


@inline
def _add_row(out, bias, residual, start, stop):
    for r in range(out.shape[0]):
        if bias.size:
            for o in range(start, stop):
                out[r, o] += bias[o]
        if residual.size:
            for o in range(start, stop):
                out[r, o] += residual[r, o]


@inline
def _dot_piece(out, x, rounded, weight, dot, first, start, stop):
    """Those of outputs start .. stop - 1 that belong to this matrix, whose first output is `first`."""
    low, high = max(start - first, 0), min(stop - first, weight.shape[0])
    if low < high:
        size, columns = weight.shape[1], x.shape[1]
        call_dot(
            dot, advance(pointer(out), first + low), out.shape[1], pointer(x), rounded,
            advance(pointer(weight), low * size), size, high - low, columns, x.shape[0],
        )


@inline
def _dot_outputs(out, x, rounded, weights, dots, bias, residual, start, stop):
    first = 0
    for i in range(3):
        _dot_piece(out, x, rounded, weights[i], dots[i], first, start, stop)
        first += weights[i].shape[0]
    _add_row(out, bias, residual, start, stop)


@kernel(parallel=True)
def packed_rows(out, x, weights, functions, rounding, bias, residual, scratch):
    """packed_rows_forward, with the kinds' functions (dot_of) and rounding_of, as addresses, in place of the kinds."""
    outputs = out.shape[1]
    rounded = as_bytes(pointer(scratch))
    if rounding:
        call_round(rounding, rounded, pointer(x), x.shape[1], x.shape[0])
    if outputs * x.size < SERIAL_PRODUCTS:
        _dot_outputs(out, x, rounded, weights, functions, bias, residual, 0, outputs)
        return
    for chunk in prange((outputs + CHUNK - 1) // CHUNK):
        start = np.int64(chunk) * CHUNK
        _dot_outputs(out, x, rounded, weights, functions, bias, residual, start, min(outputs, start + CHUNK))


@prepared
def packed_rows_forward(out, x, weights, kinds, bias, residual, scratch):
    """An affine map of each row, by dot products: for few rows.

    out      (N, O)  written
    x        (N, I)
    weights  three matrices (O_i, bytes of a row) uint8, O_0 + O_1 + O_2 = O; an absent one is empty
    kinds    the number of each matrix's kind (blocks.py); 0 for an absent one
    bias     (O,)    or (0,) for none
    residual (N, O)  added to the result; (0, 0) for none
    scratch  from packed_scratch(I or more, N or more)
    """
    return packed_rows, (out, x, weights, *_functions(kinds), bias, residual, scratch)


@cache
def _functions(kinds):
    return tuple(map(dot_of, kinds)), rounding_of(kinds)


@inline
def _share(rows, part, parts):
    """Start and stop of the share of a matrix's rows that thread number `part` of `parts` takes: whole tiles."""
    tiles = (rows + TILE_COLUMNS - 1) // TILE_COLUMNS
    return min(rows, tiles * part // parts * TILE_COLUMNS), min(rows, tiles * (part + 1) // parts * TILE_COLUMNS)


@inline
def _strip_rows(columns):
    """Rows of weights in a strip of `columns` columns: whole tiles."""
    return max(TILE_COLUMNS, STRIP // columns // TILE_COLUMNS * TILE_COLUMNS)


@inline
def _multiply_part(out, x, weights, functions, bias, residual, scratch, part, parts):
    rows, columns, outputs = x.shape[0], x.shape[1], out.shape[1]
    strip, panels, room = _rooms(scratch, columns, part)
    first = 0
    for i in range(3):
        weight = weights[i]
        start, stop = _share(weight.shape[0], part, parts)
        for o in range(start, stop, _strip_rows(columns)):
            count = min(_strip_rows(columns), stop - o)
            size = weight.shape[1]
            call_unpack(functions[i], strip, columns, advance(pointer(weight), o * size), size, count, columns)
            multiply(
                advance(pointer(out), first + o), outputs, pointer(x), columns, False, strip, columns, True, rows,
                count, columns, advance_optional(optional(residual), first + o), outputs,
                advance_optional(optional(bias), first + o), null(), panels, room,
            )
        first += weight.shape[0]


@inline
def _rooms(scratch, columns, part):
    """Addresses of a thread's strip and of its panels, and the floats of room for the panels."""
    here = advance(pointer(scratch), part * scratch.shape[1])
    strip = _strip_floats(columns)
    return here, advance(here, strip), scratch.shape[1] - strip


@kernel(parallel=True, calls=linked)
def packed_products(out, x, weights, functions, bias, residual, scratch):
    """packed_forward, with the addresses of the kinds' functions (unpack_of) in place of the kinds."""
    parts = scratch.shape[0]
    for part in prange(parts):
        _multiply_part(out, x, weights, functions, bias, residual, scratch, part, parts)


@prepared
def packed_forward(out, x, weights, kinds, bias, residual, scratch):
    """An affine map of each row, by the matrix product: arguments as in packed_rows_forward."""
    return packed_products, (out, x, weights, _unpackers(kinds), bias, residual, scratch)


@cache
def _unpackers(kinds):
    return tuple(map(unpack_of, kinds))


@cache
def _unit(kinds):
    """Backward cuts dx's columns at multiples of this: whole blocks of each kind, and at least a tile's columns."""
    return max(TILE_COLUMNS, *(LAYOUTS[kind].weights for kind in kinds))


@inline
def _backward_piece(dx, dout, weights, functions, residual, scratch, part, start, stop, left, right):
    """Rows start .. stop - 1 and columns left .. right - 1 of dx: at most STRIP_COLUMNS, from a block's first on."""
    columns, outputs = dx.shape[1], dout.shape[1]
    strip, panels, room = _rooms(scratch, columns, part)
    target = advance(pointer(dx), start * columns + left)
    addend = advance_optional(optional(residual), start * columns + left)
    first, wide, deep = 0, right - left, STRIP // STRIP_COLUMNS
    for i in range(3):
        weight = weights[i]
        for o in range(0, weight.shape[0], deep):
            count = min(deep, weight.shape[0] - o)
            size = weight.shape[1]
            here = advance(pointer(weight), o * size + size * left // columns)
            call_unpack(functions[i], strip, wide, here, size, count, wide)
            multiply(
                target, columns, advance(pointer(dout), start * outputs + first + o), outputs, False, strip, wide,
                False, stop - start, wide, count, addend, columns, null(), null(), panels, room,
            )
            addend = target
        first += weight.shape[0]


@kernel(parallel=True, calls=linked)
def packed_products_backward(dx, dout, weights, functions, unit, residual, scratch):
    """packed_backward, with the addresses of the kinds' functions (unpack_of) and _unit of the kinds in their place.

    dx is cut across columns, so that each weight is unpacked by one thread only; where there are too few blocks for
    that, across rows as well.
    """
    (rows, columns), threads = dx.shape, scratch.shape[0]
    units = (columns + unit - 1) // unit
    wide = threads
    if units < 8 * threads:  # few are divided into equal parts only: as many as the greatest common divisor
        other = units
        while other:
            wide, other = other, wide % other
    high = max(1, min(rows, threads // wide))
    for part in prange(wide * high):
        number = np.int64(part)
        i, j = number // wide, number % wide
        start, stop, left, right = rows * i // high, rows * (i + 1) // high, units * j // wide, units * (j + 1) // wide
        pieces = ((right - left) * unit + STRIP_COLUMNS - 1) // STRIP_COLUMNS
        for n in range(pieces):
            begin, end = left + (right - left) * n // pieces, left + (right - left) * (n + 1) // pieces
            _backward_piece(
                dx, dout, weights, functions, residual, scratch, number, start, stop, begin * unit,
                min(columns, end * unit),
            )


@prepared
def packed_backward(dx, dout, weights, kinds, residual, scratch):
    """The gradient of packed_forward with respect to x; packed weights have none.

    dx       (N, I)  written; may be residual itself
    dout     (N, O)
    weights, kinds, scratch  as in packed_forward
    residual (N, I)  added to dx; (0, 0) for none
    """
    return packed_products_backward, (dx, dout, weights, _unpackers(kinds), _unit(kinds), residual, scratch)


@inline
def _look_up_rows(out, ids, weight, unpack, start, stop):
    columns, size = out.shape[1], weight.shape[1]
    for n in range(start, stop):
        call_unpack(
            unpack, advance(pointer(out), n * columns), columns,
            advance(pointer(weight), np.int64(ids[n]) * size), size, 1, columns,
        )


@kernel(parallel=True)
def packed_embedding(out, ids, weight, unpack):
    """packed_embedding_forward, with the address of the kind's function (unpack_of) in place of the kind."""
    rows, chunks = out.shape[0], chunk_count(out.size)
    if chunks == 1:
        _look_up_rows(out, ids, weight, unpack, 0, rows)
        return
    for number in prange(chunks):
        chunk = np.int64(number)
        _look_up_rows(out, ids, weight, unpack, rows * chunk // chunks, rows * (chunk + 1) // chunks)


@prepared
def packed_embedding_forward(out, ids, weight, kind):
    """out (N, C) = rows ids (N,) of weight (V, bytes of a row), uint8 of the given kind, as float32."""
    return packed_embedding, (out, ids, weight, unpack_of(kind))
