"""Folders in Hugging Face's format with tiny random models."""

import json

import safetensors.numpy

from fastllm.formats.huggingface import to_huggingface
from fastllm.formats.huggingface_config import config_from_huggingface
from fastllm.parameters import Parameters, initialise

LLAMA = {
    "model_type": "llama", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 10, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 5, "tie_word_embeddings": True,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "vocab_size": 11, "n_positions": 5, "n_embd": 6, "n_layer": 1, "n_head": 2}


def parameters_of(config, seed=0):
    parameters = Parameters(config)
    initialise(parameters, config, seed)
    return parameters


def make_folder(folder, fields=LLAMA, tensors=None, generation=None):
    """Of Hugging Face's, with random weights, or with changed tensors."""
    folder.mkdir(exist_ok=True)
    config = config_from_huggingface(fields)
    own = to_huggingface(config, parameters_of(config))
    safetensors.numpy.save_file(own if tensors is None else tensors(own), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(fields))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder
