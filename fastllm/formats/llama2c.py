"""llama2.c's checkpoints (github.com/karpathy/llama2.c, export.py, run.c and runq.c).

    version 0, the legacy one
    7 int32    width, hidden, layers, heads, kv_heads, vocabulary (negative: the head is untied), context
    float32    token embedding
               each of these for all layers: attention norm, query, key, value, output,
               feed-forward norm, gate, down, up
               final norm, cosines and sines of RoPE, head if untied

    version 1
    uint32     0x616b3432, "ak42" in ASCII; int32 version; 7 int32 as above, the vocabulary positive;
               uint8 whether the head is tied; zeros up to byte 256
    float32    attention norms, feed-forward norms, final norm, token embedding
               each of these for all layers: query, key, value, output, gate, down, up
               head if untied

    version 2, in 8 bits
    as 1, but with an int32 after the uint8, the group size. Norms are float32; each other tensor of each layer is its
    int8 weights, then float32 scales, one for each group of consecutive weights: weight * scale

Everything is little-endian, without other padding. Linear weights are (out, in). Queries and keys are laid out for RoPE
on interleaved pairs (2i, 2i + 1) and stay so: the configuration has rope_interleaved=True.
"""

from __future__ import annotations

import os
import struct
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import FormatError
from .bytes_of_file import map_file

LEGACY = struct.Struct("<7i")
HEADER = struct.Struct("<Ii7iB")  # of versions 1 and 2
GROUP = struct.Struct("<i")  # after HEADER, in version 2
BODY = 256  # where the weights of versions 1 and 2 begin
MAGIC = 0x616B3432
FLOAT = np.dtype("<f4")

# Fixed in run.c, not stored in the file.
NORM_EPS = 1e-5
ROPE_THETA = 10000.0


class Header(NamedTuple):
    """The header. begin: offset of the weights in bytes; group: weights per scale, 0 if weights are float32."""

    config: ModelConfig
    version: int
    begin: int
    group: int = 0


class Tensor(NamedTuple):
    """One array in the file. name: ours; with "{}", the first axis is the layer; "" is skipped."""

    name: str
    shape: tuple[int, ...]


def read_llama2c(path: str | os.PathLike[str]) -> tuple[ModelConfig, dict[str, NDArray[np.float32]]]:
    """The configuration of a llama2.c checkpoint, and its parameters by our names.

    The parameters are read-only views of the memory-mapped file; those of version 2 are float32 copies, which take up
    to four times as much memory as the file.

    Raises FormatError for a file that is truncated, too long or no llama2.c checkpoint, OSError where it can't be
    opened.
    """
    data = map_file(path)
    try:
        header = _header(data[:BODY].tobytes())
    except ValueError as error:
        raise FormatError(f"{path} is no llama2.c checkpoint that fastllm can open: {error}") from error
    tensors = _legacy_tensors(header.config) if header.version == 0 else _tensors(header.config)
    expected = header.begin + sum(_size(tensor, header.group) for tensor in tensors)
    if len(data) != expected:
        raise FormatError(
            f"{path} must have {expected} bytes by its header; got {len(data)}; "
            "copy the file again, or pass a model.bin of llama2.c"
        )
    return header.config, _named(data[header.begin :], tensors, header.group)


def _header(data: bytes) -> Header:
    """Parse the first BODY bytes. Raises ValueError for a header that describes no possible model."""
    if len(data) < LEGACY.size:
        raise ValueError(f"the header must have {LEGACY.size} bytes; got {len(data)}; copy the file again")
    if int.from_bytes(data[:4], "little") != MAGIC:
        *sizes, vocabulary, context = LEGACY.unpack_from(data)
        return Header(_config([*sizes, abs(vocabulary), context], tied=vocabulary > 0), 0, LEGACY.size)
    if len(data) < BODY:
        raise ValueError(f"the header must have {BODY} bytes; got {len(data)}; copy the file again")
    _, version, *sizes, tied = HEADER.unpack_from(data)
    if version not in (1, 2):
        raise ValueError(f"the version must be 0, 1 or 2; got {version}; export it again with --version 1")
    if tied not in (0, 1):
        raise ValueError(f"the flag for a tied head must be 0 or 1; got {tied}; copy the file again")
    config = _config(sizes, tied=tied == 1)
    if version == 1:
        return Header(config, version, BODY)
    (group,) = GROUP.unpack_from(data, HEADER.size)
    if group < 1 or config.width % group:
        raise ValueError(f"the group size must divide the width, {config.width}; got {group}; copy the file again")
    return Header(config, version, BODY, group)


