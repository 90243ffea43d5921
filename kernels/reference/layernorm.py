"""Layer normalisation over the last axis (Ba et al. 2016, arXiv:1607.06450).

    norm = (x - mean) * rstd        rstd = 1 / sqrt(var + eps), var over C, biased
    out  = norm * weight + bias
    with dnorm = dout * weight, means over C:
    dx   = rstd * (dnorm - mean(dnorm) - norm * mean(dnorm * norm)) + dresidual
    dweight += sum over rows of dout * norm        dbias += sum over rows of dout
"""

import numpy as np


def layernorm_forward(out, mean, rstd, x, weight, bias, eps):
    """Normalise each row of x.

    out         (N, C)  written
    mean, rstd  (N,)    written; keep for backward
    x           (N, C)
    weight      (C,)
    bias        (C,), or empty for none
    eps         scalar > 0
    """
    mean[...] = x.mean(axis=1)
    rstd[...] = 1 / np.sqrt(x.var(axis=1) + eps)
    out[...] = (x - mean[:, None]) * rstd[:, None] * weight
    if bias.size:
        out += bias


def layernorm_backward(dx, dweight, dbias, dout, x, weight, mean, rstd, dresidual, partials):
    """Gradients of layernorm_forward.

    dx          (N, C)  overwritten with dresidual + gradient
    dweight     (C,)    added to
    dbias       (C,)    added to, or empty for none
    dout, x     (N, C)
    weight      (C,)
    mean, rstd  (N,)
    dresidual   (N, C) gradient that reaches x by another path, or empty for none
    """
    norm = (x - mean[:, None]) * rstd[:, None]
    dnorm = dout * weight
    gradient = dnorm - dnorm.mean(axis=1, keepdims=True) - norm * (dnorm * norm).mean(axis=1, keepdims=True)
    gradient *= rstd[:, None]
    if dresidual.size:
        gradient += dresidual
    dweight += (dout * norm).sum(axis=0)
    if dbias.size:
        dbias += dout.sum(axis=0)
    dx[...] = gradient
