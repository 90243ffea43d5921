"""Softmax over the last axis.

    out = exp(x - max x) / sum exp(x - max x)          dx = out * (dout - sum(dout * out))

This is here to be read, and for your own layers: attention and the loss compute softmax within their own loops.
"""

import numpy as np

from .elementary import exp
from .jit import chunk_count, inline, kernel, prange
from .simd import larger


@inline
def _forward_rows(out, x, start, stop):
    for n in range(start, stop):
        top = x[n, 0]
        for c in range(x.shape[1]):
            top = larger(top, x[n, c])
        total = np.float32(0)
        for c in range(x.shape[1]):
            out[n, c] = exp(x[n, c] - top)
            total += out[n, c]
        scale = np.float32(1) / total
        for c in range(x.shape[1]):
            out[n, c] *= scale


@kernel(parallel=True)
def softmax_forward(out, x):
    """out (N, C): each row of x (N, C) as probabilities; out may be x itself."""
    rows = x.shape[0]
    chunks = chunk_count(x.size)
    if chunks == 1:
        _forward_rows(out, x, 0, rows)
        return
    for chunk in prange(chunks):
        _forward_rows(out, x, rows * chunk // chunks, rows * (chunk + 1) // chunks)


@inline
def _backward_rows(dx, dout, out, start, stop):
    for n in range(start, stop):
        dot = np.float32(0)
        for c in range(out.shape[1]):
            dot += dout[n, c] * out[n, c]
        for c in range(out.shape[1]):
            dx[n, c] = out[n, c] * (dout[n, c] - dot)


@kernel(parallel=True)
def softmax_backward(dx, dout, out):
    """dx (N, C), written, from dout (N, C) and forward's out (N, C)."""
    rows = out.shape[0]
    chunks = chunk_count(out.size)
    if chunks == 1:
        _backward_rows(dx, dout, out, 0, rows)
        return
    for chunk in prange(chunks):
        _backward_rows(dx, dout, out, rows * chunk // chunks, rows * (chunk + 1) // chunks)
