"""Activations, element by element; each backward is dx = dout * f'(x).

    relu       f = max(x, 0)                       f' = 1 if x > 0 else 0     (Nair, Hinton 2010)
    gelu       f = x * Phi(x)                      f' = Phi(x) + x * phi(x)   (arXiv:1606.08415)
               Phi(x) = (1 + erf(x / sqrt(2))) / 2        phi(x) = exp(-x^2 / 2) / sqrt(2 pi)
    gelu_tanh  f = x * (1 + t) / 2                 f' = (1 + t) / 2 + x * (1 - t^2) * u' / 2
               t = tanh(u)        u = sqrt(2 / pi) * (x + 0.044715 x^3)       (same paper)
    silu       f = x * s, s = 1 / (1 + exp(-x))    f' = s * (1 + x * (1 - s)) (arXiv:1702.03118)

All arrays are (N, F); out and dx are written, x and dout read.

Powers are written as products: for x**3 of float32, NumPy calls pow, which takes five hundred times as long.
"""

import math

import numpy as np

# NumPy has no erf. (1 + erf(z)) / 2 = erfc(-z) / 2, which does not cancel for z << 0.
_normal_cdf = np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2)), otypes=[np.float64])


def relu_forward(out, x):
    """out = max(x, 0)."""
    out[...] = np.maximum(x, 0)


def relu_backward(dx, dout, x):
    """Gradient of relu_forward; 0 at x = 0."""
    dx[...] = dout * (x > 0)


def gelu_forward(out, x):
    """out = x * Phi(x), with the exact normal distribution function."""
    out[...] = x * _normal_cdf(x).astype(x.dtype)


def gelu_backward(dx, dout, x):
    """Gradient of gelu_forward."""
    density = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    dx[...] = dout * (_normal_cdf(x).astype(x.dtype) + x * density)


def gelu_tanh_forward(out, x):
    """out = x * (1 + t) / 2, GPT-2's approximation of gelu."""
    t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
    out[...] = 0.5 * x * (1 + t)


def gelu_tanh_backward(dx, dout, x):
    """Gradient of gelu_tanh_forward."""
    t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
    du = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
    dx[...] = dout * 0.5 * (1 + t + x * (1 - t * t) * du)


def _sigmoid(x):
    """1 / (1 + exp(-x)), in a form that neither overflows nor, for x << 0, loses digits."""
    return np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x)))


def silu_forward(out, x):
    """out = x * sigmoid(x)."""
    out[...] = x * _sigmoid(x)


def silu_backward(dx, dout, x):
    """Gradient of silu_forward."""
    sigmoid = _sigmoid(x)
    dx[...] = dout * sigmoid * (1 + x * (1 - sigmoid))
