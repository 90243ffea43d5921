"""Operations on the flat gradient: its global norm, scaling to clip it (Pascanu et al. 2012, arXiv:1211.5063), zeroing.

    norm = sqrt(sum x^2)          x *= max_norm / norm where norm > max_norm
"""

import numpy as np

from .claim import claim
from .jit import chunk_count, inline, kernel, piece, prange
from .simd import pointer

LEAST = 1e-30  # below this sum, many squares may have underflowed in float32


@inline
def _squares(x, chunk, chunks):
    total = np.float64(0)
    mine = piece(x, chunk, chunks)
    # Sums of 1024 are float32, for full SIMD width. Their sum is float64 on purpose: it may have millions of terms.
    for start in range(0, mine.shape[0], 1024):
        block = mine[start : start + 1024]
        part = np.float32(0)
        for i in range(block.shape[0]):
            part += block[i] * block[i]
        total += np.float64(part)
    return total


@inline
def _exact_squares(x):
    total = np.float64(0)
    for i in range(x.shape[0]):
        total += np.float64(x[i]) * np.float64(x[i])
    return total


@kernel(parallel=True)
def squared_norm(x, partials):
    """Returns the sum of squares of x (P,) as a float64. partials: (MAX_CHUNKS,) float64 scratch.

    If squares may have overflowed or underflowed in float32, they are summed again in float64.
    """
    chunks = chunk_count(x.shape[0])
    total = np.float64(0)
    if chunks == 1:
        total = _squares(x, 0, 1)
    else:
        for chunk in prange(chunks):
            partials[chunk] = _squares(x, chunk, chunks)
        for chunk in range(chunks):
            total += partials[chunk]
    if LEAST < total < np.inf:
        return total
    return _exact_squares(x)


@inline
def _scale(x, factor, chunk, chunks):
    mine = piece(x, chunk, chunks)
    for i in range(mine.shape[0]):
        mine[i] *= np.float32(factor)


@kernel(parallel=True)
def scale(x, factor):
    """x (P,) *= factor, in place."""
    chunks = chunk_count(x.shape[0])
    if chunks == 1:
        _scale(x, factor, 0, 1)
        return
    for chunk in prange(chunks):
        _scale(x, factor, chunk, chunks)


@inline
def _zero(x, chunk, chunks):
    mine = piece(x, chunk, chunks)
    claim(pointer(mine), mine.shape[0])
    for i in range(mine.shape[0]):
        mine[i] = np.float32(0)


@kernel(parallel=True)
def zero(x):
    """x (P,) = 0."""
    chunks = chunk_count(x.shape[0])
    if chunks == 1:
        _zero(x, 0, 1)
        return
    for chunk in prange(chunks):
        _zero(x, chunk, chunks)
