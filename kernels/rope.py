"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864).

A head's D columns form D/2 pairs; at position t, pair i is rotated by the angle t * frequency_i:

    (a, b) -> (a cos - b sin, a sin + b cos)

Pairs are (i, i + D/2), as in Hugging Face's Llama, or (2i, 2i + 1), as in the paper, llama2.c and GGUF
("interleaved"). Weights made for one give plausible nonsense with the other. Backward rotates the other way.
"""

import numpy as np

from .jit import chunk_count, inline, kernel, prange, prepared

FORWARD, BACKWARD = np.float32(1), np.float32(-1)


# A loop for each way to pair, because LLVM vectorises only strides that it knows when it compiles.


@inline
def _rotate_neighbours(head, cos, sin, direction):
    for i in range(cos.shape[0]):
        a, b = head[2 * i], head[2 * i + 1]
        s = sin[i] * direction
        head[2 * i] = a * cos[i] - b * s
        head[2 * i + 1] = a * s + b * cos[i]


@inline
def _rotate_halves(head, cos, sin, direction):
    first, second = head[: cos.shape[0]], head[cos.shape[0] :]
    for i in range(cos.shape[0]):
        a, b = first[i], second[i]
        s = sin[i] * direction
        first[i] = a * cos[i] - b * s
        second[i] = a * s + b * cos[i]


@inline
def _rotate(qkv, cos, sin, positions, heads, interleaved, direction, chunk, chunks):
    rows, size = qkv.shape[0], 2 * cos.shape[1]
    for n in range(rows * chunk // chunks, rows * (chunk + 1) // chunks):
        cosines, sines = cos[positions[n]], sin[positions[n]]
        for h in range(heads):
            head = qkv[n, h * size : (h + 1) * size]
            if interleaved:
                _rotate_neighbours(head, cosines, sines, direction)
            else:
                _rotate_halves(head, cosines, sines, direction)


@kernel(parallel=True)
def _rope(qkv, cos, sin, positions, heads, interleaved, direction):
    chunks = chunk_count(qkv.size)
    if chunks == 1:
        _rotate(qkv, cos, sin, positions, heads, interleaved, direction, 0, 1)
        return
    for chunk in prange(chunks):
        _rotate(qkv, cos, sin, positions, heads, interleaved, direction, chunk, chunks)


@prepared
def rope_forward(qkv, cos, sin, positions, heads, interleaved):
    """Rotate the first heads * D columns of qkv (N, W) in place: the queries and keys.

    cos, sin  (T, D/2)  of the angle for each position and pair
    positions (N,)      the position of each row, below T
    heads               query heads + key heads
    interleaved         whether pairs are (2i, 2i + 1)
    """
    return _rope, (qkv, cos, sin, positions, heads, interleaved, FORWARD)


@prepared
def rope_backward(dqkv, cos, sin, positions, heads, interleaved):
    """Rotate the gradients of the first heads * D columns back, in place; arguments as in rope_forward."""
    return _rope, (dqkv, cos, sin, positions, heads, interleaved, BACKWARD)
