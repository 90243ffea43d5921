"""Cases of rotary positions, attention and the cache of keys and values."""

from types import SimpleNamespace

import numpy as np

from .. import reference
from ..attention import attention_pieces
from ..cached_rows import GROUP
from ..jit import MAX_CHUNKS
from .case import Scratch, case, integers, normal, unwritten

ROPE = [
    {"rows": rows, "heads": heads, "kv_heads": kv_heads, "head_size": head_size, "interleaved": interleaved}
    for rows, heads, kv_heads, head_size in [(1, 1, 1, 8), (7, 3, 1, 16), (65, 4, 2, 48), (7, 2, 2, 64)]
    for interleaved in [False, True]
]
ROPE_REALISTIC = {
    "nano 1024x6x64": {"rows": 1024, "heads": 6, "kv_heads": 6, "head_size": 64},
    "smollm2 1024x9x64": {"rows": 1024, "heads": 9, "kv_heads": 3, "head_size": 64, "interleaved": True},
}


def rotated_elements(s: SimpleNamespace) -> int:
    return s.rows * (s.heads + s.kv_heads) * s.head_size


def angles(rng, context, head_size):
    """cos and sin of random angles (context, D/2)."""
    angle = rng.uniform(0, 2 * np.pi, (context, head_size // 2))
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


@case(
    ROPE,
    ROPE_REALISTIC,
    flops=lambda s: 3 * rotated_elements(s),
    updated=("qkv",),
    bytes_moved=lambda s: 4 * (2 * rotated_elements(s) + s.rows),
)
def rope_forward(rng, rows, heads, kv_heads, head_size, interleaved=False):
    context = rows + 3
    cos, sin = angles(rng, context, head_size)
    return {
        "qkv": normal(rng, rows, (heads + 2 * kv_heads) * head_size),
        "cos": cos,
        "sin": sin,
        "positions": integers(rng, context, rows),
        "heads": heads + kv_heads,
        "interleaved": interleaved,
    }


@case(
    ROPE,
    ROPE_REALISTIC,
    flops=lambda s: 3 * rotated_elements(s),
    updated=("dqkv",),
    bytes_moved=lambda s: 4 * (2 * rotated_elements(s) + s.rows),
    forward="rope_forward",
)
def rope_backward(rng, rows, heads, kv_heads, head_size, interleaved=False):
    arguments = rope_forward(rng, rows, heads, kv_heads, head_size, interleaved)
    return {"dqkv": arguments.pop("qkv")} | arguments


# Lengths that leave blocks and tiles partly filled, and sequences of a single token.
ATTENTION = [
    {"lengths": (1,), "heads": 1, "kv_heads": 1, "head_size": 8},
    {"lengths": (1, 7, 1), "heads": 2, "kv_heads": 2, "head_size": 16},
    {"lengths": (65, 1, 33), "heads": 4, "kv_heads": 2, "head_size": 48},
    {"lengths": (130, 7), "heads": 3, "kv_heads": 1, "head_size": 64},
    {"lengths": (78,), "heads": 1, "kv_heads": 1, "head_size": 128},
    {"lengths": (1100,), "heads": 1, "kv_heads": 1, "head_size": 16},
    {"lengths": (530,), "heads": 2, "kv_heads": 1, "head_size": 8},
    {"lengths": (5, 850), "heads": 2, "kv_heads": 2, "head_size": 8},
    {"lengths": (300, 1, 900, 513), "heads": 4, "kv_heads": 1, "head_size": 24},
]
ATTENTION_REALISTIC = {
    "rustgpt 78x1x128": {"lengths": (78,), "heads": 1, "kv_heads": 1, "head_size": 128},
    "nano 4x256x6x64": {"lengths": (256,) * 4, "heads": 6, "kv_heads": 6, "head_size": 64},
    "gpt2 1024x12x64": {"lengths": (1024,), "heads": 12, "kv_heads": 12, "head_size": 64},
    "smollm2 2x512x9x64": {"lengths": (512, 512), "heads": 9, "kv_heads": 3, "head_size": 64},
}


def visible_elements(s: SimpleNamespace) -> int:
    """The number of scores on or below the diagonal, in all heads, times the head size."""
    return sum(n * (n + 1) // 2 for n in s.lengths) * s.heads * s.head_size


@case(
    ATTENTION,
    ATTENTION_REALISTIC,
    terms=lambda s: s.head_size + max(s.lengths),
    flops=lambda s: 4 * visible_elements(s),
    written=("out", "lse"),
)
def attention_forward(rng, lengths, heads, kv_heads, head_size):
    rows = sum(lengths)
    return {
        "out": unwritten(rows, heads * head_size),
        "lse": unwritten(rows, heads),
        "qkv": normal(rng, rows, (heads + 2 * kv_heads) * head_size),
        "starts": np.cumsum((0, *lengths), dtype=np.int32),
        "heads": heads,
        "kv_heads": kv_heads,
        "scale": head_size**-0.5,
        "scratch": Scratch.ATTENTION,
    }


@case(
    ATTENTION,
    ATTENTION_REALISTIC,
    terms=lambda s: s.head_size + max(s.lengths) * s.heads // s.kv_heads,
    flops=lambda s: 10 * visible_elements(s),
    written=("dqkv",),
    forward="attention_forward",
)
def attention_backward(rng, lengths, heads, kv_heads, head_size):
    saved = attention_forward(rng, lengths, heads, kv_heads, head_size)
    reference.attention_forward(**saved)
    dqkv = unwritten(*saved["qkv"].shape)
    dout = normal(rng, *saved["out"].shape)
    scratch, dq_pieces = saved.pop("scratch"), unwritten(sum(lengths), attention_pieces(heads * head_size))
    return {"dqkv": dqkv, "dout": dout} | saved | {"dq_pieces": dq_pieces, "scratch": scratch}


PAGED = [
    {"lengths": (1,), "page": 16, "heads": 1, "kv_heads": 1, "head_size": 8},
    {"lengths": (37, 1, 20), "page": 16, "heads": 4, "kv_heads": 2, "head_size": 16},
    {"lengths": (65, 33), "page": 48, "heads": 3, "kv_heads": 1, "head_size": 48},
    {"lengths": (300, 1), "page": 128, "heads": 2, "kv_heads": 2, "head_size": 64},
    {"lengths": (40, 200, 1), "page": 16, "heads": 14, "kv_heads": 2, "head_size": 24},
    {"lengths": (700, 5), "page": 16, "heads": 5, "kv_heads": 1, "head_size": 64},
    {"lengths": (15, 270, 17), "page": 256, "heads": 2, "kv_heads": 2, "head_size": 151},
    {"lengths": (33, 300), "page": 48, "heads": 4, "kv_heads": 2, "head_size": 64, "is_half": True},
    {"lengths": (15, 270, 17), "page": 256, "heads": 3, "kv_heads": 1, "head_size": 41, "is_half": True},
]
CACHE_REALISTIC = {
    "gpt2 1x1000x12x64": {"lengths": (1000,), "page": 128, "heads": 12, "kv_heads": 12, "head_size": 64},
    "smollm2 8x500x9x64": {"lengths": (500,) * 8, "page": 128, "heads": 9, "kv_heads": 3, "head_size": 64},
    "smollm2 8x500x9x64 float16": {
        "lengths": (500,) * 8, "page": 128, "heads": 9, "kv_heads": 3, "head_size": 64, "is_half": True,
    },
}  # fmt: skip


def cached_elements(s: SimpleNamespace) -> int:
    return sum(s.lengths) * s.kv_heads * s.head_size


def cached_bytes(s: SimpleNamespace) -> int:
    """Bytes of the keys and values of all cached tokens."""
    return 2 * (2 if vars(s).get("is_half") else 4) * cached_elements(s)


def as_kept(numbers, is_half):
    """Numbers as a cache stores them: float32, or uint16 with the bits of float16."""
    return numbers.astype(np.float16).view(np.uint16) if is_half else numbers


def paged(rng, lengths, page, kv_heads, head_size, is_half=False):
    """keys (pages, K, T/G, D, G), values (pages, K, T, D) and pages (slots, most) for slots of `lengths` tokens.

    The pages are in random order. What belongs to no token is NaN, and unused page numbers are invalid: a kernel must
    not let them reach its result.
    """
    counts = [-(-length // page) for length in lengths]
    total, most = sum(counts) + 2, max(counts) + 1
    order = rng.permutation(total)[: sum(counts)].astype(np.int32)
    keys = np.full((total, kv_heads, page // GROUP, head_size, GROUP), np.nan, np.float32)
    values = np.full((total, kv_heads, page, head_size), np.nan, np.float32)
    pages = np.full((len(lengths), most), 1 << 30, np.int32)
    for slot, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        mine, order = order[:count], order[count:]
        pages[slot, :count] = mine
        whole = np.full((2, kv_heads, count * page, head_size), np.nan, np.float32)
        whole[:, :, :length] = normal(rng, 2, kv_heads, length, head_size)
        paged_keys, paged_values = whole.reshape(2, kv_heads, count, page, head_size).swapaxes(1, 2)
        keys[mine] = paged_keys.reshape(count, kv_heads, page // GROUP, GROUP, head_size).swapaxes(3, 4)
        values[mine] = paged_values
    return as_kept(keys, is_half), as_kept(values, is_half), pages


@case(
    PAGED,
    CACHE_REALISTIC,
    flops=lambda s: 0,
    updated=("keys", "values"),
    bytes_moved=lambda s: 4 * 2 * cached_elements(s) + cached_bytes(s),
)
def kv_cache_write(rng, lengths, page, heads, kv_heads, head_size, is_half=False):
    """The first half of the rows go to places in random order, the rest to consecutive places."""
    rows = sum(lengths)
    total = -(-rows // page) + 1
    places = np.arange(total * page - rows, total * page, dtype=np.int32)
    rng.shuffle(places[: rows // 2])
    return {
        "keys": as_kept(normal(rng, total, kv_heads, page // GROUP, head_size, GROUP), is_half),
        "values": as_kept(normal(rng, total, kv_heads, page, head_size), is_half),
        "qkv": normal(rng, rows, (heads + 2 * kv_heads) * head_size),
        "places": places,
        "heads": heads,
        "kv_heads": kv_heads,
    }


@case(
    PAGED,
    CACHE_REALISTIC,
    terms=lambda s: s.head_size + max(s.lengths),
    flops=lambda s: 4 * sum(s.lengths) * s.heads * s.head_size,
    written=("out",),
    bytes_moved=lambda s: cached_bytes(s) + 4 * 2 * len(s.lengths) * s.heads * s.head_size,
)
def attention_decode(rng, lengths, page, heads, kv_heads, head_size, is_half=False):
    """A row for each slot, the last slot first, and another for slot 0 that sees one token less, but at least one."""
    keys, values, pages = paged(rng, lengths, page, kv_heads, head_size, is_half)
    slots = np.array([*reversed(range(len(lengths))), 0], np.int32)
    seen = np.array(lengths, np.int32)[slots]
    seen[-1] = max(1, seen[-1] - 1)
    return {
        "out": unwritten(len(slots), heads * head_size),
        "qkv": normal(rng, len(slots), (heads + 2 * kv_heads) * head_size),
        "keys": keys,
        "values": values,
        "pages": pages,
        "slots": slots,
        "lengths": seen,
        "heads": heads,
        "kv_heads": kv_heads,
        "scale": head_size**-0.5,
        "scratch": Scratch.DECODE,
    }


PREFILL_REALISTIC = {
    "smollm2 256 after 256 9x64": {
        "lengths": (512,), "new": (256,), "page": 128, "heads": 9, "kv_heads": 3, "head_size": 64,
    },
}  # fmt: skip


@case(
    [
        {**PAGED[0], "new": (1,)},
        {**PAGED[1], "new": (7, 1, 2)},
        {**PAGED[2], "new": (1, 33)},
        {**PAGED[3], "new": (290, 1)},
        {"lengths": (700, 530), "new": (400, 20), "page": 256, "heads": 2, "kv_heads": 1, "head_size": 16},
        {**PAGED[-2], "new": (7, 290)},
        {**PAGED[-1], "new": (1, 33, 2)},
    ],
    PREFILL_REALISTIC,
    terms=lambda s: s.head_size + max(s.lengths),
    flops=lambda s: 4 * s.heads * s.head_size * sum(
        n * (length - n) + n * (n + 1) // 2 for n, length in zip(s.new, s.lengths, strict=True)
    ),
    written=("out",),
)
def attention_prefill(rng, lengths, new, page, heads, kv_heads, head_size, is_half=False):
    """The rows are the last new[s] tokens of each slot s, the last slot first."""
    keys, values, pages = paged(rng, lengths, page, kv_heads, head_size, is_half)
    return {
        "out": unwritten(sum(new), heads * head_size),
        "qkv": normal(rng, sum(new), (heads + 2 * kv_heads) * head_size),
        "keys": keys,
        "values": values,
        "pages": pages,
        "slots": np.arange(len(new), dtype=np.int32)[::-1].copy(),
        "starts": np.cumsum((0, *new[::-1]), dtype=np.int32),
        "before": np.array([length - n for length, n in zip(lengths, new, strict=True)], np.int32)[::-1].copy(),
        "heads": heads,
        "kv_heads": kv_heads,
        "scale": head_size**-0.5,
        "scratch": Scratch.ATTENTION,
    }


HEAD_NORM = [
    {"rows": 1, "heads": 1, "kv_heads": 1, "head_size": 8},
    {"rows": 7, "heads": 4, "kv_heads": 2, "head_size": 16},
    {"rows": 131, "heads": 3, "kv_heads": 1, "head_size": 65},
]
HEAD_NORM_REALISTIC = {"qwen3 256x16x128": {"rows": 256, "heads": 16, "kv_heads": 8, "head_size": 128}}


@case(
    HEAD_NORM,
    HEAD_NORM_REALISTIC,
    terms=lambda s: s.head_size,
    flops=lambda s: 4 * rotated_elements(s),
    written=("out", "rstd"),
)
def head_norm_forward(rng, rows, heads, kv_heads, head_size):
    width = (heads + 2 * kv_heads) * head_size
    return {
        "out": unwritten(rows, width),
        "rstd": unwritten(rows, heads + kv_heads),
        "x": normal(rng, rows, width),
        "query_weight": normal(rng, head_size),
        "key_weight": normal(rng, head_size),
        "heads": heads,
        "kv_heads": kv_heads,
        "eps": 1e-6,
    }


@case(
    HEAD_NORM,
    HEAD_NORM_REALISTIC,
    terms=lambda s: s.head_size + s.rows * s.heads,
    flops=lambda s: 10 * rotated_elements(s),
    written=("dx",),
    updated=("dquery_weight", "dkey_weight"),
    forward="head_norm_forward",
)
def head_norm_backward(rng, rows, heads, kv_heads, head_size):
    saved = head_norm_forward(rng, rows, heads, kv_heads, head_size)
    reference.head_norm_forward(**saved)
    return {
        "dx": unwritten(*saved["x"].shape),
        "dquery_weight": normal(rng, head_size),
        "dkey_weight": normal(rng, head_size),
        "dout": normal(rng, *saved["x"].shape),
        "x": saved["x"],
        "query_weight": saved["query_weight"],
        "key_weight": saved["key_weight"],
        "rstd": saved["rstd"],
        "heads": heads,
        "kv_heads": kv_heads,
        "partials": unwritten(MAX_CHUNKS, 2, head_size),
    }
