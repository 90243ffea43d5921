"""Root mean square normalisation over the last axis (Zhang, Sennrich 2019, arXiv:1910.07467).

    norm = x * rstd        rstd = 1 / sqrt(mean(x^2) + eps), mean over C
    out  = norm * weight
    with dnorm = dout * weight:
    dx   = rstd * (dnorm - norm * mean(dnorm * norm)) + dresidual
    dweight += sum over rows of dout * norm
"""

import numpy as np


def rms_norm_forward(out, rstd, x, weight, eps):
    """Scale each row of x to root mean square one.

    out     (N, C)  written
    rstd    (N,)    written; keep for backward
    x       (N, C)
    weight  (C,)
    eps     scalar > 0
    """
    rstd[...] = 1 / np.sqrt(np.square(x).mean(axis=1) + eps)
    out[...] = x * rstd[:, None] * weight


def rms_norm_backward(dx, dweight, dout, x, weight, rstd, dresidual, partials):
    """Gradients of rms_norm_forward.

    dx         (N, C)  overwritten with dresidual + gradient
    dweight    (C,)    added to
    dout, x    (N, C)
    weight     (C,)
    rstd       (N,)
    dresidual  (N, C) gradient that reaches x by another path, or empty for none
    """
    norm = x * rstd[:, None]
    dnorm = dout * weight
    gradient = rstd[:, None] * (dnorm - norm * (dnorm * norm).mean(axis=1, keepdims=True))
    if dresidual.size:
        gradient += dresidual
    dweight += (dout * norm).sum(axis=0)
    dx[...] = gradient
