"""GGUF files, written so that llama.cpp opens them.

All matrices get one kind, except: with Q4_0 and Q4_1 the head (or the token embedding it is tied to) is Q8_0, as every
logit depends on it; a matrix whose columns are no multiple of a block is F16. Norms, biases and the position embedding
are float32. Tensors are written one after another, in pieces.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..atomic import replacing
from ..config import ModelConfig
from ..errors import FormatError
from ..packed import KINDS, Kind, Packed
from ..parameters import POSITIONS, shapes_of
from ..quantize import PACK
from ..small_files import brief
from .gguf import ARCHITECTURES, ROPE_FACTORS, rope_factors
from .gguf_file import ALIGNMENT, ARRAY, BOOL, MAGIC, NUMBERS, STRING
from .modules import check, layout_of
from .rows import Progress, pieces, row_order

VERSION = 3
UINT32, INT32, FLOAT32, UINT64, INT64 = 4, 5, 6, 10, 11
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}  # general.file_type
QUANTIZATION_VERSION = 2
NO_TOKENIZER = {"tokenizer.ggml.model": "none"}


class _Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]
    kind: Kind
    pieces: Callable[[], Iterator[NDArray[np.uint8]]]

    @property
    def size(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape[:-1]) * self.kind.row_bytes(self.shape[-1])


def write_gguf(
    path: str | os.PathLike[str],
    config: ModelConfig,
    weights: Mapping[str, NDArray[Any] | Packed],
    kind: str | None,
    tokenizer_metadata: Mapping[str, Any] | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a GGUF file; an existing file is replaced only when the new one is whole.

    weights             our names -> array or Packed, as in Model.parameters or OpenedModel.weights
    kind                of the matrices: "F32", "F16", "BF16", "Q8_0", "Q4_0" or "Q4_1"; None: each keeps its own
    tokenizer_metadata  the "tokenizer.*" keys; without them the file has no tokenizer
    metadata            more "general.*" keys, such as "general.name"
    progress            called with the bytes of tensors written so far and in total

    A metadata value is a bool, int, float or string, a NumPy number, whose type is kept, or a list or array of them. An
    int is written as uint32 if it fits, in a list as int32; a float as float32.

    The bytes of a matrix that has the kind already are copied. Raises FormatError for a model that llama.cpp has no
    architecture for, weights of another model and numbers that the kind can't hold, ValueError for an unknown kind and
    metadata that can't be written, OSError where the file can't be written.
    """
    if kind is not None and kind not in PACK:
        raise ValueError(f"kind must be one of {', '.join(PACK)}, or None; got {kind!r}; choose one of them")
    architecture = _architecture(config)
    check(weights, shapes_of(config))
    tensors = _tensors(architecture, config, weights, kind)
    entries: dict[str, Any] = {
        "general.architecture": architecture,
        "general.type": "model",
        **({} if kind is None else {"general.file_type": FILE_TYPES[kind]}),
        "general.quantization_version": QUANTIZATION_VERSION,
    }
    for given, prefix in (metadata or {}, "general."), (tokenizer_metadata or NO_TOKENIZER, "tokenizer."):
        wrong = [key for key in given if not key.startswith(prefix) or key in entries]
        if wrong:
            raise ValueError(f"metadata must have keys {prefix}* of their own; got {wrong[0]!r}; leave it out")
        entries |= given
    entries |= {f"{architecture}.{key}": value for key, value in _fields(architecture, config).items()}
    header = _header(entries, tensors)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(header)
        done, total = 0, sum(tensor.size for tensor in tensors)
        for tensor in tensors:
            for size in _write_tensor(file, tensor):
                done += size
                if progress is not None:
                    progress(done, total)


def _architecture(config: ModelConfig) -> str:
    """llama.cpp's name for models like this. Raises FormatError where it has none."""
    if config.qk_norm:
        name = "qwen3"
    elif _is_qwen2(config):
        name = "qwen2"
    else:
        name = "llama" if config.positions == "rope" else "gpt2"
    needed: dict[str, Any] = {
        **{key: value for key, value in ARCHITECTURES[name].fixed.items() if key != "rope_interleaved"},
        "norm_position": "pre",
        "final_norm": True,
        "attention_output": True,
        "head_bias": False,
    }
    if name == "gpt2":
        biases = ("norm_bias", "attention_bias", "attention_output_bias", "feed_forward_bias")
        needed |= dict.fromkeys(biases, True)
        needed |= {"kv_heads": config.heads, "head_size": config.width / config.heads}
    elif name == "llama":
        needed |= {"attention_output_bias": config.attention_bias and config.attention_output_bias}
    else:
        needed |= {"feed_forward_bias": False, "attention_output_bias": False}
        if config.rope_scaling is not None and config.rope_scaling["type"] != "linear":
            needed |= {"rope_scaling": None}
    if name == "qwen3":
        needed |= {"attention_bias": False}
    wrong = [f"{field}={value}" for field, value in needed.items() if getattr(config, field) != value]
    if wrong:
        raise FormatError(
            f"a GGUF file holds a model that llama.cpp has an architecture for; got another: the nearest, {name}, has "
            f"{', '.join(wrong)}; keep the model in fastllm's own format"
        )
    return name


def _is_qwen2(config: ModelConfig) -> bool:
    """Whether only query, key and value have biases, and the heads fill the width, which llama.cpp's qwen2 requires."""
    are_alone = config.attention_bias and not config.attention_output_bias
    return are_alone and not config.rope_interleaved and config.head_size == config.width / config.heads


