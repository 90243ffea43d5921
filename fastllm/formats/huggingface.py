"""Hugging Face's names for the parameters of GPT-2, Llama, Mistral, Qwen2 and Qwen3, and ours, both ways.

    GPT-2    transformer.h.0.attn.c_attn.weight (C, 3C)   blocks.0.attention.query | key | value.weight (C, C)
    Llama    model.layers.0.self_attn.q_proj.weight       blocks.0.attention.query.weight, the same array

GPT-2's linear weights are (in, out), and its query, key and value are one tensor. The others share Llama's names; their
weights are (out, in), laid out for RoPE on the halves (i, i + D/2) of a head. When a model of ours with RoPE on the
pairs (2i, 2i + 1) is written, the rows of queries and keys are reordered. Numbers only change places, so gradients can
be mapped in the same way as parameters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import FormatError
from ..parameters import shapes_of
from ..small_files import brief
from .huggingface_config import model_type
from .modules import Module, check, check_layers, layout_of
from .rows import row_order

Arrays = Mapping[str, NDArray[Any]]

# Causal masks and RoPE's tables, which older checkpoints hold besides the parameters.
BUFFERS = re.compile(
    r"transformer\.h\.\d+\.attn\.(bias|masked_bias)|"
    r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.((original_)?inv_freq|cos_cached|sin_cached)"
)
HEAD = "lm_head.weight"

MODULES = {
    "gpt2": (
        Module("transformer.wte", ("embedding.token",)),
        Module("transformer.wpe", ("embedding.position",)),
        Module("transformer.h.{}.ln_1", ("blocks.{}.attention_norm",)),
        Module(
            "transformer.h.{}.attn.c_attn",
            ("blocks.{}.attention.query", "blocks.{}.attention.key", "blocks.{}.attention.value"),
            transposed=True,
        ),
        Module("transformer.h.{}.attn.c_proj", ("blocks.{}.attention.output",), transposed=True),
        Module("transformer.h.{}.ln_2", ("blocks.{}.feed_forward_norm",)),
        Module("transformer.h.{}.mlp.c_fc", ("blocks.{}.feed_forward.up",), transposed=True),
        Module("transformer.h.{}.mlp.c_proj", ("blocks.{}.feed_forward.down",), transposed=True),
        Module("transformer.ln_f", ("final_norm",)),
        Module("lm_head", ("head",)),
    ),
    "llama": (
        Module("model.embed_tokens", ("embedding.token",)),
        Module("model.layers.{}.input_layernorm", ("blocks.{}.attention_norm",)),
        Module("model.layers.{}.self_attn.q_proj", ("blocks.{}.attention.query",)),
        Module("model.layers.{}.self_attn.k_proj", ("blocks.{}.attention.key",)),
        Module("model.layers.{}.self_attn.v_proj", ("blocks.{}.attention.value",)),
        Module("model.layers.{}.self_attn.o_proj", ("blocks.{}.attention.output",)),
        Module("model.layers.{}.self_attn.q_norm", ("blocks.{}.attention.query_norm",)),
        Module("model.layers.{}.self_attn.k_norm", ("blocks.{}.attention.key_norm",)),
        Module("model.layers.{}.post_attention_layernorm", ("blocks.{}.feed_forward_norm",)),
        Module("model.layers.{}.mlp.gate_proj", ("blocks.{}.feed_forward.gate",)),
        Module("model.layers.{}.mlp.up_proj", ("blocks.{}.feed_forward.up",)),
        Module("model.layers.{}.mlp.down_proj", ("blocks.{}.feed_forward.down",)),
        Module("model.norm", ("final_norm",)),
        Module("lm_head", ("head",)),
    ),
}
for _like_llama in ("mistral", "qwen2", "qwen3"):
    MODULES[_like_llama] = MODULES["llama"]

T = TypeVar("T")


def from_huggingface(config: ModelConfig, tensors: Arrays) -> dict[str, NDArray[np.float32]]:
    """Our parameters from a checkpoint's tensors: float32, views where no cast is needed.

    config   as config_from_huggingface returns it
    tensors  the prefix "transformer." or "model." may be missing, as in checkpoints of a model without head

    Raises FormatError for a missing, unknown or non-float tensor and for a wrong shape.
    """
    given = needed(config, tensors)
    _check_floats(given)
    return {name: array.astype(np.float32, copy=False) for name, array in renamed(config, given).items()}


def needed(config: ModelConfig, tensors: Mapping[str, T]) -> dict[str, T]:
    """A checkpoint's tensors under their full names, without those that the model doesn't use. Raises FormatError.

    A tied embedding that is stored only as the head gets its own name.
    """
    _, embedding, _ = head_and_embedding(config)
    prefix = embedding.partition(".")[0] + "."
    if not any(name.startswith(prefix) for name in tensors):
        tensors = {name if name.startswith("lm_head.") else prefix + name: array for name, array in tensors.items()}
    given = {name: array for name, array in tensors.items() if not _is_spare(name, config)}
    if config.tied_head and embedding not in given and HEAD in tensors:
        given[embedding] = tensors[HEAD]  # the same tensor under the head's name
    check_layers(config, given)
    return given


def has_its_own_head(config: ModelConfig, tensors: Arrays) -> bool:
    """Whether a head is stored that differs from the embedding: then it isn't tied, whatever config.json says.

    As in transformers 5.
    """
    head, *embeddings = map(tensors.get, head_and_embedding(config))
    embedding = next((array for array in embeddings if array is not None), None)
    if not config.tied_head or head is None or embedding is None:
        return False
    return not np.array_equal(head, embedding)


def head_and_embedding(config: ModelConfig) -> tuple[str, str, str]:
    """Names of the head's weight, the token embedding, and the token embedding where the prefix is missing."""
    embedding = f"{MODULES[model_type(config)][0].theirs}.weight"
    return HEAD, embedding, embedding.partition(".")[2]


