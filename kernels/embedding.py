"""Table lookup: tokens and learned (or fixed) positions.

    out = weight[ids]        dweight[ids] += dout, repeats adding up

Backward is a scatter: two rows may add to one row of dweight. Threads share the columns, not the rows, so
none writes where another does and every sum has one order.
"""

from .jit import chunk_count, inline, kernel, prange

COLUMNS = 16


@inline
def _look_up(out, ids, weight, accumulate, start, stop):
    for n in range(start, stop):
        row = ids[n]
        if accumulate:
            for c in range(weight.shape[1]):
                out[n, c] += weight[row, c]
        else:
            for c in range(weight.shape[1]):
                out[n, c] = weight[row, c]


@kernel(parallel=True)
def embedding_forward(out, ids, weight, accumulate):
    """out (N, C) = weight (V, C) at rows ids (N,), or out += that."""
    rows = ids.shape[0]
    chunks = chunk_count(out.size)
    if chunks == 1:
        _look_up(out, ids, weight, accumulate, 0, rows)
        return
    for chunk in prange(chunks):
        _look_up(out, ids, weight, accumulate, rows * chunk // chunks, rows * (chunk + 1) // chunks)


@inline
def _scatter(dweight, dout, ids, start, stop):
    for n in range(ids.shape[0]):
        to, source = dweight[ids[n], start:stop], dout[n, start:stop]
        for c in range(to.shape[0]):
            to[c] += source[c]


@kernel(parallel=True)
def embedding_backward(dweight, dout, ids):
    """dweight (V, C) is added to: row ids[n] gets dout[n]."""
    width = dweight.shape[1]
    if chunk_count(dout.size) == 1:
        _scatter(dweight, dout, ids, 0, width)
        return
    for chunk in prange((width + COLUMNS - 1) // COLUMNS):
        _scatter(dweight, dout, ids, chunk * COLUMNS, min(width, (chunk + 1) * COLUMNS))
