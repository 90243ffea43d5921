"""Adam with decoupled weight decay (Kingma and Ba 2014, arXiv:1412.6980; Loshchilov and Hutter 2017, arXiv:1711.05101).

    g = gradient * gradient_scale
    m = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g^2
    w = w (1 - learning_rate * weight_decay) - learning_rate * m_hat / (sqrt(v_hat) + eps)
    m_hat = m / (1 - beta1^step)         v_hat = v / (1 - beta2^step)

One pass: each of the four arrays is read once, and three are written once. Clipping is part of gradient_scale.
"""

import numpy as np
from numba import types

from .claim import claim
from .jit import Linked, bounds, chunk_count, kernel, prange
from .simd import FLOATS, advance, pointer

linked = Linked()
P, N, F = FLOATS, types.int64, types.float32


@linked(types.void(P, P, P, P, N, F, F, F, F, F, F, F, F, F))
def adamw_piece(
    parameters, first, second, gradients, size, scale, step_size, beta1, rest1, beta2, rest2, eps, root, keep
):
    """adamw for `size` parameters; arrays are addresses. rest is 1 - beta, root 1 / sqrt(1 - beta2^step)."""
    claim(parameters, size)
    for i in range(size):
        g = gradients[i] * scale
        m = beta1 * first[i] + rest1 * g
        v = beta2 * second[i] + rest2 * g * g
        first[i] = m
        second[i] = v
        parameters[i] = parameters[i] * keep - step_size * m / (np.sqrt(v) * root + eps)


@kernel(parallel=True, calls=linked)
def adamw(
    parameters, first, second, gradients, gradient_scale, learning_rate, beta1, beta2, eps, weight_decay, step
):
    """One update of parameters (P,) and the moments first, second (P,) from gradients (P,).

    step  counts from 1
    """
    step_size = np.float32(learning_rate / (1.0 - beta1**step))
    root = np.float32(1.0 / np.sqrt(1.0 - beta2**step))
    keep = np.float32(1.0 - learning_rate * weight_decay)
    scale, small = np.float32(gradient_scale), np.float32(eps)
    # 1 - beta in float64: in float32, 1 - 0.999 has a relative error of 5e-5
    b1, rest1, b2, rest2 = np.float32(beta1), np.float32(1.0 - beta1), np.float32(beta2), np.float32(1.0 - beta2)
    weights, m, v, g = pointer(parameters), pointer(first), pointer(second), pointer(gradients)
    size = parameters.shape[0]
    chunks = chunk_count(size)
    if chunks == 1:
        adamw_piece(weights, m, v, g, size, scale, step_size, b1, rest1, b2, rest2, small, root, keep)
        return
    for chunk in prange(chunks):
        start, stop = bounds(size, chunk, chunks)
        adamw_piece(
            advance(weights, start), advance(m, start), advance(v, start), advance(g, start), stop - start,
            scale, step_size, b1, rest1, b2, rest2, small, root, keep,
        )
