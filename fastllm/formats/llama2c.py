"""llama2.c's legacy checkpoint, version 0 of its export (github.com/karpathy/llama2.c, export.py and run.c).

    7 int32    width, hidden, layers, heads, kv_heads, vocabulary (negative: the head is untied), context
    float32    token embedding
               each of these for all layers: attention norm, query, key, value, output,
               feed-forward norm, gate, down, up
               final norm, cosines and sines of RoPE, head if untied

All little-endian, without padding. Linear weights are (out, in). Queries and keys are laid out for RoPE on
interleaved pairs (2i, 2i + 1) and stay so: the configuration says rope_interleaved=True.
"""

from __future__ import annotations

import os
import struct
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastllm.config import ModelConfig
from fastllm.errors import FormatError

HEADER = struct.Struct("<7i")
LATER_VERSIONS = 0x616B3432  # "ak42", with which versions 1 and 2 begin
FLOAT = np.dtype("<f4")

# What run.c takes for granted and the file does not say.
NORM_EPS = 1e-5
ROPE_THETA = 10000.0


class Tensor(NamedTuple):
    """One stretch of the file. `name` is ours; with "{}", the first axis counts layers; "" is skipped."""

    name: str
    shape: tuple[int, ...]


def read_llama2c(path: str | os.PathLike[str]) -> tuple[ModelConfig, dict[str, NDArray[np.float32]]]:
    """The model in a llama2.c file: its configuration, and its parameters by our names.

    The parameters are read-only views of the memory-mapped file: opening takes no memory, whatever its size.

    Raises FormatError for a file that is truncated, too long or no such checkpoint, OSError where it can't be
    opened.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            config = _config(file.read(HEADER.size))
        except ValueError as error:
            raise FormatError(f"{path} is no llama2.c checkpoint that fastllm can open: {error}") from error
        tensors = _tensors(config)
        expected = HEADER.size + FLOAT.itemsize * sum(prod(tensor.shape) for tensor in tensors)
        if size != expected:
            raise FormatError(
                f"{path} must have {expected} bytes by its header; got {size}; "
                "copy the file again, or pass a model.bin of llama2.c"
            )
        floats = np.memmap(file, FLOAT, mode="r", offset=HEADER.size)
    return config, _named(floats.view(np.ndarray), tensors)


def _config(header: bytes) -> ModelConfig:
    """What the header describes; ValueError where there can be no such model."""
    if len(header) < HEADER.size:
        raise ValueError(f"the header must have {HEADER.size} bytes; got {len(header)}; copy the file again")
    width, hidden, layers, heads, kv_heads, vocabulary, context = HEADER.unpack(header)
    if width == LATER_VERSIONS:
        raise ValueError("the version must be 0; got a later one; export it again with --version 0")
    return ModelConfig(
        vocab_size=abs(vocabulary),
        width=width,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        context=context,
        norm="rms_norm",
        norm_eps=NORM_EPS,
        activation="swiglu",
        positions="rope",
        rope_theta=ROPE_THETA,
        rope_interleaved=True,
        attention_bias=False,
        feed_forward_bias=False,
        tied_head=vocabulary > 0,
    )


def _tensors(config: ModelConfig) -> list[Tensor]:
    """What follows the header, in the order of the file."""
    assert config.kv_heads is not None
    assert config.head_size is not None
    vocab_size, width, hidden, layers = config.vocab_size, config.width, config.hidden, config.layers
    kv_width = config.kv_heads * config.head_size
    angles = (config.context, config.head_size // 2)
    return [
        Tensor("embedding.token.weight", (vocab_size, width)),
        Tensor("blocks.{}.attention_norm.weight", (layers, width)),
        Tensor("blocks.{}.attention.query.weight", (layers, width, width)),
        Tensor("blocks.{}.attention.key.weight", (layers, kv_width, width)),
        Tensor("blocks.{}.attention.value.weight", (layers, kv_width, width)),
        Tensor("blocks.{}.attention.output.weight", (layers, width, width)),
        Tensor("blocks.{}.feed_forward_norm.weight", (layers, width)),
        Tensor("blocks.{}.feed_forward.gate.weight", (layers, hidden, width)),
        Tensor("blocks.{}.feed_forward.down.weight", (layers, width, hidden)),
        Tensor("blocks.{}.feed_forward.up.weight", (layers, hidden, width)),
        Tensor("final_norm.weight", (width,)),
        Tensor("", angles),  # cosines: they follow from ROPE_THETA
        Tensor("", angles),  # sines
        *([] if config.tied_head else [Tensor("head.weight", (vocab_size, width))]),
    ]


def _named(floats: NDArray[np.float32], tensors: list[Tensor]) -> dict[str, NDArray[np.float32]]:
    """Cut floats (P,) into the tensors, and those of all layers into one a layer."""
    parameters: dict[str, NDArray[np.float32]] = {}
    begin = 0
    for name, shape in tensors:
        end = begin + prod(shape)
        tensor = floats[begin:end].reshape(shape)
        if "{}" in name:
            parameters.update((name.format(layer), part) for layer, part in enumerate(tensor))
        elif name:
            parameters[name] = tensor
        begin = end
    return parameters
