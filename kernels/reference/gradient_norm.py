"""Norm of the flat gradient, for clipping (Pascanu et al. 2012, arXiv:1211.5063).

    squared_norm = sum(x^2)        scale: x *= factor        zero: x = 0
"""

import numpy as np


def squared_norm(x, partials):
    """Sum of the squares of x (P,), as float64: in float32 a few million squares lose their last digits."""
    return np.square(x, dtype=np.float64).sum()


def scale(x, factor):
    """Multiply x (P,) in place."""
    x *= factor


def zero(x):
    """Set x (P,) to 0."""
    x[...] = 0
