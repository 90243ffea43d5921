"""Cases of the matrix product and the linear maps."""

from itertools import product

from .. import reference
from .case import Scratch, case, normal, optional, unwritten

MATMUL = [
    {"m": m, "n": n, "k": k, "transpose_a": a, "transpose_b": b, "accumulate": accumulate}
    for m, n, k in [(1, 1, 1), (7, 65, 33), (65, 31, 300)]
    for a, b, accumulate in product([False, True], repeat=3)
]
MATMUL_REALISTIC = {
    "rustgpt 78x384x128": {"m": 78, "n": 384, "k": 128},
    "gpt2 256x3072x768": {"m": 256, "n": 3072, "k": 768},
}
LINEAR = [
    {"rows": 1, "inputs": 1, "outputs": 1},
    {"rows": 1, "inputs": 128, "outputs": 533, "bias": False},
    {"rows": 7, "inputs": 65, "outputs": 31, "residual": True},
    {"rows": 65, "inputs": 7, "outputs": 130, "bias": False, "residual": True},
    {"rows": 131, "inputs": 300, "outputs": 65},
    {"rows": 31, "inputs": 900, "outputs": 131, "residual": True},
    {"rows": 62, "inputs": 65, "outputs": 7},
    {"rows": 131, "inputs": 1024, "outputs": 1024},  # rows that share a set of the L1 cache
    {"rows": 125, "inputs": 900, "outputs": 259, "residual": True},  # above FEW_ROWS (matmul.py), but nearly full tiles
]
LINEAR_REALISTIC = {
    "rustgpt 78x128x384": {"rows": 78, "inputs": 128, "outputs": 384},
    "nano 1024x384x1536": {"rows": 1024, "inputs": 384, "outputs": 1536},
    "gpt2 256x768x3072": {"rows": 256, "inputs": 768, "outputs": 3072},
}


@case(
    MATMUL,
    MATMUL_REALISTIC,
    terms=lambda s: s.k,
    flops=lambda s: 2 * s.m * s.n * s.k,
    written=("out",),
)
def matmul(rng, m, n, k, transpose_a=False, transpose_b=False, accumulate=False):
    return {
        "out": normal(rng, m, n) if accumulate else unwritten(m, n),
        "a": normal(rng, k, m) if transpose_a else normal(rng, m, k),
        "b": normal(rng, n, k) if transpose_b else normal(rng, k, n),
        "transpose_a": transpose_a,
        "transpose_b": transpose_b,
        "accumulate": accumulate,
        "scratch": Scratch.MATMUL,
    }


@case(
    LINEAR,
    LINEAR_REALISTIC,
    terms=lambda s: s.inputs,
    flops=lambda s: 2 * s.rows * s.inputs * s.outputs,
    written=("out",),
)
def linear_forward(rng, rows, inputs, outputs, bias=True, residual=False):
    return {
        "out": unwritten(rows, outputs),
        "x": normal(rng, rows, inputs),
        "weight": normal(rng, outputs, inputs),
        "bias": optional(rng, bias, outputs),
        "residual": optional(rng, residual, rows, outputs),
        "scratch": Scratch.MATMUL,
    }


@case(
    [*LINEAR, *({**size, "accumulate": False} for size in LINEAR)],
    LINEAR_REALISTIC,
    terms=lambda s: max(s.outputs, s.rows),
    flops=lambda s: 4 * s.rows * s.inputs * s.outputs,
    written=("dx",),
    updated=("dweight", "dbias"),
    forward="linear_forward",
)
def linear_backward(rng, rows, inputs, outputs, bias=True, residual=False, accumulate=True):
    dweight, dbias = normal(rng, outputs, inputs), optional(rng, bias, outputs)
    if not accumulate:
        dweight, dbias = unwritten(*dweight.shape), unwritten(*dbias.shape)
    return {
        "dx": unwritten(rows, inputs),
        "dweight": dweight,
        "dbias": dbias,
        "dout": normal(rng, rows, outputs),
        "x": normal(rng, rows, inputs),
        "weight": normal(rng, outputs, inputs),
        "residual": optional(rng, residual, rows, inputs),
        "accumulate": accumulate,
        "scratch": Scratch.MATMUL,
    }


LORA = [
    {"rows": 1, "inputs": 1, "outputs": 1, "rank": 1, "width": 1, "first": 0},
    {"rows": 7, "inputs": 65, "outputs": 31, "rank": 4, "width": 100, "first": 33},
    {"rows": 131, "inputs": 300, "outputs": 65, "rank": 17, "width": 65, "first": 0},
]
LORA_REALISTIC = {
    "smollm2 512x576x1536": {"rows": 512, "inputs": 576, "outputs": 1536, "rank": 16, "width": 3072, "first": 1536}
}


@case(
    LORA,
    LORA_REALISTIC,
    terms=lambda s: s.inputs + s.rank,
    flops=lambda s: 2 * s.rows * s.rank * (s.inputs + s.outputs),
    written=("hidden",),
    updated=("out",),
)
def lora_forward(rng, rows, inputs, outputs, rank, width, first):
    return {
        "out": normal(rng, rows, width),
        "hidden": unwritten(rows, rank),
        "x": normal(rng, rows, inputs),
        "a": normal(rng, rank, inputs),
        "b": normal(rng, outputs, rank),
        "first": first,
        "scale": 0.75,
        "scratch": Scratch.MATMUL,
    }


@case(
    LORA,
    LORA_REALISTIC,
    terms=lambda s: max(s.outputs, s.rows) + s.rank,
    flops=lambda s: 4 * s.rows * s.rank * (s.inputs + s.outputs),
    written=("dhidden",),
    updated=("dx", "da", "db"),
    forward="lora_forward",
)
def lora_backward(rng, rows, inputs, outputs, rank, width, first):
    forward = lora_forward(rng, rows, inputs, outputs, rank, width, first)
    reference.lora_forward(**forward)
    return {
        "dx": normal(rng, rows, inputs),
        "da": normal(rng, rank, inputs),
        "db": normal(rng, outputs, rank),
        "dhidden": unwritten(rows, rank),
        "dout": normal(rng, rows, width),
    } | {name: forward[name] for name in ("hidden", "x", "a", "b", "first", "scale", "scratch")}
