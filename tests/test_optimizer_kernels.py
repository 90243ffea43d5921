"""Optimizers over several steps, number by number in plain Python, from zero moments on."""

import math

import numpy as np
import pytest

from fastllm import kernels
from fastllm.kernels import reference

STEPS = 5
COUNT = 65
RATE, DECAY, GRADIENT_SCALE = 0.01, 0.1, 0.7
# A parameter passes through about ten roundings a step.
TOLERANCE = 10 * STEPS * float(np.finfo(np.float32).eps)


@pytest.fixture(params=[kernels, reference], ids=["kernel", "twin"])
def backend(request):
    return request.param


@pytest.fixture
def start():
    return np.random.default_rng(0).standard_normal(COUNT, dtype=np.float32)


@pytest.fixture
def gradients():
    """(steps, count); sizes from 1e-4 to 1e4, as eps and the moments' corrections show at the small ones."""
    rng = np.random.default_rng(1)
    sizes = np.logspace(-4, 4, COUNT)
    return (sizes * rng.standard_normal((STEPS, COUNT))).astype(np.float32)


def scaled(gradients):
    """Gradients one parameter at a time, as Python floats."""
    return (gradients.astype(np.float64) * GRADIENT_SCALE).T.tolist()


def test_adamw(backend, start, gradients):
    """The pseudocode of torch.optim.AdamW."""
    parameters, first, second = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for step, gradient in enumerate(gradients, 1):
        backend.adamw(parameters, first, second, gradient, GRADIENT_SCALE, RATE, 0.9, 0.999, 1e-8, DECAY, step)
    for i, column in enumerate(scaled(gradients)):
        p, m, v = float(start[i]), 0.0, 0.0
        for step, g in enumerate(column, 1):
            p -= RATE * DECAY * p
            m = 0.9 * m + 0.1 * g
            v = 0.999 * v + 0.001 * g * g
            p -= RATE * (m / (1 - 0.9**step)) / (math.sqrt(v / (1 - 0.999**step)) + 1e-8)
        assert parameters[i] == pytest.approx(p, rel=TOLERANCE, abs=TOLERANCE)


def test_first_step_of_adamw_is_the_learning_rate(backend, start, gradients):
    parameters, first, second = start.copy(), np.zeros_like(start), np.zeros_like(start)
    backend.adamw(parameters, first, second, gradients[0], 1.0, RATE, 0.9, 0.999, 0.0, 0.0, 1)
    np.testing.assert_allclose(parameters, start - RATE * np.sign(gradients[0]), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd(backend, start, gradients, momentum):
    """The pseudocode of torch.optim.SGD, with dampening 0, not Nesterov."""
    parameters, velocity = start.copy(), np.zeros_like(start)
    for gradient in gradients:
        backend.sgd(parameters, velocity, gradient, GRADIENT_SCALE, RATE, momentum, DECAY)
    for i, column in enumerate(scaled(gradients)):
        p, v = float(start[i]), 0.0
        for g in column:
            v = momentum * v + g + DECAY * p
            p -= RATE * v
        size = max(1.0, max(abs(g) for g in column))  # what is taken off may be far larger than what stays
        assert parameters[i] == pytest.approx(p, rel=TOLERANCE, abs=TOLERANCE * size)


def test_lion(backend, start, gradients):
    """Algorithm 2 of the paper."""
    parameters, momentum = start.copy(), np.zeros_like(start)
    for gradient in gradients:
        backend.lion(parameters, momentum, gradient, GRADIENT_SCALE, RATE, 0.9, 0.99, DECAY)
    for i, column in enumerate(scaled(gradients)):
        p, m = float(start[i]), 0.0
        for g in column:
            update = 0.9 * m + 0.1 * g
            p -= RATE * (math.copysign(1, update) + DECAY * p)
            m = 0.99 * m + 0.01 * g
        assert parameters[i] == pytest.approx(p, rel=TOLERANCE, abs=TOLERANCE)


def test_lion_rests_where_gradient_and_momentum_are_zero(backend, start):
    parameters, momentum = start.copy(), np.zeros_like(start)
    backend.lion(parameters, momentum, np.zeros_like(start), 1.0, RATE, 0.9, 0.99, 0.0)
    np.testing.assert_array_equal(parameters, start)
