"""Cases of rotary positions, attention and the cache of keys and values."""

from types import SimpleNamespace

import numpy as np

from .. import reference
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


# Lengths beside every block size a kernel may use, and sequences of a single token.
ATTENTION = [
    {"lengths": (1,), "heads": 1, "kv_heads": 1, "head_size": 8},
    {"lengths": (1, 7, 1), "heads": 2, "kv_heads": 2, "head_size": 16},
    {"lengths": (65, 1, 33), "heads": 4, "kv_heads": 2, "head_size": 48},
    {"lengths": (130, 7), "heads": 3, "kv_heads": 1, "head_size": 64},
    {"lengths": (78,), "heads": 1, "kv_heads": 1, "head_size": 128},
]
ATTENTION_REALISTIC = {
    "rustgpt 78x1x128": {"lengths": (78,), "heads": 1, "kv_heads": 1, "head_size": 128},
    "nano 4x256x6x64": {"lengths": (256,) * 4, "heads": 6, "kv_heads": 6, "head_size": 64},
    "gpt2 1024x12x64": {"lengths": (1024,), "heads": 12, "kv_heads": 12, "head_size": 64},
    "smollm2 2x512x9x64": {"lengths": (512, 512), "heads": 9, "kv_heads": 3, "head_size": 64},
}


def visible_elements(s: SimpleNamespace) -> int:
    """Scores below or on the diagonal, times the head size."""
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
    return {"dqkv": dqkv, "dout": dout} | saved


CACHE = [
    {"lengths": (1,), "capacity": 1, "heads": 1, "kv_heads": 1, "head_size": 8},
    {"lengths": (7, 1, 5), "capacity": 7, "heads": 4, "kv_heads": 2, "head_size": 16},
    {"lengths": (65, 33), "capacity": 70, "heads": 3, "kv_heads": 1, "head_size": 48},
    {"lengths": (300,), "capacity": 301, "heads": 2, "kv_heads": 2, "head_size": 64},
]
CACHE_REALISTIC = {
    "gpt2 1x1000x12x64": {"lengths": (1000,), "capacity": 1024, "heads": 12, "kv_heads": 12, "head_size": 64},
    "smollm2 8x500x9x64": {
        "lengths": (500,) * 8,
        "capacity": 512,
        "heads": 9,
        "kv_heads": 3,
        "head_size": 64,
    },
}


def cached_elements(s: SimpleNamespace) -> int:
    return sum(s.lengths) * s.kv_heads * s.head_size


@case(
    CACHE,
    CACHE_REALISTIC,
    flops=lambda s: 0,
    updated=("keys", "values"),
    bytes_moved=lambda s: 4 * 4 * cached_elements(s),
)
def kv_cache_write(rng, lengths, capacity, heads, kv_heads, head_size):
    """The rows of each sequence go to a slot, from its first position on; slots are in reverse order."""
    cache = (len(lengths), capacity, kv_heads * head_size)
    return {
        "keys": normal(rng, *cache),
        "values": normal(rng, *cache),
        "qkv": normal(rng, sum(lengths), (heads + 2 * kv_heads) * head_size),
        "slots": np.repeat(np.arange(len(lengths), dtype=np.int32)[::-1], lengths),
        "positions": np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        "heads": heads,
        "kv_heads": kv_heads,
    }


@case(
    CACHE,
    CACHE_REALISTIC,
    terms=lambda s: s.head_size + max(s.lengths),
    flops=lambda s: 4 * sum(s.lengths) * s.heads * s.head_size,
    written=("out",),
    bytes_moved=lambda s: 4 * 2 * (cached_elements(s) + len(s.lengths) * s.heads * s.head_size),
)
def attention_decode(rng, lengths, capacity, heads, kv_heads, head_size):
    """The cache is NaN beyond each length: what lies there must not be looked at."""
    keys, values = normal(rng, 2, len(lengths), capacity, kv_heads * head_size)
    for slot, length in enumerate(lengths):
        keys[slot, length:] = values[slot, length:] = np.nan
    return {
        "out": unwritten(len(lengths), heads * head_size),
        "qkv": normal(rng, len(lengths), (heads + 2 * kv_heads) * head_size),
        "keys": keys,
        "values": values,
        "lengths": np.array(lengths, dtype=np.int32),
        "heads": heads,
        "kv_heads": kv_heads,
        "scale": head_size**-0.5,
    }
