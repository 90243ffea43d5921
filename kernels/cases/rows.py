"""Cases of the kernels that work on rows: they look them up, normalise them or compare them with a target."""

import numpy as np

from .. import reference
from ..jit import MAX_CHUNKS
from .case import ROWS, ROWS_REALISTIC, case, integers, normal, optional, unwritten

EMBEDDING = [
    {"rows": 1, "width": 1, "vocabulary": 1},
    {"rows": 7, "width": 65, "vocabulary": 533},
    {"rows": 65, "width": 7, "vocabulary": 3},
    {"rows": 7, "width": 65, "vocabulary": 5, "accumulate": True},
]
EMBEDDING_REALISTIC = {
    "rustgpt 78x128": {"rows": 78, "width": 128, "vocabulary": 533},
    "nano 1024x384": {"rows": 1024, "width": 384, "vocabulary": 65},
    "stories 1024x512": {"rows": 1024, "width": 512, "vocabulary": 4096},
}


@case(
    EMBEDDING,
    EMBEDDING_REALISTIC,
    flops=lambda s: 0,
    written=("out",),
    bytes_moved=lambda s: 4 * s.rows * (2 * s.width + 1),
)
def embedding_forward(rng, rows, width, vocabulary, accumulate=False):
    return {
        "out": normal(rng, rows, width) if accumulate else unwritten(rows, width),
        "ids": integers(rng, vocabulary, rows),
        "weight": normal(rng, vocabulary, width),
        "accumulate": accumulate,
    }


@case(
    EMBEDDING[:3],
    EMBEDDING_REALISTIC,
    terms=lambda s: s.rows,
    flops=lambda s: s.rows * s.width,
    updated=("dweight",),
    bytes_moved=lambda s: 4 * s.rows * (3 * s.width + 1),
    forward="embedding_forward",
)
def embedding_backward(rng, rows, width, vocabulary):
    return {
        "dweight": normal(rng, vocabulary, width),
        "dout": normal(rng, rows, width),
        "ids": integers(rng, vocabulary, rows),
    }


PICKED = [
    {"rows": 1, "picked": 1, "width": 1},
    {"rows": 65, "picked": 7, "width": 65},
    {"rows": 7, "picked": 7, "width": 31},
    {"rows": 7, "picked": 0, "width": 31},
]
PICKED_REALISTIC = {"gpt2 512 of 1024x768": {"rows": 1024, "picked": 512, "width": 768}}


def some_rows(rng, rows, picked):
    return np.sort(rng.choice(rows, picked, replace=False)).astype(np.int32)


@case(
    PICKED,
    PICKED_REALISTIC,
    flops=lambda s: 0,
    written=("out",),
    bytes_moved=lambda s: 4 * s.picked * (2 * s.width + 1),
)
def gather_rows(rng, rows, picked, width):
    return {
        "out": unwritten(picked, width),
        "x": normal(rng, rows, width),
        "rows": some_rows(rng, rows, picked),
    }


@case(PICKED, PICKED_REALISTIC, flops=lambda s: 0, written=("dx",), forward="gather_rows")
def scatter_rows(rng, rows, picked, width):
    return {
        "dx": unwritten(rows, width),
        "dout": normal(rng, picked, width),
        "rows": some_rows(rng, rows, picked),
    }


NORM = [*ROWS, {"rows": 65, "width": 33, "bias": False}]
RMS_NORM_BACKWARD = [*ROWS, {"rows": 7, "width": 65, "residual": True}]
NORM_BACKWARD = [*RMS_NORM_BACKWARD, {"rows": 65, "width": 33, "bias": False, "residual": True}]


@case(
    NORM,
    ROWS_REALISTIC,
    terms=lambda s: s.width,
    flops=lambda s: 8 * s.rows * s.width,
    written=("out", "mean", "rstd"),
)
def layernorm_forward(rng, rows, width, bias=True):
    return {
        "out": unwritten(rows, width),
        "mean": unwritten(rows),
        "rstd": unwritten(rows),
        "x": normal(rng, rows, width),
        "weight": normal(rng, width),
        "bias": optional(rng, bias, width),
        "eps": 1e-5,
    }


