"""Gated linear unit with SiLU (Shazeer 2020, arXiv:2002.05202).

    out   = gate * s * up        s = 1 / (1 + exp(-gate)), gate_up = [gate | up]
    dgate = dout * up * s * (1 + gate * (1 - s))
    dup   = dout * gate * s
"""

import numpy as np


def _sigmoid(x):
    """1 / (1 + exp(-x)), in a form that neither overflows nor, for x << 0, loses digits."""
    return np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x)))


def swiglu_forward(out, gate_up):
    """Gate the second half of the columns with the first.

    out      (N, F)   written
    gate_up  (N, 2F)  gate in the first F columns, up in the others
    """
    gate, up = np.split(gate_up, 2, axis=1)
    out[...] = gate * _sigmoid(gate) * up


def swiglu_backward(dgate_up, dout, gate_up):
    """Gradient of swiglu_forward.

    dgate_up  (N, 2F)  overwritten
    dout      (N, F)
    gate_up   (N, 2F)
    """
    gate, up = np.split(gate_up, 2, axis=1)
    sigmoid = _sigmoid(gate)
    dgate = sigmoid * (1 + gate * (1 - sigmoid)) * up * dout
    dup = gate * sigmoid * dout
    dgate_up[...] = np.concatenate([dgate, dup], axis=1)
