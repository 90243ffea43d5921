"""The cache of keys and values, and attention of one new token on it.

    out_h = sum over t < length of p_t values_t        p = softmax over t of scale * q_h . keys_t

A sequence's keys and values are in pages of T tokens (Kwon et al. 2023, arXiv:2309.06180): token t of slot b is in page
pages[b, t // T]. Within a page, the rows of one head are contiguous, so a task for a head reads memory in order. Keys
are stored in groups of GROUP tokens, dimension by dimension: a vector holds one dimension of LANES keys and is
multiplied by one number of the query, so nothing is summed across lanes. Softmax is computed online (Milakov and
Gimelshein 2018, arXiv:1805.02867), BLOCK tokens at a time: when the maximum so far grows, the sum of the weights and
the weighted sum of the values are rescaled. Exponentials are powers of two, so scores are scaled by 1 / ln 2 as well.

Up to TOGETHER heads that share keys and values (Ainslie et al. 2023, arXiv:2305.13245) are one task, so that these are
read once for all of them. Where that leaves few tasks, a text is cut into pieces, whose maxima, sums and weighted sums
are combined at the end (Dao et al. 2023, pytorch.org/blog/flash-decoding).
"""

from functools import cache

import numpy as np
from numba import types
from numba.extending import intrinsic

from . import llvm
from .cached_rows import AHEAD, GROUP, TOGETHER, add_rows, dot_group, stack
from .elementary import LOG2_E, exp2, exp2_lanes
from .jit import Linked, chunk_count, deferred, inline, kernel, literally, prange, prepared
from .llvm import LANES, LINE
from .row_group import transpose
from .simd import (
    FLOATS,
    HALVES,
    INDICES,
    add,
    advance,
    broadcast,
    largest_lane,
    load,
    load_all,
    maximum,
    multiply,
    pointer,
    store,
    store_lanes,
    subtract,
    sum_of_lanes,
)

P, N, TABLE = FLOATS, types.int64, types.CPointer(types.int64)
BLOCK = 128  # tokens whose scores are computed at a time, at most

WEIGHTS, TOTALS = TOGETHER * BLOCK, TOGETHER * LANES  # floats of scratch
TASKS = 16  # if a row has fewer tasks than this, its text is cut: into pieces that give 9 to 16, if it has enough pages
# The columns of `tasks`. A task is a few heads of one row of queries, on a piece of that row's text.
ROW, HEAD, HEADS = 0, 1, 2  # of queries; the first head, and how many
FUNCTION = 3  # the address of the function for so many heads
START, STOP = 4, 5  # the piece's tokens
PIECES = 6  # how many the whole text has
BASE, PLACE = 7, 8  # offsets, in numbers, in keys and in values: of the heads' part of page 0, of the piece's start
RESULT = 9  # the first head's row of `results`; each further head's is PIECES rows on
COLUMNS = 10

linked = Linked()


@inline
def _copy(to, source, count):
    whole, zeros = count // LANES * LANES, broadcast(np.float32(0))
    for d in range(0, whole, LANES):
        store(advance(to, d), load_all(advance(source, d)))
    if whole < count:
        store_lanes(advance(to, whole), load(advance(source, whole), count - whole, zeros), count - whole)


@inline
def _are_together(places, n, stop):
    """Whether the keys of LANES rows from n on go to consecutive lanes of one group, aligned to LANES."""
    if n + LANES > stop or places[n] % LANES:
        return False
    following = 0
    for lane in range(1, LANES):
        following += places[n + lane] == places[n] + lane
    return following == LANES - 1


