"""Causal attention within each sequence of a packed batch (Vaswani et al. 2017; Dao et al. 2022, arXiv:2205.14135).

    score_ij = scale * q_i . k_j  for j <= i        p_ij = exp(score_ij - lse_i)        lse_i = log sum_j exp(score_ij)
    out_i    = sum_j p_ij v_j
    delta_i  = dout_i . out_i                       dscore_ij = scale * p_ij * (dout_i . v_j - delta_i)
    dq_i = sum_j dscore_ij k_j      dk_j = sum_i dscore_ij q_i      dv_j = sum_i p_ij dout_i

Nothing of size T x T exists: BLOCK queries meet BLOCK keys at a time, blocks above the diagonal are never
computed, and the softmax streams: a running maximum and sum for each query, with what has been summed so far
rescaled when the maximum grows. Backward computes the scores again from lse. Both are register-tile products
(matmul.py) on blocks that stay in the first two caches.

Columns of qkv (N, W): queries of H heads, keys of K heads, values of K heads, each D wide; W = (H + 2K) * D.
Query head h reads key/value head h // (H // K).

Threads: part p takes the tasks p, p + parts, ...; a task is a (sequence, head, block of queries) forward and
a (sequence, key/value head) backward, and writes only what is its own.
"""

import numpy as np
from numba import config, types

from .elementary import exp
from .jit import inline, kernel, linked, prange
from .matmul import multiply_panels, pack_rows, pack_transposed
from .simd import FLOATS, LANES, TILE_COLUMNS, TILE_ROWS, advance, null, pointer

P, N = FLOATS, types.int64

BLOCK = 64
PADDED = (BLOCK + TILE_COLUMNS - 1) // TILE_COLUMNS * TILE_COLUMNS
SERIAL_WORK = 500_000  # multiply-adds; see matmul.py


def attention_scratch(head_size):
    """Room for blocks of scores and panels, a row for each thread, for heads of head_size columns; readies what
    the kernels call.
    """
    linked.compile()
    columns = (head_size + TILE_COLUMNS - 1) // TILE_COLUMNS * TILE_COLUMNS
    spare = TILE_ROWS * max(BLOCK, head_size)
    size = 2 * BLOCK * PADDED + 2 * head_size * PADDED + 3 * BLOCK * columns + spare + 3 * BLOCK + 4 * LANES
    return np.empty((config.NUMBA_NUM_THREADS, size), np.float32)


@inline
def _work(starts, heads, size):
    total = 0
    for s in range(starts.shape[0] - 1):
        length = starts[s + 1] - starts[s]
        total += length * length
    return total * heads * size


@linked(types.void(P, N, P, N, P, P, P, N, N, N, N, types.float32, P))
def _forward_block(out, out_row, lse, lse_row, q, k, v, row, first, queries, size, scale, scratch):
    """One head, queries first .. first + queries - 1 of a sequence.

    out, lse, q  addresses for the block's first query; k, v for the sequence's first key
    """
    padded = (size + TILE_COLUMNS - 1) // TILE_COLUMNS * TILE_COLUMNS
    scores = scratch
    k_panels = advance(scores, BLOCK * PADDED)
    v_panels = advance(k_panels, size * PADDED)
    top = advance(v_panels, BLOCK * padded)
    total = advance(top, BLOCK)
    spare = advance(total, BLOCK)
    for i in range(queries):
        top[i] = np.float32(-np.inf)
        total[i] = np.float32(0)
        for d in range(size):
            out[i * out_row + d] = np.float32(0)
    for j in range(0, first + queries, BLOCK):
        keys = min(BLOCK, first + queries - j)
        pack_transposed(k_panels, advance(k, j * row), row, size, keys)
        pack_rows(v_panels, advance(v, j * row), row, keys, size)
        multiply_panels(
            scores, PADDED, q, row, 1, TILE_ROWS * row, k_panels, queries, keys, size, null(), 0, null(), spare
        )
        for i in range(queries):
            base = i * PADDED
            seen = min(keys, first + i - j + 1)  # the rest of the row lies above the diagonal
            high = top[i]
            for c in range(seen):
                x = scores[base + c] * scale
                scores[base + c] = x
                high = x if x > high else high
            shrink = exp(top[i] - high)
            part = np.float32(0)
            for c in range(seen):
                p = exp(scores[base + c] - high)
                scores[base + c] = p
                part += p
            for c in range(max(seen, 0), keys):
                scores[base + c] = np.float32(0)
            if shrink != np.float32(1):
                for d in range(size):
                    out[i * out_row + d] *= shrink
            total[i] = total[i] * shrink + part
            top[i] = high
        multiply_panels(
            out, out_row, scores, PADDED, 1, TILE_ROWS * PADDED, v_panels, queries, size, keys,
            out, out_row, null(), spare,
        )
    for i in range(queries):
        inverse = np.float32(1) / total[i]
        for d in range(size):
            out[i * out_row + d] *= inverse
        lse[i * lse_row] = top[i] + np.log(total[i])


