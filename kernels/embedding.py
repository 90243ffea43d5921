"""Table lookup: tokens and learned (or fixed) positions.

    out = weight[ids]        dweight[ids] += dout, where repeated ids add up

Backward is a scatter: several rows may add to the same row of dweight. Each task has some columns of all rows, so no
two write to the same place, and every sum has a fixed order.
"""

from numba import types

from .jit import Linked, chunk_count, kernel, prange
from .simd import FLOATS, INDICES, advance, pointer

COLUMNS = 16  # of a task in backward

linked = Linked()
P, N = FLOATS, types.int64


@linked(types.void(P, INDICES, P, types.boolean, N, N, N))
def embedding_rows(out, ids, weight, accumulate, start, stop, width):
    """embedding_forward for rows start .. stop - 1; arrays are addresses."""
    for n in range(start, stop):
        to, row = advance(out, n * width), advance(weight, ids[n] * width)
        if accumulate:
            for c in range(width):
                to[c] += row[c]
        else:
            for c in range(width):
                to[c] = row[c]


@kernel(parallel=True, calls=linked)
def embedding_forward(out, ids, weight, accumulate):
    """out (N, C) = weight (V, C) at rows ids (N,); if accumulate, out += that."""
    rows, width = out.shape
    chunks = chunk_count(out.size)
    if chunks == 1:
        embedding_rows(pointer(out), pointer(ids), pointer(weight), accumulate, 0, rows, width)
        return
    for chunk in prange(chunks):
        start, stop = rows * chunk // chunks, rows * (chunk + 1) // chunks
        embedding_rows(pointer(out), pointer(ids), pointer(weight), accumulate, start, stop, width)


@linked(types.void(P, P, INDICES, N, N, N, N))
def embedding_backward_columns(dweight, dout, ids, start, stop, rows, width):
    """embedding_backward for columns start .. stop - 1; arrays are addresses."""
    for n in range(rows):
        to, source = advance(dweight, ids[n] * width + start), advance(dout, n * width + start)
        for c in range(stop - start):
            to[c] += source[c]


@kernel(parallel=True, calls=linked)
def embedding_backward(dweight, dout, ids):
    """dweight (V, C) at row ids[n] += dout[n], for each row n of dout (N, C)."""
    rows, width = dout.shape
    if chunk_count(dout.size) == 1:
        embedding_backward_columns(pointer(dweight), pointer(dout), pointer(ids), 0, width, rows, width)
        return
    for chunk in prange((width + COLUMNS - 1) // COLUMNS):
        start, stop = chunk * COLUMNS, min(width, (chunk + 1) * COLUMNS)
        embedding_backward_columns(pointer(dweight), pointer(dout), pointer(ids), start, stop, rows, width)
