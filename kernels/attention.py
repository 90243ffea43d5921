"""Causal attention within each sequence of a packed batch (Vaswani et al. 2017; Dao et al. 2022, arXiv:2205.14135).

    score_ij = scale / ln 2 * q_i . k_j  for j <= i      p_ij = 2^(score_ij - lse_i)      lse_i = log2 sum_j 2^score_ij
    out_i    = sum_j p_ij v_j
    delta_i  = dout_i . out_i                       dscore_ij = p_ij * (dout_i . v_j - delta_i)
    dq_i = scale * sum_j dscore_ij k_j        dk_j = scale * sum_i dscore_ij q_i        dv_j = sum_i p_ij dout_i
    (dscore is the gradient with respect to scale * q_i . k_j, without the 1 / ln 2.)

Nothing of size T x T exists. Blocks of QUERIES queries and KEYS keys are processed one register tile of queries after
another, so that a tile's scores are still in the L1 cache when they become probabilities and are multiplied by the
values. A tile computes scores only up to its last query's own key, so little is wasted along the diagonal. Softmax is
computed online: each query has a running maximum and sum, and its partial result is rescaled when the maximum grows.
Backward computes the scores again, and with lse the probabilities, in blocks of KEYS queries and KEYS keys.

Scores are exponents of two, as exp2 is faster than exp: queries are scaled by scale / ln 2 as they are read. So lse is
kept to the base 2 as well: converted to a natural logarithm and back, it would lose its last bit, and where scores are
large that is a digit of p.

Columns of qkv (N, W): queries of H heads, keys of K heads, values of K heads, each D wide; W = (H + 2K) * D.
Query head h reads key/value head h // (H // K).

Threads: a task is a (sequence, head, block of queries) forward and a (sequence, key/value head) backward, and no two
tasks write to the same place. Each thread takes the tasks whose middle lies in its share of the work. Where backward
would have few tasks, each is further cut into pieces of the keys; their parts of dq are kept apart and added up at the
end. The number of pieces depends on the lengths only, not on the number of threads, and so do the bits.
"""

import numpy as np
from numba import types

from .elementary import LOG2_E, exp2, exp2_lanes
from .jit import Linked, inline, kernel, prange
from .keys_and_values import linked as packing
from .keys_and_values import pack_keys_and_values
from .llvm import LANES
from .matmul import (
    SERIAL_WORK,
    copied_row,
    multiply_tile_row,
    pack_rows,
    pack_transposed,
    padded,
    scale_rows,
    thread_rooms,
)
from .matmul import linked as products
from .simd import (
    FLOATS,
    INDICES,
    add,
    advance,
    broadcast,
    is_null,
    largest_lane,
    load,
    load_all,
    maximum,
    multiply,
    null,
    pointer,
    store,
    subtract,
    sum_of_lanes,
)
from .tile import TILE_COLUMNS, TILE_ROWS

linked = Linked(products, packing)
only_training = Linked(linked)
P, N, B = FLOATS, types.int64, types.boolean

QUERIES, KEYS = 256, 256
TASKS = 8  # about how many tasks backward should have if there is a single sequence
MOST_PIECES = 4  # the most pieces that a sequence's keys are cut into
PADDED_KEYS = (KEYS + TILE_COLUMNS - 1) // TILE_COLUMNS * TILE_COLUMNS  # whole tiles
ROW = PADDED_KEYS + LANES  # floats from a row of scores to the next: a power of two would share few L1 sets


def attention_scratch(head_size):
    """Scratch for attention with heads of head_size columns: a row for each thread."""
    wide, copied = padded.py_func(head_size), copied_row.py_func(head_size)
    forward, backward = _forward_rooms.py_func(head_size, wide), _backward_rooms.py_func(head_size, wide, copied)
    return thread_rooms(max(sum(forward), sum(backward)))


