"""Selecting rows: out = x[rows]; its gradient is dx[rows] = dout, zero elsewhere."""

import numpy as np

from .jit import chunk_count, inline, kernel, prange


@inline
def _gather(out, x, rows, start, stop):
    for r in range(start, stop):
        n = rows[r]
        for c in range(x.shape[1]):
            out[r, c] = x[n, c]


@kernel(parallel=True)
def gather_rows(out, x, rows):
    """out (R, C) = x (N, C) at rows (R,)."""
    count = rows.shape[0]
    chunks = chunk_count(out.size)
    if chunks == 1:
        _gather(out, x, rows, 0, count)
        return
    for chunk in prange(chunks):
        _gather(out, x, rows, count * chunk // chunks, count * (chunk + 1) // chunks)


@inline
def _scatter(dx, dout, rows, start, stop):
    """scatter_rows for rows start .. stop - 1 of dx."""
    r = np.searchsorted(rows, start)
    for n in range(start, stop):
        if r < rows.shape[0] and rows[r] == n:
            for c in range(dx.shape[1]):
                dx[n, c] = dout[r, c]
            r += 1
        else:
            for c in range(dx.shape[1]):
                dx[n, c] = np.float32(0)


@kernel(parallel=True)
def scatter_rows(dx, dout, rows):
    """dx (N, C), written: dout (R, C) at rows (R,), zero elsewhere. rows must ascend, without repeats."""
    count = dx.shape[0]
    chunks = chunk_count(dx.size)
    if chunks == 1:
        _scatter(dx, dout, rows, 0, count)
        return
    for chunk in prange(chunks):
        _scatter(dx, dout, rows, count * chunk // chunks, count * (chunk + 1) // chunks)
