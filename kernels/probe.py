"""Measurements of the machine's limits, so that a kernel's speed can be given as a share of them.

    peak       independent multiply-adds in registers: 2 * LANES * PROBE_SUMS floating-point operations a round
    read       one pass over a large array: the bound of one-token decoding
    update     a = a * factor + b over large arrays: two read, one written, as in an optimizer's pass
"""

import numpy as np

from .jit import inline, kernel, piece, prange
from .llvm import LANES
from .simd import PROBE_SUMS, advance, multiply_add_rounds, pointer

FLOPS_A_ROUND = 2 * LANES * PROBE_SUMS


@kernel(parallel=True)
def peak(out, rounds):
    """Each thread does `rounds` rounds of multiply-adds in registers; out (threads, LANES) is written."""
    for part in prange(out.shape[0]):
        multiply_add_rounds(advance(pointer(out), part * out.shape[1]), rounds)


@inline
def _sum(x, part, parts):
    mine = piece(x, part, parts)
    total = np.float32(0)
    for i in range(mine.shape[0]):
        total += mine[i]
    return total


@kernel(parallel=True)
def read(out, x):
    """out (threads,) = sums of equal parts of x (P,)."""
    parts = out.shape[0]
    for part in prange(parts):
        out[part] = _sum(x, part, parts)


@inline
def _update(a, b, factor, part, parts):
    to, source = piece(a, part, parts), piece(b, part, parts)
    for i in range(to.shape[0]):
        to[i] = to[i] * factor + source[i]


@kernel(parallel=True)
def update(a, b, factor, parts):
    """a (P,) = a * factor + b (P,), cut into `parts` equal parts, which threads share."""
    rate = np.float32(factor)
    for part in prange(parts):
        _update(a, b, rate, part, parts)
