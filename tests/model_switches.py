"""Every switch of ModelConfig, and few configurations in which every two settings meet."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np

import fastllm
from fastllm.config import ACTIVATIONS, NORM_POSITIONS
from fastllm.datasets import PackedBatch

LLAMA3 = {
    "type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

# Switches that only matter together stand together: a bias of LayerNorm, the kinds of RoPE.
SWITCHES: dict[str, dict[str, dict[str, Any]]] = {
    "norm": {
        "layernorm": {"norm": "layernorm"},
        "layernorm without bias": {"norm": "layernorm", "norm_bias": False},
        "rms_norm": {"norm": "rms_norm", "norm_eps": 1e-3},
    },
    "norm_position": {name: {"norm_position": name} for name in NORM_POSITIONS},
    "final_norm": {str(value): {"final_norm": value} for value in (True, False)},
    "activation": {name: {"activation": name} for name in ACTIVATIONS},
    "positions": {
        "learned": {"positions": "learned"},
        "sinusoidal": {"positions": "sinusoidal"},
        "none": {"positions": "none"},
        "rope": {"positions": "rope", "rope_theta": 50.0},
        "rope interleaved": {"positions": "rope", "rope_interleaved": True},
        "rope linear": {"positions": "rope", "rope_scaling": {"type": "linear", "factor": 2.5}},
        "rope llama3": {"positions": "rope", "rope_scaling": LLAMA3, "rope_interleaved": True},
    },
    "heads": {
        "one": {"heads": 1},
        "several": {"heads": 3},
        "grouped": {"heads": 6, "kv_heads": 2},
        "wide": {"heads": 2, "kv_heads": 1, "head_size": 10},
    },
    "attention_bias": {str(value): {"attention_bias": value} for value in (True, False)},
    "attention_output": {
        "with bias": {"attention_output_bias": True},
        "without bias": {"attention_output_bias": False},
        "none": {"attention_output": False},
    },
    "feed_forward_bias": {str(value): {"feed_forward_bias": value} for value in (True, False)},
    "tied_head": {str(value): {"tied_head": value} for value in (True, False)},
    "head_bias": {str(value): {"head_bias": value} for value in (True, False)},
    "dropout": {"off": {"dropout": 0.0}, "on": {"dropout": 0.3}},
}
SIZES = {"vocab_size": 19, "width": 12, "hidden": 11, "layers": 2, "context": 9}

Row = dict[str, str]
Pair = tuple[tuple[str, str], tuple[str, str]]


def is_valid(row: Row) -> bool:
    """Without an output layer, the heads together must be as wide as the model."""
    return not (row.get("heads") == "wide" and row.get("attention_output") == "none")


def pairs_of(row: Row) -> set[Pair]:
    return set(combinations(((name, row[name]) for name in SWITCHES), 2))


def all_pairs() -> set[Pair]:
    """Every two settings of different switches that can stand together."""
    return {
        ((a, one), (b, other))
        for a, b in combinations(SWITCHES, 2)
        for one in SWITCHES[a]
        for other in SWITCHES[b]
        if is_valid({a: one, b: other})
    }


def covering_rows() -> Iterator[Row]:
    """Rows until every pair has stood in one; each the best of some random rows around a pair still missing."""
    choose = random.Random(0)
    missing = all_pairs()
    while missing:
        pair = dict(min(missing))
        rows = [{name: choose.choice(list(values)) for name, values in SWITCHES.items()} | pair for _ in range(100)]
        best = max(filter(is_valid, rows), key=lambda row: len(pairs_of(row) & missing))
        missing -= pairs_of(best)
        yield best


ROWS = list(covering_rows())


def make_config(row: Row) -> fastllm.ModelConfig:
    fields = dict(SIZES)
    for switch, setting in row.items():
        fields |= SWITCHES[switch][setting]
    return fastllm.ModelConfig(**fields)


def make_model(config: fastllm.ModelConfig, backend: str, dtype: type = np.float32, seed: int = 0) -> fastllm.Model:
    """A model whose weights, norms and biases are all random, and its gradients noise, which must stay in."""
    model = fastllm.Model(config, backend=backend, dtype=dtype)
    rng = np.random.default_rng(seed)
    for name, view in model.parameters.items():
        middle = 1.0 if "norm.weight" in name else 0.0
        view[...] = rng.normal(middle, 0.3, view.shape).astype(np.float32)
    model.gradients.flat[...] = rng.normal(size=model.gradients.flat.shape).astype(np.float32)
    return model


def make_batch(config: fastllm.ModelConfig, lengths: tuple[int, ...], seed: int = 0) -> PackedBatch:
    """Random sequences; a quarter of the tokens, and all of the second sequence, have no target."""
    rng = np.random.default_rng(seed)
    rows = sum(lengths)
    starts = np.cumsum([0, *lengths]).astype(np.int32)
    tokens, targets = rng.integers(0, config.vocab_size, (2, rows), dtype=np.int32)
    targets[rng.random(rows) < 0.25] = -1
    if len(lengths) > 2:
        targets[starts[1] : starts[2]] = -1
    targets[-1] = 0
    return PackedBatch(tokens, targets, starts)
