"""Residual connection (He et al. 2015, arXiv:1512.03385).

    out = a + b        da = db = dout, so it needs no backward
"""

import numpy as np


def add(out, a, b):
    """Add two arrays of one shape; out (N, C) is written."""
    np.add(a, b, out=out)
