"""Stochastic gradient descent with momentum (Polyak 1964), weight decay added to the gradient as PyTorch does.

    g = gradient * gradient_scale + weight_decay * w
    velocity = momentum * velocity + g          w = w - learning_rate * velocity
"""

import numpy as np

from .claim import claim
from .jit import chunk_count, inline, kernel, piece, prange
from .simd import pointer


@inline
def _update(parameters, velocity, gradients, gradient_scale, learning_rate, momentum, weight_decay, chunk, chunks):
    scale, rate = np.float32(gradient_scale), np.float32(learning_rate)
    mu, decay = np.float32(momentum), np.float32(weight_decay)
    parameters, velocity = piece(parameters, chunk, chunks), piece(velocity, chunk, chunks)
    gradients = piece(gradients, chunk, chunks)
    claim(pointer(parameters), parameters.shape[0])
    for i in range(parameters.shape[0]):
        velocity[i] = mu * velocity[i] + (gradients[i] * scale + decay * parameters[i])
        parameters[i] -= rate * velocity[i]


@kernel(parallel=True)
def sgd(parameters, velocity, gradients, gradient_scale, learning_rate, momentum, weight_decay):
    """One update of parameters (P,) and velocity (P,) from gradients (P,)."""
    chunks = chunk_count(parameters.shape[0])
    if chunks == 1:
        _update(parameters, velocity, gradients, gradient_scale, learning_rate, momentum, weight_decay, 0, 1)
        return
    for chunk in prange(chunks):
        _update(
            parameters, velocity, gradients, gradient_scale, learning_rate, momentum, weight_decay, chunk, chunks
        )
