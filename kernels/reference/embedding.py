"""Table lookup (Bengio et al. 2003, JMLR 3:1137).

    out[n] = weight[ids[n]] [+ out[n]]
    dweight[ids[n]] += dout[n]        repeated ids add up
"""

import numpy as np


def embedding_forward(out, ids, weight, accumulate):
    """Copy a row of the table for each id.

    out     (N, C)  written, or added to if accumulate
    ids     (N,) int32 in [0, V)
    weight  (V, C)
    """
    out[...] = out + weight[ids] if accumulate else weight[ids]


def embedding_backward(dweight, dout, ids):
    """Gradient of embedding_forward.

    dweight  (V, C)  added to
    dout     (N, C)
    ids      (N,) int32 in [0, V)
    """
    np.add.at(dweight, ids, dout)