def renamed(config: ModelConfig, given: Arrays) -> dict[str, NDArray[Any]]:
    """Our parameters from the tensors that `needed` returns: views of them, of the same dtype.

    Raises FormatError for a missing or unknown tensor and for a wrong shape.
    """
    layout = layout_of(MODULES[model_type(config)], config)
    check(given, {tensor.name: tensor.shape for tensor in layout})
    parameters: dict[str, NDArray[Any]] = {}
    for tensor in layout:
        stacked = given[tensor.name].T if tensor.transposed else given[tensor.name]
        parameters.update(zip(tensor.ours, np.split(stacked, tensor.rows), strict=True))
    return parameters


def to_huggingface(config: ModelConfig, parameters: Arrays) -> dict[str, NDArray[Any]]:
    """A checkpoint's tensors from our parameters: C-contiguous, views where the layout is the same.

    Raises FormatError for a model whose architecture Hugging Face lacks, a missing, unknown or non-float parameter,
    and a wrong shape.
    """
    layout = layout_of(MODULES[model_type(config)], config)
    check(parameters, shapes_of(config))
    _check_floats(parameters)
    tensors = {}
    for tensor in layout:
        parts = [in_halves(config, part, parameters[part]) for part in tensor.ours]
        stacked = np.concatenate(parts) if len(parts) > 1 else parts[0]
        tensors[tensor.name] = np.ascontiguousarray(stacked.T if tensor.transposed else stacked)
    return tensors


def in_halves(config: ModelConfig, name: str, array: NDArray[Any]) -> NDArray[Any]:
    """One of our parameters, laid out for RoPE on the halves of a head: a copy if its rows are reordered."""
    order = row_order(config, name, len(array), interleaved=False)
    return array if order is None else array[order]


def _is_spare(name: str, config: ModelConfig) -> bool:
    """Whether a checkpoint may hold a tensor of this name although the model doesn't use it."""
    return BUFFERS.fullmatch(name) is not None or (config.tied_head and name == HEAD)


def _check_floats(given: Arrays) -> None:
    for name, array in given.items():
        if not np.issubdtype(array.dtype, np.floating):
            raise FormatError(f"{brief(name)} must be of floats; got {array.dtype}; use a model that isn't quantised")