def _fields(architecture: str, config: ModelConfig) -> dict[str, Any]:
    """The metadata under the architecture's name, without it."""
    fields: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.context,
        "embedding_length": config.width,
        "block_count": config.layers,
        "feed_forward_length": config.hidden,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        ARCHITECTURES[architecture].norm_eps: float(config.norm_eps),
    }
    if config.positions == "rope":
        fields |= {
            "attention.key_length": config.head_size,
            "attention.value_length": config.head_size,
            "rope.dimension_count": config.head_size,
            "rope.freq_base": float(config.rope_theta),
        }
        if config.rope_scaling is not None and config.rope_scaling["type"] == "linear":
            fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(config.rope_scaling["factor"])}
    return fields


def _tensors(
    architecture: str, config: ModelConfig, weights: Mapping[str, NDArray[Any] | Packed], kind: str | None
) -> list[_Tensor]:
    interleaved = bool(ARCHITECTURES[architecture].fixed.get("rope_interleaved"))
    head = "embedding.token.weight" if config.tied_head else "head.weight"

    def kind_of(names: tuple[str, ...], shape: tuple[int, ...]) -> str:
        if len(shape) == 1 or POSITIONS in names:
            return "F32"
        if kind is None:
            kinds = {weight.kind.name if isinstance(weight, Packed) else "F32" for weight in map(weights.get, names)}
            return kinds.pop() if len(kinds) == 1 else "F32"
        chosen = "Q8_0" if head in names and kind in ("Q4_0", "Q4_1") else kind
        return chosen if shape[-1] % KINDS[chosen].block == 0 else "F16"

    def pieces_of(name: str, ours: tuple[str, ...], kind: str) -> Iterator[NDArray[np.uint8]]:
        try:
            for part in ours:
                weight = weights[part]
                yield from pieces(weight, row_order(config, part, weight.shape[0], interleaved=interleaved), kind)
        except ValueError as error:
            raise FormatError(f"{name} can't be written: {error}") from None

    tensors = []
    for tensor in layout_of(ARCHITECTURES[architecture].modules, config):
        chosen = kind_of(tensor.ours, tensor.shape)
        tensors.append(
            _Tensor(tensor.name, tensor.shape, KINDS[chosen], partial(pieces_of, tensor.name, tensor.ours, chosen))
        )
    factors = rope_factors(config)
    if factors is not None:
        data = factors.astype("<f4").view(np.uint8)[None]
        tensors.append(_Tensor(ROPE_FACTORS, factors.shape, KINDS["F32"], lambda: iter([data])))
    return tensors


def _header(entries: Mapping[str, Any], tensors: list[_Tensor]) -> bytes:
    """Everything before the tensors, padding included."""
    data = bytearray(MAGIC)
    data += struct.pack("<IQQ", VERSION, len(tensors), len(entries))
    for key, value in entries.items():
        data += _string(key)
        data += _value(key, value)
    offset = 0
    for tensor in tensors:
        data += _string(tensor.name)
        data += struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape[::-1])
        data += struct.pack("<IQ", tensor.kind.number, offset)
        offset += tensor.size + -tensor.size % ALIGNMENT
    return bytes(data + bytes(-len(data) % ALIGNMENT))


def _write_tensor(file: BinaryIO, tensor: _Tensor) -> Iterator[int]:
    """Write a tensor and its padding; yields the size of each piece once it is written."""
    written = 0
    for piece in tensor.pieces():
        file.write(np.ascontiguousarray(piece).data)
        written += piece.nbytes
        yield piece.nbytes
    assert written == tensor.size
    file.write(bytes(-written % ALIGNMENT))


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Any) -> bytes:
    """The bytes of a metadata value: its type, then itself."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
    array = np.asarray(value)
    if array.ndim > 1 or array.dtype.newbyteorder("<") not in NUMBERS.values():
        raise ValueError(f"{key} must be a number, a string, or a list of them; got {brief(value)}; leave it out")
    number = _number_type(value, array)
    with np.errstate(over="ignore", under="ignore"):
        stored = array.astype(NUMBERS[number])
    if array.dtype.kind == "f" and ((np.isfinite(array) & ~np.isfinite(stored)) | ((array != 0) & (stored == 0))).any():
        raise FormatError(f"{key} must fit into a float32; got {brief(value)}; fix it in the model's configuration")
    data = stored.tobytes()
    kind = struct.pack("<I", number) if array.ndim == 0 else struct.pack("<IIQ", ARRAY, number, len(array))
    return kind + data


def _number_type(value: Any, array: NDArray[Any]) -> int:
    """GGUF's number for a type: of NumPy's numbers their own; of Python's the first of the usual ones that fits."""
    if array.dtype == np.bool_:
        return BOOL
    if not isinstance(value, (np.generic, np.ndarray)):
        if array.dtype.kind == "f":
            return FLOAT32
        low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
        choices = (UINT32, INT32, UINT64, INT64) if array.ndim == 0 else (INT32, UINT32, INT64, UINT64)
        return next(n for n in choices if np.iinfo(NUMBERS[n]).min <= low and high <= np.iinfo(NUMBERS[n]).max)
    return next(n for n, dtype in NUMBERS.items() if dtype == array.dtype.newbyteorder("<"))
