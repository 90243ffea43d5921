"""Dropout (Srivastava et al. 2014, JMLR 15:1929) from a counter-based generator.

    out = x / (1 - probability) where u >= probability, else 0        dx from dout likewise
    u   = top 24 bits of SplitMix64 (Steele et al. 2014, doi:10.1145/2660193.2660195) as a fraction,
          element i (row-major) being number offset + row * C + i of the generator's sequence for the seed

Nothing is stored for backward: the counter gives the same u again.
"""

import numpy as np


def _is_kept(shape, probability, draw, offset):
    """Boolean array (shape): True for the elements that stay."""
    (seed, row), count = draw, np.prod(shape, dtype=np.int64)
    z = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(offset) + row * np.uint64(shape[1])
    z = seed + z * np.uint64(0x9E3779B97F4A7C15)  # modulo 2^64, like all that follows
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    u = (z >> np.uint64(40)).astype(np.float64) * 2.0**-24  # float64 for any dtype, so that the mask is the same
    return (u >= probability).reshape(shape)


def dropout_forward(out, x, probability, draw, offset):
    """Zero elements of x at random and scale up the others.

    out          (N, C)  written
    x            (N, C)
    probability  scalar in [0, 1): that of an element to become zero
    draw         (2,) uint64: the seed, and the number of x's first row if x is part of a larger array, else 0
    offset       integer >= 0: where the (larger) array begins in the generator's sequence
    """
    out[...] = x * _is_kept(x.shape, probability, draw, offset) * (1 / (1 - probability))


def dropout_backward(dx, dout, probability, draw, offset):
    """Gradient of dropout_forward; dx (N, C) is overwritten, dout is (N, C)."""
    dx[...] = dout * _is_kept(dout.shape, probability, draw, offset) * (1 / (1 - probability))