@inline
def _write(keys, values, qkv, places, heads, kv_heads, start, stop):
    page, size = values.shape[2:]
    row, whole = qkv.shape[1], size // LANES * LANES
    n = start
    while n < stop:
        p, t = places[n] // page, places[n] % page
        tokens = LANES if _are_together(places, n, stop) else 1
        for k in range(kv_heads):
            key = advance(pointer(qkv), n * row + (heads + k) * size)
            value = advance(key, kv_heads * size)
            to_key = advance(pointer(keys[p, k, t // GROUP]), t % GROUP)
            to_value = pointer(values[p, k, t])
            transposed = whole if tokens == LANES else 0
            for d in range(0, transposed, LANES):
                transpose(advance(to_key, d * GROUP), GROUP, advance(key, d), row)
            for token in range(tokens):
                for d in range(transposed, size):
                    store_lanes(advance(to_key, d * GROUP + token), broadcast(key[token * row + d]), 1)
                _copy(advance(to_value, token * size), advance(value, token * row), size)
        n += tokens


@kernel(parallel=True)
def kv_cache_write(keys, values, qkv, places, heads, kv_heads):
    """Copy the key and the value of each row n of qkv (N, (H+2K)*D) to places[n] (N,) of the cache.

    Place p * T + t is token t of page p. No two places are the same. keys and values are float32, or uint16 with the
    bits of float16, to which the numbers are rounded.

    keys   (pages, K, T / GROUP, D, GROUP)
    values (pages, K, T, D)
    """
    rows = qkv.shape[0]
    chunks = min(chunk_count(qkv.size), max(2, rows // (2 * LANES)))  # so that most have LANES rows for a transpose
    if chunks == 1:
        _write(keys, values, qkv, places, heads, kv_heads, 0, rows)
        return
    for chunk in prange(chunks):
        _write(keys, values, qkv, places, heads, kv_heads, rows * chunk // chunks, rows * (chunk + 1) // chunks)


@inline(ordered=True)
def _attend(count, ahead, out, out_row, query, keys, values, table, page, apart, start, stop, size, following, scale):
    """See _attend_type. count: how many heads, a literal; ahead: AHEAD for the type of keys and values."""
    literally(count)
    weights, totals, tops = stack(WEIGHTS), stack(TOTALS), stack(TOGETHER)
    lowest, factor, zeros = broadcast(np.float32(-np.inf)), broadcast(scale * LOG2_E), broadcast(np.float32(0))
    for i in range(count):
        store(advance(totals, i * LANES), zeros)
        tops[i] = np.float32(-np.inf)
        for d in range(size):
            out[i * out_row + d] = np.float32(0)
    for begin in range(start, stop, page):
        here = min(page, stop - begin)
        for t in range(0, here, BLOCK):
            tokens = min(BLOCK, here - t)
            place = table[begin // page] * apart + t * size
            if t + BLOCK < here:
                after = place + BLOCK * size
            elif begin + page < stop:
                after = table[begin // page + 1] * apart
            else:
                after = following
            rows = advance(values, place)
            for g in range(0, tokens, LANES):
                group = advance(keys, place + g // GROUP * GROUP * size + g % GROUP)
                further = g + ahead - (tokens + GROUP - 1) // GROUP * GROUP  # past the keys here come the values
                nearby = advance(group, ahead * size) if further < 0 else advance(rows, further * size)
                dot_group(count, advance(weights, g), BLOCK, query, group, size, nearby)
            for i in range(count):
                line, total = advance(weights, i * BLOCK), advance(totals, i * LANES)
                highs = lowest
                for g in range(0, tokens, LANES):
                    scores = multiply(load(advance(line, g), tokens - g, lowest), factor)
                    store(advance(line, g), scores)
                    highs = maximum(highs, scores)
                high = largest_lane(highs)
                if not (high <= tops[i]):  # true for NaN, which so reaches the logits and is seen there
                    shrink = exp2(tops[i] - high)
                    tops[i] = high
                    store(total, multiply(load(total, LANES, zeros), broadcast(shrink)))
                    for d in range(size):
                        out[i * out_row + d] *= shrink
                top, sums = broadcast(tops[i]), load(total, LANES, zeros)
                for g in range(0, tokens, LANES):
                    powers = exp2_lanes(subtract(load(advance(line, g), tokens - g, lowest), top))
                    store(advance(line, g), powers)
                    sums = add(sums, powers)
                store(total, sums)
            add_rows(count, out, out_row, weights, BLOCK, rows, tokens, size, advance(keys, after))
    for i in range(count):
        out[i * out_row + size] = tops[i]
        out[i * out_row + size + 1] = sum_of_lanes(load(advance(totals, i * LANES), LANES, zeros))


def _attend_type(numbers):
    """The signature of _attend: a few heads of one row that share keys and values, on the tokens start to stop - 1.

    out            a row for each head, out_row floats apart: the sum of weights times values (size,), then the largest
                   score (as an exponent of 2) and the sum of weights
    query          the first head's query (size,); the other heads' follow
    keys, values   addresses, of type `numbers` (FLOATS or HALVES), of these heads' rows in page 0 of the cache
    table          the page numbers of the text
    page           tokens in a page; apart: numbers from one page to the next, in keys as in values
    start          the first token of a page
    following      offset from keys, in numbers, of the keys that the next task reads first: these are prefetched
    """
    return types.void(P, N, P, numbers, numbers, INDICES, N, N, N, N, N, N, types.float32)


def _attend_of(numbers, count):
    ahead = AHEAD[numbers]

    def attend(out, out_row, query, keys, values, table, page, apart, start, stop, size, following, scale):
        _attend(
            count, ahead, out, out_row, query, keys, values, table, page, apart, start, stop, size, following, scale
        )

    return deferred(_attend_type(numbers), f"attend_{count}_{numbers.dtype}")(attend)


_ATTEND = {  # by the bytes of a number in keys and values, then by the number of heads less 1
    numbers.dtype.bitwidth // 8: [_attend_of(numbers, count) for count in range(1, TOGETHER + 1)]
    for numbers in (FLOATS, HALVES)
}


@intrinsic
def _call_attend(
    typingctx, address, out, out_row, query, keys, values, table, page, apart, start, stop, size, following, scale
):
    """Call one of the functions above by its address."""

    def codegen(context, builder, signature, arguments):
        llvm.call_address(builder, *arguments)
        return context.get_dummy_value()

    return types.void(N, *_attend_type(keys).args), codegen


@cache
def _together(heads, kv_heads, size):
    """How the heads that share keys are divided into tasks: (parts, larger, many, few).

    There are `parts` tasks, and the first `larger` of them have one head more than the rest. many and few are the
    addresses of the functions for the ones and the others.

    size  bytes of a number in keys and values
    """
    group = heads // kv_heads
    parts = (group + TOGETHER - 1) // TOGETHER
    smaller, larger = group // parts, group % parts
    attend = _ATTEND[size]
    return parts, larger, attend[smaller + (larger > 0) - 1].address, attend[smaller - 1].address


@linked(types.void(P, P, N, N, N), ordered=True)
def _put_together(out, results, row, pieces, size):
    """Combine a head's pieces, as _attend left them, `row` floats apart, to the attention's result: out (size,)."""
    top = np.float32(-np.inf)
    for p in range(pieces):
        high = results[p * row + size]
        if not (high <= top):
            top = high
    total = np.float32(0)
    for d in range(size):
        out[d] = np.float32(0)
    for p in range(pieces):
        piece = advance(results, p * row)
        weight = exp2(piece[size] - top)
        total += weight * piece[size + 1]
        for d in range(size):
            out[d] += weight * piece[d]
    inverse = np.float32(1) / total
    for d in range(size):
        out[d] *= inverse


@inline
def _cut(length, page, each):
    """How a text is cut: tokens in a piece (whole pages; the last piece may have fewer), and the number of pieces.

    It depends on the model and the text's length alone, never on the threads, and so do the bits of the result.

    each  tasks for each piece
    """
    pages, most = (length + page - 1) // page, max(1, TASKS // each)
    piece = (pages + most - 1) // most * page
    return piece, (length + piece - 1) // piece


@linked(types.void(TABLE, INDICES, N, INDICES, INDICES, N, N, N, N, N, N, N, N, N))
def _list_tasks(tasks, pages, most, slots, lengths, rows, page, size, heads, kv_heads, parts, larger, many, few):
    """Write the list of tasks, (tasks + 1, COLUMNS).

    Each task prefetches from PLACE of the one after it. The row after the last task is there for that; its PLACE is the
    last task's own.

    pages  (slots, most); the others as in decode_heads; the last four are from _together
    """
    group, at, result = heads // kv_heads, 0, 0
    for n in range(rows):
        piece, pieces = _cut(np.int64(lengths[n]), page, kv_heads * parts)
        for number in range(kv_heads * parts):
            kv_head, part = number // parts, number % parts
            some = group // parts + (1 if part < larger else 0)
            for p in range(pieces):
                tasks[at + ROW] = n
                tasks[at + HEAD] = kv_head * group + part * (group // parts) + min(part, larger)
                tasks[at + HEADS] = some
                tasks[at + FUNCTION] = many if part < larger else few
                tasks[at + START] = p * piece
                tasks[at + STOP] = min(np.int64(lengths[n]), (p + 1) * piece)
                tasks[at + PIECES] = pieces
                tasks[at + BASE] = kv_head * page * size
                first = np.int64(pages[slots[n] * most + p * piece // page])
                tasks[at + PLACE] = (first * kv_heads + kv_head) * page * size
                tasks[at + RESULT] = result + p
                at += COLUMNS
            result += some * pieces
    tasks[at + PLACE] = tasks[at - COLUMNS + PLACE]


@inline
def _finish(out, results, task, size):
    """Combine the pieces, all done, of each of a task's heads."""
    row = results.shape[1]
    for i in range(task[HEADS]):
        _put_together(
            advance(pointer(out), task[ROW] * out.shape[1] + (task[HEAD] + i) * size),
            advance(pointer(results), (task[RESULT] + i * task[PIECES]) * row), row, task[PIECES], size,
        )  # fmt: skip


@inline
def _one_task(out, results, tasks, qkv, keys, values, pages, slots, scale, number):
    task, following = tasks[number], tasks[number + 1, PLACE]
    kv_heads, page, size = values.shape[1:]
    begin = task[BASE]
    _call_attend(
        task[FUNCTION], advance(pointer(results), task[RESULT] * results.shape[1]), task[PIECES] * results.shape[1],
        advance(pointer(qkv), task[ROW] * qkv.shape[1] + task[HEAD] * size), advance(pointer(keys), begin),
        advance(pointer(values), begin), pointer(pages[slots[task[ROW]]]), page, kv_heads * page * size, task[START],
        task[STOP], size, following - begin, scale,
    )
    if task[PIECES] == 1:
        _finish(out, results, task, size)


@kernel(parallel=True, calls=linked)
def decode_heads(out, tasks, results, qkv, keys, values, pages, slots, lengths, heads, kv_heads, scale, together):
    """attention_decode with its scratch (tasks and results), and with what _together returns."""
    rate = np.float32(scale)
    parts, larger, many, few = together
    page, size = values.shape[2:]
    pieces = work = 0
    for n in range(slots.shape[0]):
        pieces += _cut(np.int64(lengths[n]), page, kv_heads * parts)[1]
        work += lengths[n] * out.shape[1]
    count = pieces * kv_heads * parts
    _list_tasks(
        pointer(tasks), pointer(pages), pages.shape[1], pointer(slots), pointer(lengths), slots.shape[0], page, size,
        heads, kv_heads, parts, larger, many, few,
    )
    if chunk_count(work) == 1:
        for number in range(count):
            _one_task(out, results, tasks, qkv, keys, values, pages, slots, rate, number)
    else:
        for number in prange(count):
            _one_task(out, results, tasks, qkv, keys, values, pages, slots, rate, np.int64(number))
    for number in range(count):
        if tasks[number, START] == 0 and tasks[number, PIECES] > 1:
            _finish(out, results, tasks[number], size)


def decode_scratch(rows, heads, kv_heads, head_size):
    """Scratch for attention_decode with up to `rows` rows: (tasks, results)."""
    parts = (heads // kv_heads + TOGETHER - 1) // TOGETHER
    pieces = rows * max(1, TASKS // (kv_heads * parts))  # at most
    tasks = np.empty((pieces * kv_heads * parts + 1, COLUMNS), np.int64)
    return tasks, np.empty((pieces * heads, (head_size + 2 + LINE - 1) // LINE * LINE), np.float32)


@prepared
def attention_decode(out, qkv, keys, values, pages, slots, lengths, heads, kv_heads, scale, scratch):
    """Each row attends to the first lengths[n] tokens of its slot. Its bits don't depend on the other rows.

    out          (N, H*D)         written
    qkv          (N, (H+2K)*D)    of the new tokens; only the queries are read
    keys         (pages, K, T / GROUP, D, GROUP)  as in kv_cache_write, which has written the new tokens' own before
    values       (pages, K, T, D)                 likewise
    pages        (slots, most)    the page numbers of each slot, in order
    slots        (N,)             the slot of each row
    lengths      (N,)             how many tokens the row sees, including its own; > 0
    scale        usually 1 / sqrt(D)
    scratch      from decode_scratch(N or more, H, K, D)
    """
    together = _together(heads, kv_heads, keys.itemsize)
    return decode_heads, (
        out, *scratch, qkv, keys, values, pages, slots, lengths, heads, kv_heads, scale, together
    )  # fmt: skip
