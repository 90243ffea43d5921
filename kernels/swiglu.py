"""The gated unit in Llama's feed-forward layers (Shazeer 2020, arXiv:2002.05202).

    out = silu(gate) * up          silu(g) = g s, s = 1 / (1 + exp(-g))
    dgate = dout * up * s (1 + g (1 - s))          dup = dout * silu(gate)

gate and up come from one matrix product and are side by side: gate_up (N, 2F), gate first.
"""

import numpy as np

from .elementary import sigmoid
from .jit import chunk_count, inline, kernel, prange

F = np.float32


# Ordered: a huge up is multiplied last, when a gate far below zero has made the product 0. In another order it might
# overflow before, and infinity * 0 is NaN.
@inline(ordered=True)
def _forward_rows(out, gate_up, start, stop):
    hidden = out.shape[1]
    for n in range(start, stop):
        gates, ups = gate_up[n, :hidden], gate_up[n, hidden:]
        for f in range(hidden):
            out[n, f] = gates[f] * sigmoid(gates[f]) * ups[f]


@kernel(parallel=True)
def swiglu_forward(out, gate_up):
    """out (N, F) from gate_up (N, 2F)."""
    rows = out.shape[0]
    chunks = chunk_count(out.size)
    if chunks == 1:
        _forward_rows(out, gate_up, 0, rows)
        return
    for chunk in prange(chunks):
        _forward_rows(out, gate_up, rows * chunk // chunks, rows * (chunk + 1) // chunks)


@inline(ordered=True)
def _backward_rows(dgate_up, dout, gate_up, start, stop):
    hidden = dout.shape[1]
    for n in range(start, stop):
        gates, ups = gate_up[n, :hidden], gate_up[n, hidden:]
        dgates, dups = dgate_up[n, :hidden], dgate_up[n, hidden:]
        for f in range(hidden):
            gate = gates[f]
            s = sigmoid(gate)
            dgates[f] = s * (F(1) + gate * (F(1) - s)) * ups[f] * dout[n, f]
            dups[f] = gate * s * dout[n, f]


@kernel(parallel=True)
def swiglu_backward(dgate_up, dout, gate_up):
    """dgate_up (N, 2F), written, from dout (N, F) and forward's gate_up (N, 2F)."""
    rows = dout.shape[0]
    chunks = chunk_count(gate_up.size)
    if chunks == 1:
        _backward_rows(dgate_up, dout, gate_up, 0, rows)
        return
    for chunk in prange(chunks):
        _backward_rows(dgate_up, dout, gate_up, rows * chunk // chunks, rows * (chunk + 1) // chunks)
