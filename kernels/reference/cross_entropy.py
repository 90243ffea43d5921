"""Cross-entropy of softmax(logits) and a target per row (Bridle 1990, doi:10.1007/978-3-642-76153-9_28).

    loss    = log(sum(exp(logits))) - logits[target]
    dlogits = scale * (softmax(logits) - onehot(target))

The maximum is first subtracted from the logits: it cancels in both formulas, and exp can't overflow.
"""

import numpy as np


def cross_entropy_forward(losses, correct, logits, targets):
    """Loss of each row, in nats.

    losses   (R,)        written
    correct  (R,) int32  written: 1 where the largest logit (the first of equals) is the target's
    logits   (R, V)
    targets  (R,) int32 in [0, V)
    """
    rows = np.arange(len(targets))
    shifted = logits - logits.max(axis=1, keepdims=True)
    losses[...] = np.log(np.exp(shifted).sum(axis=1)) - shifted[rows, targets]
    correct[...] = logits.argmax(axis=1) == targets


def cross_entropy_forward_backward(losses, correct, dlogits, logits, targets, scale):
    """cross_entropy_forward, and the gradient of scale * sum(losses).

    losses   (R,)        written
    correct  (R,) int32  written
    dlogits  (R, V)      overwritten; may be logits itself
    logits   (R, V)
    targets  (R,) int32 in [0, V)
    """
    rows = np.arange(len(targets))
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponential = np.exp(shifted)
    total = exponential.sum(axis=1)
    losses[...] = np.log(total) - shifted[rows, targets]
    correct[...] = logits.argmax(axis=1) == targets
    softmax = exponential / total[:, None]
    softmax[rows, targets] -= 1
    dlogits[...] = scale * softmax