@inline
def _forward_rooms(size, wide):
    """Floats in a thread's scratch of: a tile's scores, scaled queries, panels of transposed keys and of values, each
    query's maximum and total, and a cache's float16 as float32. Heads have `size` columns, which take `wide` in panels.
    """
    return TILE_ROWS * ROW, QUERIES * size, size * PADDED_KEYS, KEYS * wide, QUERIES, QUERIES, KEYS * size


@inline
def _backward_rooms(size, wide, copied):
    """Floats in a thread's scratch of: p, dscores, panels of transposed keys and of transposed values, panels of keys,
    of queries and of dout, scaled queries, delta and lse of each query, and copies of a tile's rows of dout, `copied`
    floats apart.
    """
    return (
        KEYS * ROW, KEYS * ROW, size * PADDED_KEYS, size * PADDED_KEYS, KEYS * wide, KEYS * wide, KEYS * wide,
        KEYS * size, KEYS, KEYS, TILE_ROWS * copied,
    )  # fmt: skip


def attention_pieces(width):
    """Columns of dq_pieces, where the queries of all heads together are `width` wide."""
    return (MOST_PIECES - 1) * width


@inline
def _squares(starts):
    """The sum of squared lengths: about twice the number of one head's scores."""
    total = 0
    for s in range(starts.shape[0] - 1):
        length = np.int64(starts[s + 1] - starts[s])
        total += length * length
    return total


@inline
def owner(done, work, total, parts):
    """Which of `parts` threads takes a task of `work` that tasks of `done` precede, out of `total`."""
    return (2 * done + work) * parts // (2 * total)


@linked(types.void(P, P, P, N, N, N, P, N, N), ordered=True)
def _softmax_rows(scores, top, total, rows, first, keys, out, out_row, size):
    """Turn scores (rows, keys) into exp2(score - top); update top, and rescale total and out where it grows.

    first       how many keys the first row sees; each further row sees one more, up to `keys`. The rest becomes 0
    top, total  (rows,) maximum and sum so far; total is 0 for a row of out that nothing has been written to
    """
    lowest = broadcast(np.float32(-np.inf))
    for n in range(rows):  # all maxima first: they don't depend on each other
        line, seen = advance(scores, n * ROW), max(0, min(keys, first + n))
        whole, highs = seen // LANES * LANES, lowest
        for c in range(0, whole, LANES):
            highs = maximum(highs, load_all(advance(line, c)))
        highs = maximum(highs, load(advance(line, whole), seen - whole, lowest))
        # not max(): a NaN among the scores must reach the loss, to be seen there
        high = largest_lane(highs)
        high = top[n] if top[n] > high else high
        if high != top[n] and total[n] != np.float32(0):
            shrink = exp2(top[n] - high)
            target = advance(out, n * out_row)
            for d in range(size):
                target[d] *= shrink
            total[n] *= shrink
        top[n] = high
    for n in range(rows):
        line, seen = advance(scores, n * ROW), max(0, min(keys, first + n))
        whole, offset, parts = seen // LANES * LANES, broadcast(top[n]), broadcast(np.float32(0))
        for c in range(0, whole, LANES):
            p = exp2_lanes(subtract(load_all(advance(line, c)), offset))
            store(advance(line, c), p)
            parts = add(parts, p)
        for c in range(whole, keys, LANES):
            p = exp2_lanes(subtract(load(advance(line, c), seen - c, lowest), offset))
            store(advance(line, c), p)
            parts = add(parts, p)
        total[n] += sum_of_lanes(parts)