@case(
    NORM_BACKWARD,
    ROWS_REALISTIC,
    terms=lambda s: s.rows + s.width,
    flops=lambda s: 14 * s.rows * s.width,
    written=("dx",),
    updated=("dweight", "dbias"),
    forward="layernorm_forward",
)
def layernorm_backward(rng, rows, width, bias=True, residual=False):
    saved = layernorm_forward(rng, rows, width, bias)
    reference.layernorm_forward(**saved)
    return {
        "dx": unwritten(rows, width),
        "dweight": normal(rng, width),
        "dbias": optional(rng, bias, width),
        "dout": normal(rng, rows, width),
        "x": saved["x"],
        "weight": saved["weight"],
        "mean": saved["mean"],
        "rstd": saved["rstd"],
        "dresidual": optional(rng, residual, rows, width),
        "partials": unwritten(MAX_CHUNKS, 2, width),
    }


@case(
    ROWS,
    ROWS_REALISTIC,
    terms=lambda s: s.width,
    flops=lambda s: 4 * s.rows * s.width,
    written=("out", "rstd"),
)
def rms_norm_forward(rng, rows, width):
    return {
        "out": unwritten(rows, width),
        "rstd": unwritten(rows),
        "x": normal(rng, rows, width),
        "weight": normal(rng, width),
        "eps": 1e-5,
    }


@case(
    RMS_NORM_BACKWARD,
    ROWS_REALISTIC,
    terms=lambda s: s.rows + s.width,
    flops=lambda s: 10 * s.rows * s.width,
    written=("dx",),
    updated=("dweight",),
    forward="rms_norm_forward",
)
def rms_norm_backward(rng, rows, width, residual=False):
    saved = rms_norm_forward(rng, rows, width)
    reference.rms_norm_forward(**saved)
    return {
        "dx": unwritten(rows, width),
        "dweight": normal(rng, width),
        "dout": normal(rng, rows, width),
        "x": saved["x"],
        "weight": saved["weight"],
        "rstd": saved["rstd"],
        "dresidual": optional(rng, residual, rows, width),
        "partials": unwritten(MAX_CHUNKS, 1, width),
    }


@case(ROWS, ROWS_REALISTIC, terms=lambda s: s.width, flops=lambda s: 4 * s.rows * s.width, written=("out",))
def softmax_forward(rng, rows, width):
    return {"out": unwritten(rows, width), "x": normal(rng, rows, width)}


@case(
    ROWS,
    ROWS_REALISTIC,
    terms=lambda s: s.width,
    flops=lambda s: 4 * s.rows * s.width,
    written=("dx",),
    forward="softmax_forward",
)
def softmax_backward(rng, rows, width):
    saved = softmax_forward(rng, rows, width)
    reference.softmax_forward(**saved)
    return {"dx": unwritten(rows, width), "dout": normal(rng, rows, width), "out": saved["out"]}


LOGITS = [{"rows": 1, "vocabulary": 1}, {"rows": 7, "vocabulary": 533}, {"rows": 65, "vocabulary": 65}]
LOGITS_REALISTIC = {
    "rustgpt 78x533": {"rows": 78, "vocabulary": 533},
    "gpt2 64x50257": {"rows": 64, "vocabulary": 50257},
}


@case(
    LOGITS,
    LOGITS_REALISTIC,
    terms=lambda s: s.vocabulary,
    flops=lambda s: 4 * s.rows * s.vocabulary,
    written=("losses", "correct"),
)
def cross_entropy_forward(rng, rows, vocabulary):
    targets = integers(rng, vocabulary, rows)
    logits = normal(rng, rows, vocabulary)
    logits[::2] = np.round(logits[::2])  # ties, of which the lowest index must win
    hit = np.arange(0, rows, 3)
    logits[hit, targets[hit]] = logits[hit].max(axis=1)  # so that some targets are the largest
    return {
        "losses": unwritten(rows),
        "correct": np.full(rows, -1, np.int32),
        "logits": logits,
        "targets": targets,
    }


@case(
    LOGITS,
    LOGITS_REALISTIC,
    terms=lambda s: s.vocabulary,
    flops=lambda s: 6 * s.rows * s.vocabulary,
    written=("losses", "correct", "dlogits"),
    forward="cross_entropy_forward",
)
def cross_entropy_forward_backward(rng, rows, vocabulary):
    forward = cross_entropy_forward(rng, rows, vocabulary)
    return {
        "losses": forward["losses"],
        "correct": forward["correct"],
        "dlogits": unwritten(rows, vocabulary),
        "logits": forward["logits"],
        "targets": forward["targets"],
        "scale": 0.37,
    }
