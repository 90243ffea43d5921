"""Adapters of random numbers for tiny models, their files, and how they are changed."""

import dataclasses
import json

import numpy as np
import safetensors.numpy

import fastllm
from fastllm.adapters import write_adapter
from fastllm.lora import AdapterParameters, LoRAConfig, additions_of

# Two programs sum in other orders: logits are of size 10.
TOLERANCE = 1e-4
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

LLAMA = fastllm.ModelConfig(
    vocab_size=23, width=8, hidden=12, layers=2, heads=4, kv_heads=2, context=9, norm="rms_norm", activation="swiglu",
    positions="rope", attention_bias=False, feed_forward_bias=False,
)  # fmt: skip
PAIRS = dataclasses.replace(LLAMA, rope_interleaved=True)
GPT2 = fastllm.ModelConfig(vocab_size=23, width=8, hidden=12, layers=2, heads=2, context=9)
OURS = fastllm.preset("rustgpt", vocab_size=23, width=8, hidden=12, layers=2, heads=2, context=9)
CONFIGS = {"llama": LLAMA, "llama on pairs": PAIRS, "gpt2": GPT2, "without a name": OURS}


def filled(config, additions, seed=0):
    """An adapter of random numbers."""
    adapter = AdapterParameters(config, additions)
    adapter.flat[...] = np.random.default_rng(seed).standard_normal(adapter.flat.size)
    return adapter


def write(folder, config=LLAMA, lora=None, base="base"):
    folder.mkdir(parents=True, exist_ok=True)
    adapter = filled(config, additions_of(config, lora or LoRAConfig(rank=3)))
    write_adapter(folder, config, adapter, base)
    return adapter


def rewrite(folder, **changes):
    """The configuration with other fields; None takes one out."""
    fields = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))


def rewrite_weights(folder, change):
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    changed = change(tensors)
    safetensors.numpy.save_file(tensors if changed is None else changed, folder / WEIGHTS)


def changes_of(adapter):
    return {name: adapter.change(name) for name in adapter.additions}


def assert_same_changes(got, expected, tolerance=1e-6):
    assert got.keys() == expected.keys()
    for name, change in expected.items():
        np.testing.assert_allclose(got[name], change, rtol=tolerance, atol=tolerance * np.abs(change).max())
