"""Cases of the kernels that work element by element."""

import numpy as np

from .case import ROWS, ROWS_REALISTIC, case, normal, unwritten

HIDDEN_REALISTIC = {
    "rustgpt 78x256": {"rows": 78, "width": 256},
    "nano 1024x1536": {"rows": 1024, "width": 1536},
    "gpt2 256x3072": {"rows": 256, "width": 3072},
}


# A derivative has a factor like 1 - sigmoid(x). Where that is near 0 it is little more than the rounding error of
# sigmoid, and it is multiplied by x: about one digit is lost, as in a sum of some dozens of terms.
ACTIVATION_TERMS = 64


def curved(rng, *shape):
    """Numbers from the range in which activations are curved; tests of their own look beyond."""
    return rng.uniform(-4, 4, shape).astype(np.float32)


def activation_forward(rng, rows, width):
    return {"out": unwritten(rows, width), "x": curved(rng, rows, width)}


def activation_backward(rng, rows, width):
    return {"dx": unwritten(rows, width), "dout": normal(rng, rows, width), "x": curved(rng, rows, width)}


def activation_case(name: str, forward: int, backward: int) -> None:
    """Enter an activation and its derivative; forward, backward: their operations per element."""
    case(
        ROWS,
        HIDDEN_REALISTIC,
        terms=lambda s: ACTIVATION_TERMS,
        flops=lambda s: forward * s.rows * s.width,
        written=("out",),
        kernel=f"{name}_forward",
    )(activation_forward)
    case(
        ROWS,
        HIDDEN_REALISTIC,
        terms=lambda s: ACTIVATION_TERMS,
        flops=lambda s: backward * s.rows * s.width,
        written=("dx",),
        forward=f"{name}_forward",
        kernel=f"{name}_backward",
    )(activation_backward)


activation_case("relu", 1, 2)
activation_case("gelu", 5, 10)
activation_case("gelu_tanh", 9, 17)
activation_case("silu", 4, 7)


@case(
    ROWS,
    HIDDEN_REALISTIC,
    terms=lambda s: ACTIVATION_TERMS,
    flops=lambda s: 5 * s.rows * s.width,
    written=("out",),
)
def swiglu_forward(rng, rows, width):
    return {"out": unwritten(rows, width), "gate_up": curved(rng, rows, 2 * width)}


@case(
    ROWS,
    HIDDEN_REALISTIC,
    terms=lambda s: ACTIVATION_TERMS,
    flops=lambda s: 10 * s.rows * s.width,
    written=("dgate_up",),
    forward="swiglu_forward",
)
def swiglu_backward(rng, rows, width):
    return {
        "dgate_up": unwritten(rows, 2 * width),
        "dout": normal(rng, rows, width),
        "gate_up": curved(rng, rows, 2 * width),
    }


@case(ROWS, ROWS_REALISTIC, flops=lambda s: s.rows * s.width, written=("out",))
def add(rng, rows, width):
    return {"out": unwritten(rows, width), "a": normal(rng, rows, width), "b": normal(rng, rows, width)}


DROPOUT = [
    {"rows": 1, "width": 1, "probability": 0.5},
    {"rows": 7, "width": 65, "probability": 0.1},
    {"rows": 65, "width": 31, "probability": 0.9, "row": 12345, "offset": 2**40 + 3},
    {"rows": 7, "width": 65, "probability": 0.0},
]


@case(DROPOUT, ROWS_REALISTIC, flops=lambda s: 10 * s.rows * s.width, written=("out",))
def dropout_forward(rng, rows, width, probability=0.1, row=0, offset=0):
    return {
        "out": unwritten(rows, width),
        "x": normal(rng, rows, width),
        "probability": probability,
        "draw": np.array([20240229, row], np.uint64),
        "offset": offset,
    }


@case(
    DROPOUT,
    ROWS_REALISTIC,
    flops=lambda s: 10 * s.rows * s.width,
    written=("dx",),
    forward="dropout_forward",
)
def dropout_backward(rng, rows, width, probability=0.1, row=0, offset=0):
    return {
        "dx": unwritten(rows, width),
        "dout": normal(rng, rows, width),
        "probability": probability,
        "draw": np.array([20240229, row], np.uint64),
        "offset": offset,
    }
