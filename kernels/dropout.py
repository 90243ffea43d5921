"""Dropout from a counter-based generator (Srivastava et al. 2014; Salmon et al. 2011; Steele et al. 2014).

Each element's random number is a function of the seed and of the element's place alone: nothing is stored for backward,
and threads need no streams of their own. Seed and row come in an array, so that the call's arguments are the same in
each step (replay.py).

    z = seed + (offset + row * C + i + 1) * GOLDEN mod 2^64, then SplitMix64's mixing; u = the top 24 bits / 2^24;
    i counts the elements of x (N, C) from 0, row after row
    out = x / (1 - p) where u >= p, else 0          dx = the same applied to dout
"""

import numpy as np

from .jit import bounds, chunk_count, inline, kernel, piece, prange, prepared

U = np.uint64
GOLDEN = U(0x9E3779B97F4A7C15)
MIX_1, MIX_2 = U(0xBF58476D1CE4E5B9), U(0x94D049BB133111EB)


@inline
def _uniform(seed, counter):
    z = seed + (counter + U(1)) * GOLDEN
    z = (z ^ (z >> U(30))) * MIX_1
    z = (z ^ (z >> U(27))) * MIX_2
    z = z ^ (z >> U(31))
    return np.float32(np.int32(z >> U(40))) * np.float32(2.0**-24)


@inline
def _drop(out, x, probability, draw, offset, chunk, chunks):
    flat_out, flat_x = piece(out.reshape(-1), chunk, chunks), piece(x.reshape(-1), chunk, chunks)
    seed, first = draw[0], U(offset) + draw[1] * U(x.shape[1]) + U(bounds(x.size, chunk, chunks)[0])
    scale = np.float32(1.0 / (1.0 - probability))
    threshold = np.float32(probability)
    for i in range(flat_x.shape[0]):
        is_kept = _uniform(seed, first + U(i)) >= threshold
        flat_out[i] = flat_x[i] * scale if is_kept else np.float32(0)


@kernel(parallel=True)
def dropout_forward(out, x, probability, draw, offset):
    """out (N, C): each element of x zeroed with probability, else scaled by 1 / (1 - probability).

    draw    (2,) uint64: the seed, and the number of x's first row where x is part of a larger array, else 0
    offset  integer >= 0: where the (whole) array begins in the seed's sequence of random numbers. Arrays of R rows
            whose offsets are R * C apart have different numbers
    """
    chunks = chunk_count(x.size)
    if chunks == 1:
        _drop(out, x, probability, draw, offset, 0, 1)
        return
    for chunk in prange(chunks):
        _drop(out, x, probability, draw, offset, chunk, chunks)


@prepared
def dropout_backward(dx, dout, probability, draw, offset):
    """dx (N, C) from dout, with the probability, draw and offset of forward; dx may be dout itself."""
    return dropout_forward, (dx, dout, probability, draw, offset)