@linked(types.void(P, N, P, N, P, N, P, P, N, INDICES, N, N, B, N, N, N, types.float32, P))
def forward_block(
    out, out_row, lse, lse_row, q, q_row, k, v, row, pages, page, apart, is_half, first, queries, size, scale, scratch
):
    """Attention of one head for queries first .. first + queries - 1 of a sequence.

    out, lse, q  addresses for the block's first query; lse may be null
    page         at most KEYS, or a multiple of that, or 0
    k, v, row, pages, apart, is_half  as in pack_keys_and_values
    """
    rooms = _forward_rooms(size, padded(size))
    scores = scratch
    scaled = advance(scores, rooms[0])
    k_panels = advance(scaled, rooms[1])
    v_panels = advance(k_panels, rooms[2])
    top = advance(v_panels, rooms[3])
    total = advance(top, rooms[4])
    spare = advance(total, rooms[5])
    scale_rows(scaled, size, q, q_row, queries, size, scale * LOG2_E)
    for i in range(queries):
        top[i] = np.float32(-np.inf)
        total[i] = np.float32(0)
    together = min(KEYS, page) if page else KEYS
    for j in range(0, first + queries, together):
        keys = min(together, first + queries - j)
        pack_keys_and_values(k_panels, v_panels, k, v, row, pages, page, apart, is_half, j, keys, size, spare)
        for i in range(max(0, j - first) // TILE_ROWS * TILE_ROWS, queries, TILE_ROWS):
            rows = min(TILE_ROWS, queries - i)
            seen = min(keys, first + i + rows - j)  # keys of this block that the tile's last query sees
            target = advance(out, i * out_row)
            # score_ij = (scale / ln 2) q_i . k_j
            multiply_tile_row(
                scores, ROW, advance(scaled, i * size), size, 1, k_panels, TILE_COLUMNS * size, TILE_COLUMNS, rows,
                seen, size, null(), 0, null(), null(),
            )
            # p_ij = 2^(score_ij - top_i), and out_i so far is rescaled to the new top_i
            _softmax_rows(
                scores, advance(top, i), advance(total, i), rows, first + i + 1 - j, seen, target, out_row, size
            )
            # out_i += sum_j p_ij v_j
            multiply_tile_row(
                target, out_row, scores, ROW, 1, v_panels, TILE_COLUMNS * keys, TILE_COLUMNS, rows, size, seen,
                null() if j == 0 else target, out_row, null(), null(),
            )
    for i in range(queries):
        target = advance(out, i * out_row)
        inverse = np.float32(1) / total[i]
        for d in range(size):
            target[d] *= inverse
        if not is_null(lse):
            lse[i * lse_row] = top[i] + np.log(total[i]) * LOG2_E


@inline
def _forward_part(out, lse, qkv, starts, heads, kv_heads, scale, scratch, part, parts):
    """The share of thread number `part` of `parts` in attention_forward."""
    size = out.shape[1] // heads
    row, out_row = qkv.shape[1], out.shape[1]
    p_out, p_lse, p_qkv, group = pointer(out), pointer(lse), pointer(qkv), heads // kv_heads
    total, done = _squares(starts) * heads, 0
    for s in range(starts.shape[0] - 1):
        start, stop = np.int64(starts[s]), np.int64(starts[s + 1])
        for h in range(heads):
            kv = heads + h // group
            for i in range(start, stop, QUERIES):
                queries = min(QUERIES, stop - i)
                work = queries * (2 * (i - start) + queries)
                if owner(done, work, total, parts) == part:
                    forward_block(
                        advance(p_out, i * out_row + h * size),
                        out_row,
                        advance(p_lse, i * heads + h),
                        heads,
                        advance(p_qkv, i * row + h * size),
                        row,
                        advance(p_qkv, start * row + kv * size),
                        advance(p_qkv, start * row + (kv + kv_heads) * size),
                        row,
                        pointer(starts),
                        0,
                        0,
                        False,
                        i - start,
                        queries,
                        size,
                        scale,
                        scratch,
                    )
                done += work


@kernel(parallel=True, calls=linked)
def attention_forward(out, lse, qkv, starts, heads, kv_heads, scale, scratch):
    """Attend within each sequence.

    out     (N, H*D)         written
    lse     (N, H)           written, logarithms to the base 2; keep for backward
    qkv     (N, (H+2K)*D)
    starts  (S+1,)           sequence s has rows starts[s] .. starts[s+1]-1
    scale   usually 1 / sqrt(D)
    scratch from attention_scratch(D)
    """
    parts = scratch.shape[0]
    rate = np.float32(scale)
    room, size = pointer(scratch), scratch.shape[1]
    if parts == 1 or _squares(starts) * out.shape[1] < SERIAL_WORK:
        _forward_part(out, lse, qkv, starts, heads, kv_heads, rate, room, 0, 1)
        return
    for part in prange(parts):
        _forward_part(out, lse, qkv, starts, heads, kv_heads, rate, advance(room, part * size), part, parts)


@only_training(types.void(P, P, types.float32, types.float32, N, N))
def _score_gradients(p, ds, offset, delta, seen, keys):
    """For one row, turn the scores in p into probabilities, and the gradients of these in ds into dscores.

    offset, delta  the row's lse and delta
    seen           how many keys the row sees; from there to `keys`, p and ds become 0
    """
    lowest, offsets, deltas = broadcast(np.float32(-np.inf)), broadcast(offset), broadcast(delta)
    for c in range(0, keys, LANES):
        here, there = advance(p, c), advance(ds, c)
        x = exp2_lanes(subtract(load(here, seen - c, lowest), offsets))
        store(here, x)
        store(there, multiply(x, subtract(load(there, seen - c, deltas), deltas)))


@only_training(N(N, N))
def _pieces(length, total):
    """Into how many pieces the keys of a sequence are cut. total: the sum of squared lengths over all tasks."""
    wanted = (TASKS * length * length + total - 1) // max(1, total)
    return max(1, min(wanted, min(MOST_PIECES, (length + KEYS - 1) // KEYS)))


@only_training(N(N, N, N))
def _first_key(length, piece, pieces):
    """Where a piece begins. A piece consists of the blocks of keys whose middle lies in its share of the scores."""
    j, total = 0, length * length
    while j < length:
        rest, next_rest = length - j, max(0, length - j - KEYS)
        if owner(total - rest * rest, rest * rest - next_rest * next_rest, total, pieces) >= piece:
            break
        j += KEYS
    return min(j, length)


@only_training(types.void(P, N, P, P, P, P, P, N, P, N, N, N, N, N, N, N, N, N, types.float32, B, P))
def _backward_blocks(
    dq, dq_row, dk, dv, dout, out, lse, lse_row, qkv, row, out_row, q_at, k_at, v_at, begin, end, length, size, scale,
    is_first, scratch,
):
    """The gradients of one query head of one sequence from keys begin .. end - 1.

    dq of the queries from begin on is written. dk and dv are written if is_first, else added to. All addresses are
    those of the sequence's first row.
    """
    rooms = _backward_rooms(size, padded(size), copied_row(size))
    p = scratch
    ds = advance(p, rooms[0])
    k_transposed = advance(ds, rooms[1])
    v_transposed = advance(k_transposed, rooms[2])
    k_panels = advance(v_transposed, rooms[3])
    q_panels = advance(k_panels, rooms[4])
    dout_panels = advance(q_panels, rooms[5])
    scaled = advance(dout_panels, rooms[6])
    delta = advance(scaled, rooms[7])
    offset = advance(delta, rooms[8])
    spare = advance(offset, rooms[9])
    q, k, v = advance(qkv, q_at), advance(qkv, k_at), advance(qkv, v_at)
    for j in range(begin, end, KEYS):
        keys = min(KEYS, end - j)
        k_j, dk_j, dv_j = advance(k, j * row), advance(dk, j * row), advance(dv, j * row)
        pack_transposed(k_transposed, k_j, row, size, keys)
        pack_transposed(v_transposed, advance(v, j * row), row, size, keys)
        pack_rows(k_panels, k_j, row, keys, size, scale)
        for i in range(j, length, KEYS):
            queries = min(KEYS, length - i)
            q_i, dout_i = advance(q, i * row), advance(dout, i * out_row)
            scale_rows(scaled, size, q_i, row, queries, size, scale * LOG2_E)
            pack_rows(q_panels, q_i, row, queries, size, scale)
            pack_rows(dout_panels, dout_i, out_row, queries, size, np.float32(1))
            for n in range(queries):
                dout_n, out_n, dot = advance(dout_i, n * out_row), advance(out, (i + n) * out_row), np.float32(0)
                for d in range(size):
                    dot += dout_n[d] * out_n[d]
                delta[n] = dot
                offset[n] = lse[(i + n) * lse_row]
            for t in range(0, queries, TILE_ROWS):
                rows = min(TILE_ROWS, queries - t)
                seen = min(keys, i + t + rows - j)  # keys of this block that the tile's last query sees
                p_t, ds_t, dq_t = advance(p, t * ROW), advance(ds, t * ROW), advance(dq, (i + t) * dq_row)
                multiply_tile_row(
                    p_t, ROW, advance(scaled, t * size), size, 1, k_transposed, TILE_COLUMNS * size,
                    TILE_COLUMNS, rows, seen, size, null(), 0, null(), null(),
                )
                multiply_tile_row(
                    ds_t, ROW, advance(dout_i, t * out_row), out_row, 1, v_transposed, TILE_COLUMNS * size,
                    TILE_COLUMNS, rows, seen, size, null(), 0, null(), spare,
                )
                for n in range(rows):
                    _score_gradients(
                        advance(p_t, n * ROW), advance(ds_t, n * ROW), offset[t + n], delta[t + n],
                        min(seen, i + t + n + 1 - j), seen,
                    )
                multiply_tile_row(
                    dq_t, dq_row, ds_t, ROW, 1, k_panels, TILE_COLUMNS * keys, TILE_COLUMNS, rows, size, seen,
                    null() if j == begin else dq_t, dq_row, null(), null(),
                )
            is_new = is_first and i == j
            for r in range(0, keys, TILE_ROWS):
                rows, unseen = min(TILE_ROWS, keys - r), r if i == j else 0  # queries before these keys
                dv_r, dk_r = advance(dv_j, r * row), advance(dk_j, r * row)
                multiply_tile_row(
                    dv_r, row, advance(p, unseen * ROW + r), 1, ROW, advance(dout_panels, unseen * TILE_COLUMNS),
                    TILE_COLUMNS * queries, TILE_COLUMNS, rows, size, queries - unseen, null() if is_new else dv_r, row,
                    null(), null(),
                )
                multiply_tile_row(
                    dk_r, row, advance(ds, unseen * ROW + r), 1, ROW, advance(q_panels, unseen * TILE_COLUMNS),
                    TILE_COLUMNS * queries, TILE_COLUMNS, rows, size, queries - unseen, null() if is_new else dk_r, row,
                    null(), null(),
                )


@only_training(types.void(P, P, P, P, P, INDICES, N, N, N, N, N, types.float32, P, N, P, N, N))
def _backward_part(
    dqkv, dout, out, lse, qkv, starts, sequences, total, heads, kv_heads, size, scale, dq_pieces, apart, scratch, part,
    parts,
):
    """The share of thread number `part` of `parts` in attention_backward, without adding up the pieces.

    total  as in _pieces
    apart  floats from one row of dq_pieces to the next
    """
    row, out_row, group, done = (heads + 2 * kv_heads) * size, heads * size, heads // kv_heads, 0
    for s in range(sequences):
        start, length = np.int64(starts[s]), np.int64(starts[s + 1] - starts[s])
        pieces, p_dqkv = _pieces(length, total), advance(dqkv, start * row)
        for kv in range(kv_heads):
            k_at, v_at = (heads + kv) * size, (heads + kv_heads + kv) * size
            for piece in range(pieces):
                begin, end = _first_key(length, piece, pieces), _first_key(length, piece + 1, pieces)
                work = (length - begin) * (length - begin) - (length - end) * (length - end)
                if owner(done, work, total, parts) == part:
                    dq, dq_row = p_dqkv, row
                    if begin > 0:  # not piece > 0: if the first block is most of the work, piece 0 is empty
                        dq, dq_row = advance(dq_pieces, start * apart + (piece - 1) * out_row), apart
                    for h in range(kv * group, (kv + 1) * group):
                        _backward_blocks(
                            advance(dq, h * size),
                            dq_row,
                            advance(p_dqkv, k_at),
                            advance(p_dqkv, v_at),
                            advance(dout, start * out_row + h * size),
                            advance(out, start * out_row + h * size),
                            advance(lse, start * heads + h),
                            heads,
                            advance(qkv, start * row),
                            row,
                            out_row,
                            h * size,
                            k_at,
                            v_at,
                            begin,
                            end,
                            length,
                            size,
                            scale,
                            h == kv * group,
                            scratch,
                        )
                done += work


@only_training(types.void(P, INDICES, N, N, N, N, N, P, N, N, N))
def _add_pieces(dqkv, starts, sequences, total, heads, kv_heads, size, dq_pieces, apart, part, parts):
    """Add the dq of the other pieces to that of the piece at key 0: the share of thread number `part` of `parts`."""
    row, width = (heads + 2 * kv_heads) * size, heads * size
    for s in range(sequences):
        start, length = np.int64(starts[s]), np.int64(starts[s + 1] - starts[s])
        pieces = _pieces(length, total)
        first, last = length * part // parts, length * (part + 1) // parts
        for piece in range(1, pieces):
            begin = _first_key(length, piece, pieces)
            if begin == 0 or begin == _first_key(length, piece + 1, pieces):  # in dqkv already, or empty
                continue
            for n in range(start + max(first, begin), start + last):
                dq = advance(dqkv, n * row)
                other = advance(dq_pieces, n * apart + (piece - 1) * width)
                for d in range(width):
                    dq[d] += other[d]


@kernel(parallel=True, calls=only_training)
def attention_backward(dqkv, dout, out, lse, qkv, starts, heads, kv_heads, scale, dq_pieces, scratch):
    """Gradients of attention_forward.

    dqkv      (N, (H+2K)*D)               written
    dout      (N, H*D)
    out, lse                              from forward
    dq_pieces (N, attention_pieces(H*D))  scratch, for the parts of dq where keys are cut into pieces
    the rest as in attention_forward
    """
    parts, total, sequences, size = scratch.shape[0], _squares(starts), starts.shape[0] - 1, out.shape[1] // heads
    rate, room, floats = np.float32(scale), pointer(scratch), scratch.shape[1]
    p_dqkv, p_dout, p_out, p_lse, p_qkv = pointer(dqkv), pointer(dout), pointer(out), pointer(lse), pointer(qkv)
    p_starts, p_pieces, apart = pointer(starts), pointer(dq_pieces), dq_pieces.shape[1]
    is_small = parts == 1 or total * out.shape[1] < SERIAL_WORK
    total *= kv_heads
    if is_small:
        _backward_part(
            p_dqkv, p_dout, p_out, p_lse, p_qkv, p_starts, sequences, total, heads, kv_heads, size, rate, p_pieces,
            apart, room, 0, 1,
        )
        _add_pieces(p_dqkv, p_starts, sequences, total, heads, kv_heads, size, p_pieces, apart, 0, 1)
        return
    for part in prange(parts):  # which counts in unsigned integers
        _backward_part(
            p_dqkv, p_dout, p_out, p_lse, p_qkv, p_starts, sequences, total, heads, kv_heads, size, rate, p_pieces,
            apart, advance(room, part * floats), np.int64(part), parts,
        )
    longest = 0
    for s in range(sequences):
        longest = max(longest, np.int64(starts[s + 1] - starts[s]))
    if _pieces(longest, total) > 1:
        for part in prange(parts):
            _add_pieces(
                p_dqkv, p_starts, sequences, total, heads, kv_heads, size, p_pieces, apart, np.int64(part), parts
            )
