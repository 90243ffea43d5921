"""Lion (Chen et al. 2023, arXiv:2302.06675): the sign of an interpolated momentum, decoupled weight decay.

    g = gradient * gradient_scale
    w = w (1 - learning_rate * weight_decay) - learning_rate * sign(beta1 m + (1 - beta1) g)
    m = beta2 m + (1 - beta2) g
"""

import numpy as np

from .claim import claim
from .jit import chunk_count, inline, kernel, piece, prange
from .simd import pointer


@inline
def _update(parameters, momentum, gradients, scale, rate, betas, keep, chunk, chunks):
    zero = np.float32(0)
    beta1, rest1, beta2, rest2 = betas
    parameters, momentum = piece(parameters, chunk, chunks), piece(momentum, chunk, chunks)
    gradients = piece(gradients, chunk, chunks)
    claim(pointer(parameters), parameters.shape[0])
    for i in range(parameters.shape[0]):
        g = gradients[i] * scale
        u = beta1 * momentum[i] + rest1 * g
        step = rate if u > zero else (-rate if u < zero else zero)
        parameters[i] = parameters[i] * keep - step
        momentum[i] = beta2 * momentum[i] + rest2 * g


@kernel(parallel=True)
def lion(parameters, momentum, gradients, gradient_scale, learning_rate, beta1, beta2, weight_decay):
    """One update of parameters (P,) and momentum (P,) from gradients (P,)."""
    scale, rate = np.float32(gradient_scale), np.float32(learning_rate)
    betas = (np.float32(beta1), np.float32(1.0 - beta1), np.float32(beta2), np.float32(1.0 - beta2))
    keep = np.float32(1.0 - learning_rate * weight_decay)
    chunks = chunk_count(parameters.shape[0])
    if chunks == 1:
        _update(parameters, momentum, gradients, scale, rate, betas, keep, 0, 1)
        return
    for chunk in prange(chunks):
        _update(parameters, momentum, gradients, scale, rate, betas, keep, chunk, chunks)
