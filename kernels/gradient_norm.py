"""The global norm of all gradients, and scaling to clip it (Pascanu et al. 2012, arXiv:1211.5063).

    norm = sqrt(sum x^2)          x *= max_norm / norm where norm > max_norm
"""

import numpy as np

from .jit import chunk_count, inline, kernel, prange


@inline
def _squares(x, chunk, chunks):
    size = x.shape[0]
    total = np.float64(0)
    # float32 sums of 1024 keep SIMD width; their sum is a float64 on purpose: millions of terms.
    for block in range(size * chunk // chunks, size * (chunk + 1) // chunks, 1024):
        part = np.float32(0)
        for i in range(block, min(block + 1024, size * (chunk + 1) // chunks)):
            part += x[i] * x[i]
        total += np.float64(part)
    return total


@kernel(parallel=True)
def squared_norm(partials, x):
    """The sum of squares of x (P,), a float64. partials: (64,) float64 scratch."""
    chunks = chunk_count(x.shape[0])
    if chunks == 1:
        return _squares(x, 0, 1)
    for chunk in prange(chunks):
        partials[chunk] = _squares(x, chunk, chunks)
    total = np.float64(0)
    for chunk in range(chunks):
        total += partials[chunk]
    return total


@inline
def _scale(x, factor, chunk, chunks):
    size = x.shape[0]
    for i in range(size * chunk // chunks, size * (chunk + 1) // chunks):
        x[i] *= np.float32(factor)


@kernel(parallel=True)
def scale(x, factor):
    """x (P,) *= factor, in place."""
    chunks = chunk_count(x.shape[0])
    if chunks == 1:
        _scale(x, factor, 0, 1)
        return
    for chunk in prange(chunks):
        _scale(x, factor, chunk, chunks)
