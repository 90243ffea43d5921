"""Cases of the kernels that pass over the flat buffer: gradient norm and optimizers."""

import numpy as np

from ..jit import MAX_CHUNKS
from .case import case, normal

FLAT = [{"parameters": n} for n in (1, 7, 65, 1025, 100_003)]
FLAT_REALISTIC = {
    "rustgpt 0.5M": {"parameters": 533_000},
    "stories 4M": {"parameters": 4_000_000},
}


@case(FLAT, FLAT_REALISTIC, flops=lambda s: 2 * s.parameters)
def squared_norm(rng, parameters):
    return {"x": normal(rng, parameters), "partials": np.full(MAX_CHUNKS, np.nan)}


@case(FLAT, FLAT_REALISTIC, flops=lambda s: s.parameters, updated=("x",))
def scale(rng, parameters):
    return {"x": normal(rng, parameters), "factor": 0.9}


@case(FLAT, FLAT_REALISTIC, flops=lambda s: 0, updated=("x",))
def zero(rng, parameters):
    return {"x": normal(rng, parameters)}


@case(
    FLAT,
    FLAT_REALISTIC,
    flops=lambda s: 16 * s.parameters,
    updated=("parameters", "first", "second"),
)
def adamw(rng, parameters):
    return {
        "parameters": normal(rng, parameters),
        "first": normal(rng, parameters),
        "second": normal(rng, parameters) ** 2,
        "gradients": normal(rng, parameters),
        "gradient_scale": 0.7,
        "learning_rate": 0.5,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.1,
        "step": 3,
    }


@case(FLAT, FLAT_REALISTIC, flops=lambda s: 7 * s.parameters, updated=("parameters", "velocity"))
def sgd(rng, parameters):
    return {
        "parameters": normal(rng, parameters),
        "velocity": normal(rng, parameters),
        "gradients": normal(rng, parameters),
        "gradient_scale": 0.7,
        "learning_rate": 0.5,
        "momentum": 0.9,
        "weight_decay": 0.1,
    }


@case(FLAT, FLAT_REALISTIC, flops=lambda s: 11 * s.parameters, updated=("parameters", "momentum"))
def lion(rng, parameters):
    """Some gradients and momenta are both zero: there the sign must be 0."""
    momentum, gradients = normal(rng, 2, parameters)
    momentum[3::5] = gradients[3::5] = 0
    return {
        "parameters": normal(rng, parameters),
        "momentum": momentum,
        "gradients": gradients,
        "gradient_scale": 0.7,
        "learning_rate": 0.5,
        "beta1": 0.9,
        "beta2": 0.99,
        "weight_decay": 0.1,
    }
