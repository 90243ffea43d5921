"""Activation functions, element by element.

    relu       max(x, 0)                                              1 where x > 0, else 0
    gelu       x P(x), P = (1 + erf(x / sqrt 2)) / 2                  P + x exp(-x^2 / 2) / sqrt(2 pi)
    gelu_tanh  x (1 + tanh u) / 2, u = sqrt(2 / pi) (x + 0.044715 x^3)
               (1 + tanh u) / 2 + x (1 - tanh^2 u) / 2 * du/dx
    silu       x s, s = 1 / (1 + exp(-x))                             s (1 + x (1 - s))

(Hendrycks and Gimpel 2016, arXiv:1606.08415; Elfwing et al. 2017, arXiv:1702.03118.) First the value, then its
derivative; dx = dout * derivative. Backward computes the derivative from x, so the value need not be kept for it.
"""

import numpy as np

from .elementary import erf, erf_by_exp, exp, sigmoid, tanh
from .jit import chunk_count, inline, kernel, piece, prange

F = np.float32
SQRT_HALF = F(0.7071067811865476)
DENSITY = F(0.3989422804014327)  # 1 / sqrt(2 pi)
SLOPE = F(0.7978845608028654)  # sqrt(2 / pi)
CUBIC = F(0.044715)


@inline
def _relu(x):
    return F(0) if x < F(0) else x


@inline
def _relu_derivative(x):
    return F(1) if x > F(0) else F(0)


@inline
def _gelu(x):
    return F(0.5) * x * (F(1) + erf(x * SQRT_HALF))


@inline
def _gelu_derivative(x):
    e = exp(F(-0.5) * x * x)
    return F(0.5) * (F(1) + erf_by_exp(x * SQRT_HALF, e)) + x * DENSITY * e


@inline
def _gelu_tanh(x):
    return F(0.5) * x * (F(1) + tanh(SLOPE * (x + CUBIC * x * x * x)))


@inline
def _gelu_tanh_derivative(number):
    x = F(-10) if number < F(-10) else number  # beyond, the derivative is 0 or 1, and powers of x could overflow
    x = F(10) if x > F(10) else x
    t = tanh(SLOPE * (x + CUBIC * x * x * x))
    return F(0.5) * (F(1) + t) + F(0.5) * x * (F(1) - t * t) * SLOPE * (F(1) + F(3) * CUBIC * x * x)


@inline
def _silu(x):
    return x * sigmoid(x)


@inline
def _silu_derivative(x):
    s = sigmoid(x)
    return s * (F(1) + x * (F(1) - s))


def _mapper(function):
    """Makes a function that computes out = function(x) for one chunk of the elements."""

    @inline
    def apply(out, x, chunk, chunks):
        flat_out, flat_x = piece(out.reshape(-1), chunk, chunks), piece(x.reshape(-1), chunk, chunks)
        for i in range(flat_x.shape[0]):
            flat_out[i] = function(flat_x[i])

    return apply


def _gradient_mapper(derivative):
    """Makes a function that computes dx = dout * derivative(x) for one chunk of the elements."""

    @inline
    def apply(dx, dout, x, chunk, chunks):
        flat_dx, flat_dout = piece(dx.reshape(-1), chunk, chunks), piece(dout.reshape(-1), chunk, chunks)
        flat_x = piece(x.reshape(-1), chunk, chunks)
        for i in range(flat_x.shape[0]):
            flat_dx[i] = flat_dout[i] * derivative(flat_x[i])

    return apply


# Made here, not passed to a kernel as an argument: Numba does not cache kernels that take functions.
_map_relu, _map_relu_gradient = _mapper(_relu), _gradient_mapper(_relu_derivative)
_map_gelu, _map_gelu_gradient = _mapper(_gelu), _gradient_mapper(_gelu_derivative)
_map_gelu_tanh, _map_gelu_tanh_gradient = _mapper(_gelu_tanh), _gradient_mapper(_gelu_tanh_derivative)
_map_silu, _map_silu_gradient = _mapper(_silu), _gradient_mapper(_silu_derivative)


@kernel(parallel=True)
def relu_forward(out, x):
    """out (N, F) = relu(x)."""
    chunks = chunk_count(x.size)
    if chunks == 1:
        _map_relu(out, x, 0, 1)
        return
    for chunk in prange(chunks):
        _map_relu(out, x, chunk, chunks)


@kernel(parallel=True)
def relu_backward(dx, dout, x):
    """dx (N, F) = dout * derivative of relu at x; dx may be dout itself."""
    chunks = chunk_count(x.size)
    if chunks == 1:
        _map_relu_gradient(dx, dout, x, 0, 1)
        return
    for chunk in prange(chunks):
        _map_relu_gradient(dx, dout, x, chunk, chunks)


@kernel(parallel=True)
def gelu_forward(out, x):
    """out (N, F) = gelu(x)."""
    chunks = chunk_count(x.size)
    if chunks == 1:
        _map_gelu(out, x, 0, 1)
        return
    for chunk in prange(chunks):
        _map_gelu(out, x, chunk, chunks)


@kernel(parallel=True)
def gelu_backward(dx, dout, x):
    """dx (N, F) = dout * derivative of gelu at x; dx may be dout itself."""
    chunks = chunk_count(x.size)
    if chunks == 1:
        _map_gelu_gradient(dx, dout, x, 0, 1)
        return
    for chunk in prange(chunks):
        _map_gelu_gradient(dx, dout, x, chunk, chunks)


@kernel(parallel=True)
def gelu_tanh_forward(out, x):
    """out (N, F) = gelu_tanh(x)."""
    chunks = chunk_count(x.size)
    if chunks == 1:
        _map_gelu_tanh(out, x, 0, 1)
        return
    for chunk in prange(chunks):
        _map_gelu_tanh(out, x, chunk, chunks)


@kernel(parallel=True)
def gelu_tanh_backward(dx, dout, x):
    """dx (N, F) = dout * derivative of gelu_tanh at x; dx may be dout itself."""
    chunks = chunk_count(x.size)
    if chunks == 1:
        _map_gelu_tanh_gradient(dx, dout, x, 0, 1)
        return
    for chunk in prange(chunks):
        _map_gelu_tanh_gradient(dx, dout, x, chunk, chunks)


@kernel(parallel=True)
def silu_forward(out, x):
    """out (N, F) = silu(x)."""
    chunks = chunk_count(x.size)
    if chunks == 1:
        _map_silu(out, x, 0, 1)
        return
    for chunk in prange(chunks):
        _map_silu(out, x, chunk, chunks)


@kernel(parallel=True)
def silu_backward(dx, dout, x):
    """dx (N, F) = dout * derivative of silu at x; dx may be dout itself."""
    chunks = chunk_count(x.size)
    if chunks == 1:
        _map_silu_gradient(dx, dout, x, 0, 1)
        return
    for chunk in prange(chunks):
        _map_silu_gradient(dx, dout, x, chunk, chunks)
