"""Small models to write as GGUF."""

import numpy as np

from fastllm import ModelConfig
from fastllm.parameters import Parameters, initialise


def a_model(seed=0, **changes):
    """A configuration of Llama's and random parameters, no two alike."""
    fields = {
        "vocab_size": 61, "width": 64, "hidden": 96, "layers": 2, "heads": 4, "kv_heads": 2, "context": 128,
        "norm": "rms_norm", "activation": "swiglu", "positions": "rope", "rope_interleaved": True,
        "attention_bias": False, "feed_forward_bias": False, "tied_head": False,
    }  # fmt: skip
    config = ModelConfig(**{**fields, **changes})
    parameters = Parameters(config)
    initialise(parameters, config, seed)
    parameters.flat += np.random.default_rng(seed).standard_normal(len(parameters.flat), np.float32) / 100
    return config, parameters


def llama3(**changes):
    scaling = {
        "type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    return scaling | changes