@inline
def _forward_part(out, lse, qkv, starts, heads, kv_heads, scale, scratch, part, parts):
    """The tasks part, part + parts, ... of attention_forward."""
    part = np.int64(part)  # prange counts in unsigned integers
    size = out.shape[1] // heads
    row, out_row = qkv.shape[1], out.shape[1]
    p_out, p_lse, p_qkv, group = pointer(out), pointer(lse), pointer(qkv), heads // kv_heads
    task = 0
    for s in range(starts.shape[0] - 1):
        start, stop = np.int64(starts[s]), np.int64(starts[s + 1])
        for h in range(heads):
            kv = heads + h // group
            for i in range(start, stop, BLOCK):
                if task % parts == part:
                    _forward_block(
                        advance(p_out, i * out_row + h * size),
                        out_row,
                        advance(p_lse, i * heads + h),
                        heads,
                        advance(p_qkv, i * row + h * size),
                        advance(p_qkv, start * row + kv * size),
                        advance(p_qkv, start * row + (kv + kv_heads) * size),
                        row,
                        i - start,
                        min(BLOCK, stop - i),
                        size,
                        scale,
                        scratch,
                    )
                task += 1


@kernel(parallel=True)
def attention_forward(out, lse, qkv, starts, heads, kv_heads, scale, scratch):
    """Attend within each sequence.

    out     (N, H*D)         written
    lse     (N, H)           written; keep for backward
    qkv     (N, (H+2K)*D)
    starts  (S+1,)           sequence s has rows starts[s] .. starts[s+1]-1
    scale   usually 1 / sqrt(D)
    scratch from attention_scratch(D)
    """
    parts = scratch.shape[0]
    rate = np.float32(scale)
    room, size = pointer(scratch), scratch.shape[1]
    if parts == 1 or _work(starts, heads, out.shape[1] // heads) < SERIAL_WORK:
        _forward_part(out, lse, qkv, starts, heads, kv_heads, rate, room, 0, 1)
        return
    for part in prange(parts):
        _forward_part(out, lse, qkv, starts, heads, kv_heads, rate, advance(room, part * size), part, parts)


@linked(types.void(P, P, P, P, N, P, N, N, N, N, N, N, N, types.float32, P))
def _backward_blocks(dqkv, dout, out, lse, lse_row, qkv, row, out_row, q_at, k_at, v_at, length, size, scale, scratch):
    """One query head of one sequence: adds to its columns of dqkv. All addresses are the sequence's first row's."""
    padded = (size + TILE_COLUMNS - 1) // TILE_COLUMNS * TILE_COLUMNS
    scores = scratch
    dscores = advance(scores, BLOCK * PADDED)
    k_transposed = advance(dscores, BLOCK * PADDED)
    v_transposed = advance(k_transposed, size * PADDED)
    k_panels = advance(v_transposed, size * PADDED)
    q_panels = advance(k_panels, BLOCK * padded)
    dout_panels = advance(q_panels, BLOCK * padded)
    delta = advance(dout_panels, BLOCK * padded)
    spare = advance(delta, BLOCK)
    q, k, v = advance(qkv, q_at), advance(qkv, k_at), advance(qkv, v_at)
    dq, dk, dv = advance(dqkv, q_at), advance(dqkv, k_at), advance(dqkv, v_at)
    for j in range(0, length, BLOCK):
        keys = min(BLOCK, length - j)
        k_j, dk_j, dv_j = advance(k, j * row), advance(dk, j * row), advance(dv, j * row)
        pack_transposed(k_transposed, k_j, row, size, keys)
        pack_transposed(v_transposed, advance(v, j * row), row, size, keys)
        pack_rows(k_panels, k_j, row, keys, size)
        for i in range(j, length, BLOCK):
            queries = min(BLOCK, length - i)
            q_i, dq_i, dout_i = advance(q, i * row), advance(dq, i * row), advance(dout, i * out_row)
            pack_rows(q_panels, q_i, row, queries, size)
            pack_rows(dout_panels, dout_i, out_row, queries, size)
            for n in range(queries):
                dot = np.float32(0)
                for d in range(size):
                    dot += dout_i[n * out_row + d] * out[(i + n) * out_row + d]
                delta[n] = dot
            multiply_panels(
                scores, PADDED, q_i, row, 1, TILE_ROWS * row, k_transposed, queries, keys, size,
                null(), 0, null(), spare,
            )
            multiply_panels(
                dscores, PADDED, dout_i, out_row, 1, TILE_ROWS * out_row, v_transposed, queries, keys, size,
                null(), 0, null(), spare,
            )
            for n in range(queries):
                base = n * PADDED
                seen = min(keys, i + n - j + 1)
                offset = lse[(i + n) * lse_row]
                for c in range(seen):
                    p = exp(scores[base + c] * scale - offset)
                    scores[base + c] = p
                    dscores[base + c] = p * (dscores[base + c] - delta[n]) * scale
                for c in range(seen, keys):
                    scores[base + c] = np.float32(0)
                    dscores[base + c] = np.float32(0)
            multiply_panels(
                dv_j, row, scores, 1, PADDED, TILE_ROWS, dout_panels, keys, size, queries, dv_j, row, null(), spare
            )
            multiply_panels(
                dk_j, row, dscores, 1, PADDED, TILE_ROWS, q_panels, keys, size, queries, dk_j, row, null(), spare
            )
            multiply_panels(
                dq_i, row, dscores, PADDED, 1, TILE_ROWS * PADDED, k_panels, queries, size, keys,
                dq_i, row, null(), spare,
            )


@inline
def _clear(dqkv, start, stop, column, size):
    for n in range(start, stop):
        for d in range(size):
            dqkv[n, column + d] = np.float32(0)


@inline
def _backward_part(dqkv, dout, out, lse, qkv, starts, heads, kv_heads, scale, scratch, part, parts):
    """The tasks part, part + parts, ... of attention_backward."""
    part = np.int64(part)  # prange counts in unsigned integers
    size = out.shape[1] // heads
    row, out_row, group = qkv.shape[1], out.shape[1], heads // kv_heads
    task = 0
    for s in range(starts.shape[0] - 1):
        start, stop = np.int64(starts[s]), np.int64(starts[s + 1])
        for kv in range(kv_heads):
            if task % parts == part:
                k_at, v_at = (heads + kv) * size, (heads + kv_heads + kv) * size
                _clear(dqkv, start, stop, kv * group * size, group * size)
                _clear(dqkv, start, stop, k_at, size)
                _clear(dqkv, start, stop, v_at, size)
                for h in range(kv * group, (kv + 1) * group):
                    _backward_blocks(
                        advance(pointer(dqkv), start * row),
                        advance(pointer(dout), start * out_row + h * size),
                        advance(pointer(out), start * out_row + h * size),
                        advance(pointer(lse), start * heads + h),
                        heads,
                        advance(pointer(qkv), start * row),
                        row,
                        out_row,
                        h * size,
                        k_at,
                        v_at,
                        stop - start,
                        size,
                        scale,
                        scratch,
                    )
            task += 1


@kernel(parallel=True)
def attention_backward(dqkv, dout, out, lse, qkv, starts, heads, kv_heads, scale, scratch):
    """Gradients of attention_forward.

    dqkv     (N, (H+2K)*D)  written
    dout     (N, H*D)
    out, lse                of forward
    the rest as in attention_forward
    """
    parts = scratch.shape[0]
    rate = np.float32(scale)
    room, size = pointer(scratch), scratch.shape[1]
    if parts == 1 or _work(starts, heads, out.shape[1] // heads) < SERIAL_WORK:
        _backward_part(dqkv, dout, out, lse, qkv, starts, heads, kv_heads, rate, room, 0, 1)
        return
    for part in prange(parts):
        here = advance(room, part * size)
        _backward_part(dqkv, dout, out, lse, qkv, starts, heads, kv_heads, rate, here, part, parts)