def _config(sizes: list[int], *, tied: bool) -> ModelConfig:
    width, hidden, layers, heads, kv_heads, vocabulary, context = sizes
    return ModelConfig(
        vocab_size=vocabulary,
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
        tied_head=tied,
    )


def _legacy_tensors(config: ModelConfig) -> list[Tensor]:
    """The arrays of version 0, in the order of the file."""
    assert config.head_size is not None
    later = {tensor.name: tensor for tensor in _tensors(config)}
    angles = (config.context, config.head_size // 2)
    names = (
        "embedding.token.weight",
        *(f"blocks.{{}}.{name}.weight" for name in (
            "attention_norm", "attention.query", "attention.key", "attention.value", "attention.output",
            "feed_forward_norm", "feed_forward.gate", "feed_forward.down", "feed_forward.up",
        )),
        "final_norm.weight",
    )  # fmt: skip
    return [
        *(later[name] for name in names),
        Tensor("", angles),  # cosines: they follow from ROPE_THETA
        Tensor("", angles),  # sines
        *([] if config.tied_head else [later["head.weight"]]),
    ]


def _tensors(config: ModelConfig) -> list[Tensor]:
    """The arrays of versions 1 and 2, in the order of the file."""
    assert config.kv_heads is not None
    assert config.head_size is not None
    vocab_size, width, hidden, layers = config.vocab_size, config.width, config.hidden, config.layers
    kv_width = config.kv_heads * config.head_size
    return [
        Tensor("blocks.{}.attention_norm.weight", (layers, width)),
        Tensor("blocks.{}.feed_forward_norm.weight", (layers, width)),
        Tensor("final_norm.weight", (width,)),
        Tensor("embedding.token.weight", (vocab_size, width)),
        Tensor("blocks.{}.attention.query.weight", (layers, width, width)),
        Tensor("blocks.{}.attention.key.weight", (layers, kv_width, width)),
        Tensor("blocks.{}.attention.value.weight", (layers, kv_width, width)),
        Tensor("blocks.{}.attention.output.weight", (layers, width, width)),
        Tensor("blocks.{}.feed_forward.gate.weight", (layers, hidden, width)),
        Tensor("blocks.{}.feed_forward.down.weight", (layers, width, hidden)),
        Tensor("blocks.{}.feed_forward.up.weight", (layers, hidden, width)),
        *([] if config.tied_head else [Tensor("head.weight", (vocab_size, width))]),
    ]


def _is_quantised(tensor: Tensor, group: int) -> bool:
    """Whether an array is int8 weights and scales: in version 2, whose header has a group size, all but the norms."""
    return group > 0 and "norm" not in tensor.name


def _size(tensor: Tensor, group: int) -> int:
    """Size of an array in the file, in bytes."""
    count = prod(tensor.shape)
    if _is_quantised(tensor, group):
        return count + count // group * FLOAT.itemsize
    return count * FLOAT.itemsize


def _named(data: NDArray[np.uint8], tensors: list[Tensor], group: int) -> dict[str, NDArray[np.float32]]:
    """Cut the weights into arrays by our names; an array of all layers becomes one per layer."""
    parameters: dict[str, NDArray[np.float32]] = {}
    begin = 0
    for tensor in tensors:
        end = begin + _size(tensor, group)
        is_layered = "{}" in tensor.name
        if tensor.name:
            parts = data[begin:end].reshape(tensor.shape[0] if is_layered else 1, -1)
            shape = tensor.shape[1:] if is_layered else tensor.shape
            for layer, part in enumerate(parts):
                is_quantised = _is_quantised(tensor, group)
                floats = _dequantised(part, prod(shape), group) if is_quantised else part.view(FLOAT)
                parameters[tensor.name.format(layer)] = floats.reshape(shape)
        begin = end
    return parameters


def _dequantised(data: NDArray[np.uint8], count: int, group: int) -> NDArray[np.float32]:
    """Dequantise `count` int8 weights, which a float32 scale per group follows."""
    weights = data[:count].view(np.int8).reshape(-1, group)
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged file may have any scale
        return weights * data[count:].view(FLOAT)[:, None]
