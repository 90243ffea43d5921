"""exp, tanh, sigmoid and erf of float32 scalars, in plain arithmetic so that LLVM vectorises loops over them.

Numba's own call the C library once for each element (2.6 ns against 0.35 ns for exp).

    exp      x = n ln 2 + r with |r| <= ln(2)/2; e^r by a polynomial of degree 6; 2^n by the exponent's bits.
             Relative error below 2e-7; 0 below -87.3 (no subnormals), 3.3e38 above 88.7; NaN stays NaN.
    erf      Abramowitz and Stegun 7.1.26, absolute error below 5e-7
"""

import numpy as np

from .jit import inline
from .simd import float_from_bits, fma

F = np.float32
LOG2_E = F(1.4426950408889634)
LN2_HIGH = F(0.693359375)  # ln 2 in two parts: n * LN2_HIGH is exact
LN2_LOW = F(-2.12194440e-4)
LOWEST, HIGHEST = F(-87.3), F(88.7)
C2, C3, C4, C5, C6 = F(0.4999998860), F(0.1666651846), F(0.04166953311), F(0.008368916341), F(0.001375140790)


@inline
def exp(x):
    bounded = HIGHEST if x > HIGHEST else x
    bounded = LOWEST if bounded < LOWEST else bounded
    n = np.floor(fma(bounded, LOG2_E, F(0.5)))
    r = fma(n, -LN2_HIGH, bounded)
    r = fma(n, -LN2_LOW, r)
    p = fma(C6, r, C5)
    p = fma(p, r, C4)
    p = fma(p, r, C3)
    p = fma(p, r, C2)
    p = fma(p, r, F(1))
    p = fma(p, r, F(1))
    result = p * float_from_bits((np.int32(n) + np.int32(127)) << np.int32(23))
    return F(0) if x < LOWEST else result


@inline
def sigmoid(x):
    return F(1) / (F(1) + exp(-x))


@inline
def tanh(x):
    return F(1) - F(2) / (F(1) + exp(F(2) * x))


@inline
def erf(x):
    z = abs(x)
    t = F(1) / fma(F(0.3275911), z, F(1))
    p = fma(F(1.061405429), t, F(-1.453152027))
    p = fma(p, t, F(1.421413741))
    p = fma(p, t, F(-0.284496736))
    p = fma(p, t, F(0.254829592))
    value = F(1) - p * t * exp(-z * z)
    return -value if x < F(0) else value
