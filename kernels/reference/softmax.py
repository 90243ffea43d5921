"""Softmax over the last axis (Bridle 1990, doi:10.1007/978-3-642-76153-9_28).

    out = exp(x - max(x)) / sum(exp(x - max(x)))
    dx  = out * (dout - sum(dout * out))
"""

import numpy as np


def softmax_forward(out, x):
    """Turn each row of x (N, C) into probabilities; out (N, C) is written."""
    exponential = np.exp(x - x.max(axis=1, keepdims=True))
    out[...] = exponential / exponential.sum(axis=1, keepdims=True)


def softmax_backward(dx, dout, out):
    """Gradient of softmax_forward; dx (N, C) is overwritten, dout and out are (N, C)."""
    dx[...] = out * (dout - (dout * out).sum(axis=1, keepdims=True))
