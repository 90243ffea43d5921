"""Cross-entropy of logits against one target token for each row.

    loss = log sum exp(logits) - logits[target]          dlogits = scale * (softmax(logits) - onehot(target))

For the mean loss, scale is 1 / number of targets. The head calls this on a chunk of rows at a time, so the logits of a
whole batch are never in memory, and rows without a target are never computed.
"""

import numpy as np

from .elementary import exp
from .jit import chunk_count, inline, is_same, kernel, prange
from .simd import larger


@inline
def _row_statistics(logits, n, target):
    """The largest logit, the sum of exp(logit - largest), and whether the target's is the first of the largest."""
    top = logits[n, 0]
    for v in range(logits.shape[1]):
        top = larger(top, logits[n, v])
    total = np.float32(0)
    for v in range(logits.shape[1]):
        total += exp(logits[n, v] - top)
    is_first = logits[n, target] == top
    if is_first:
        for v in range(target):
            if logits[n, v] == top:
                is_first = False
    return top, total, is_first


@inline
def _loss(top, total, logit):
    # float64 on purpose: added to a large float32 logit, the logarithm would lose all its digits
    return np.log(total) + (np.float64(top) - np.float64(logit))


@inline
def _forward_rows(losses, correct, logits, targets, start, stop):
    for n in range(start, stop):
        target = targets[n]
        top, total, is_first = _row_statistics(logits, n, target)
        losses[n] = _loss(top, total, logits[n, target])
        correct[n] = np.int32(is_first)


@kernel(parallel=True)
def cross_entropy_forward(losses, correct, logits, targets):
    """The loss of each row.

    losses  (R,)  written
    correct (R,)  int32, written: 1 where the largest logit (the first of equals) is the target's, else 0
    logits  (R, V)
    targets (R,)  int32, each in 0 .. V-1
    """
    rows = logits.shape[0]
    chunks = chunk_count(logits.size)
    if chunks == 1:
        _forward_rows(losses, correct, logits, targets, 0, rows)
        return
    for chunk in prange(chunks):
        _forward_rows(losses, correct, logits, targets, rows * chunk // chunks, rows * (chunk + 1) // chunks)


@inline
def _both_rows(losses, correct, dlogits, logits, targets, scale, start, stop):
    is_in_place = is_same(dlogits, logits)
    for n in range(start, stop):
        target = targets[n]
        top, total, is_first = _row_statistics(logits, n, target)
        losses[n] = _loss(top, total, logits[n, target])
        correct[n] = np.int32(is_first)
        factor = np.float32(scale) / total
        # exp is computed again, so that the first pass, shared with the forward kernel, writes nothing
        if is_in_place:
            for v in range(logits.shape[1]):
                dlogits[n, v] = exp(dlogits[n, v] - top) * factor
        else:
            for v in range(logits.shape[1]):
                dlogits[n, v] = exp(logits[n, v] - top) * factor
        dlogits[n, target] -= np.float32(scale)


@kernel(parallel=True)
def cross_entropy_forward_backward(losses, correct, dlogits, logits, targets, scale):
    """The loss of each row and its gradient. As cross_entropy_forward, and:

    dlogits (R, V)  written; may be logits itself
    scale           factor of each row's gradient
    """
    rows = logits.shape[0]
    chunks = chunk_count(logits.size)
    if chunks == 1:
        _both_rows(losses, correct, dlogits, logits, targets, scale, 0, rows)
        return
    for chunk in prange(chunks):
        start, stop = rows * chunk // chunks, rows * (chunk + 1) // chunks
        _both_rows(losses, correct, dlogits, logits, targets, scale, start, stop)
