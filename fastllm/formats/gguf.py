"""Models in GGUF files, with llama.cpp's names and layout: Llama (also Mistral, SmolLM2), Qwen2, Qwen3 and GPT-2.

    Llama    blk.0.attn_q.weight (out, in)       blocks.0.attention.query.weight, the same bytes
    GPT-2    blk.0.attn_qkv.weight (3C, C)       blocks.0.attention.query | key | value.weight

Queries and keys of the architecture "llama" are laid out for RoPE on interleaved pairs (2i, 2i + 1) and stay so: the
configuration has rope_interleaved=True. Those of Qwen2 and Qwen3 are for RoPE on halves. The metadata don't say whether
there are biases and an untied head; the tensors do. Llama 3's RoPE scaling is a tensor, rope_freqs.weight, with a
divisor for each frequency.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import ConfigError, FormatError
from ..packed import Packed
from ..parameters import POSITIONS
from ..quantize import dequantize
from ..rope import base_frequencies, rope_divisors
from ..small_files import brief
from .bytes_of_file import naming
from .gguf_file import GgufFile, GgufTensor, read_gguf_file
from .modules import Module, check, check_layers, layout_of
from .opened import OpenedModel, Weights, generation_facts, named_ids

Json = Mapping[str, Any]

LLAMA_MODULES = (
    Module("token_embd", ("embedding.token",)),
    Module("blk.{}.attn_norm", ("blocks.{}.attention_norm",)),
    Module("blk.{}.attn_q", ("blocks.{}.attention.query",)),
    Module("blk.{}.attn_k", ("blocks.{}.attention.key",)),
    Module("blk.{}.attn_v", ("blocks.{}.attention.value",)),
    Module("blk.{}.attn_q_norm", ("blocks.{}.attention.query_norm",)),
    Module("blk.{}.attn_k_norm", ("blocks.{}.attention.key_norm",)),
    Module("blk.{}.attn_output", ("blocks.{}.attention.output",)),
    Module("blk.{}.ffn_norm", ("blocks.{}.feed_forward_norm",)),
    Module("blk.{}.ffn_gate", ("blocks.{}.feed_forward.gate",)),
    Module("blk.{}.ffn_up", ("blocks.{}.feed_forward.up",)),
    Module("blk.{}.ffn_down", ("blocks.{}.feed_forward.down",)),
    Module("output_norm", ("final_norm",)),
    Module("output", ("head",)),
)
GPT2_MODULES = (
    Module("token_embd", ("embedding.token",)),
    Module("position_embd", ("embedding.position",)),
    Module("blk.{}.attn_norm", ("blocks.{}.attention_norm",)),
    Module("blk.{}.attn_qkv", ("blocks.{}.attention.query", "blocks.{}.attention.key", "blocks.{}.attention.value")),
    Module("blk.{}.attn_output", ("blocks.{}.attention.output",)),
    Module("blk.{}.ffn_norm", ("blocks.{}.feed_forward_norm",)),
    Module("blk.{}.ffn_up", ("blocks.{}.feed_forward.up",)),
    Module("blk.{}.ffn_down", ("blocks.{}.feed_forward.down",)),
    Module("output_norm", ("final_norm",)),
    Module("output", ("head",)),
)


class Architecture(NamedTuple):
    """A value of general.architecture. fixed: fields of our configuration that are the same in every such model."""

    modules: tuple[Module, ...]
    norm_eps: str
    fixed: Json


LLAMA_PARTS = {"norm": "rms_norm", "activation": "swiglu", "positions": "rope"}
ARCHITECTURES = {
    "llama": Architecture(LLAMA_MODULES, "attention.layer_norm_rms_epsilon", {**LLAMA_PARTS, "rope_interleaved": True}),
    "qwen2": Architecture(LLAMA_MODULES, "attention.layer_norm_rms_epsilon", LLAMA_PARTS),
    "qwen3": Architecture(LLAMA_MODULES, "attention.layer_norm_rms_epsilon", {**LLAMA_PARTS, "qk_norm": True}),
    "gpt2": Architecture(
        GPT2_MODULES,
        "attention.layer_norm_epsilon",
        {"norm": "layernorm", "activation": "gelu_tanh", "positions": "learned"},
    ),
}
# Features that fastllm lacks: these keys must be absent, 0 or false.
UNKNOWN_FEATURES = (
    "expert_count", "attention.scale", "attention.clamp_kqv", "attention.max_alibi_bias", "logit_scale",
    "embedding_scale", "residual_scale", "attn_logit_softcapping", "final_logit_softcapping",
)  # fmt: skip
ROPE_FACTORS = "rope_freqs.weight"
# Field of GenerationConfig -> key after "general.sampling.".
OPTIONS = {
    "temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "repetition_penalty": "penalty_repeat"
}  # fmt: skip
LLAMA3_TURNS = (1.0, 4.0)  # low_freq_factor and high_freq_factor of all Llama 3 models
LLAMA3_CONTEXT = 8192
FACTOR_TOLERANCE = 2e-6  # relative, as converters compute in float32


def open_gguf(path: Path) -> OpenedModel:
    """Open a GGUF file; matrices are views of it.

    Raises FormatError for a model that fastllm can't run and a damaged file, OSError where it can't be opened.
    """
    file = read_gguf_file(path)
    with naming(path):
        config = _config(file)
        return OpenedModel(
            config=config,
            weights=_weights(config, ARCHITECTURES[file.metadata["general.architecture"]].modules, file.tensors),
            source="gguf",
            path=path,
            generation=_generation(path, file.metadata, config),
            other_generation=_other_generation(path, file.metadata, config),
            tokenizer_metadata={key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")},
        )


def single(metadata: Json, key: str) -> Any:
    """A metadata value, None if absent. Raises FormatError for an array."""
    value = metadata.get(key)
    if isinstance(value, (list, np.ndarray)):
        raise FormatError(f"{key} must be a single value; got {brief(value)}; use another file")
    return value


def shortest_decimal(value: float) -> float:
    """The shortest decimal that rounds to a float32: 1e-05 for 9.999999747378752e-06. Other numbers are unchanged."""
    if abs(value) > float(np.finfo(np.float32).max) or float(np.float32(value)) != value:
        return value
    return float(str(np.float32(value)))


class _Fields:
    """The metadata of an architecture, with their types checked. Keys are without the architecture's name."""

    def __init__(self, metadata: Json, architecture: str) -> None:
        self._metadata = metadata
        self._architecture = architecture

    def get(self, key: str) -> Any:
        """A single value, or None."""
        return single(self._metadata, f"{self._architecture}.{key}")

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number > 0; an array, with a number per layer, must have the same number throughout."""
        value = self._metadata.get(f"{self._architecture}.{key}")
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.size and (value == value[0]).all():
            value = value[0].item()
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise self._error(key, "a whole number > 0", value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number > 0."""
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise self._error(key, "a finite number > 0", value)
        return shortest_decimal(float(value))

    def _error(self, key: str, rule: str, value: Any) -> FormatError:
        return FormatError(f"{self._architecture}.{key} must be {rule}; got {brief(value)}; use another file")


def _config(file: GgufFile) -> ModelConfig:
    metadata, tensors = file.metadata, file.tensors
    kind, parts = single(metadata, "general.type"), single(metadata, "split.count")
    if kind not in (None, "model"):
        raise FormatError(f"a file must hold a model; got general.type {brief(kind)}; use another file")
    if parts not in (None, 0, 1):
        raise FormatError(
            f"a file must hold a whole model; got one of {brief(parts)} parts; join them with llama-gguf-split --merge"
        )
    name = single(metadata, "general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise FormatError(
            f"the architecture must be one of {', '.join(ARCHITECTURES)}; got {brief(name)}; use another model"
        )
    architecture, fields = ARCHITECTURES[name], _Fields(metadata, name)
    for key in UNKNOWN_FEATURES:
        if fields.get(key):
            raise FormatError(f"{name}.{key} must not be given; got {brief(fields.get(key))}; use a model without it")
    if fields.get("attention.causal") is False:
        raise FormatError(f"{name}.attention.causal must be true; got False; use a causal language model")
    if "token_embd.weight" not in tensors:
        raise FormatError("a model must have a tensor token_embd.weight; got none; use a file with weights")
    width, heads = fields.size("embedding_length"), fields.size("attention.head_count")
    head_size = fields.size("attention.key_length", width // heads or None)
    context = fields.size("context_length")
    if fields.get("attention.sliding_window"):  # a window hides nothing from a text that is no longer
        context = min(context, fields.size("attention.sliding_window"))
    is_gpt2 = name == "gpt2"
    for key in ("attention.value_length", *([] if is_gpt2 else ["rope.dimension_count"])):
        if fields.size(key, head_size) != head_size:
            raise FormatError(
                f"{name}.{key} must be the head's size, {head_size}; got {fields.size(key)}; use another model"
            )
    try:
        config = ModelConfig(
            vocab_size=tensors["token_embd.weight"].shape[0],
            width=width,
            hidden=fields.size("feed_forward_length"),
            layers=fields.size("block_count"),
            heads=heads,
            kv_heads=fields.size("attention.head_count_kv", heads),
            head_size=head_size,
            context=context,
            norm_eps=fields.number(architecture.norm_eps),
            attention_bias=is_gpt2 or "blk.0.attn_q.bias" in tensors,
            attention_output_bias=is_gpt2 or "blk.0.attn_output.bias" in tensors,
            feed_forward_bias=is_gpt2 or "blk.0.ffn_gate.bias" in tensors,
            tied_head="output.weight" not in tensors,
            rope_theta=fields.number("rope.freq_base", 10000.0),
            **architecture.fixed,
        )
        scaling = None if is_gpt2 else _rope_scaling(fields, config, tensors.get(ROPE_FACTORS))
        return ModelConfig.from_dict({**config.to_dict(), "rope_scaling": scaling})
    except ConfigError as error:
        raise FormatError(f"the metadata describe no model that fastllm can run: {error}") from None


def _rope_scaling(fields: _Fields, config: ModelConfig, stored: GgufTensor | None) -> dict[str, Any] | None:
    assert config.head_size is not None
    if (attention := fields.get("rope.scaling.attn_factor")) not in (None, 0, 1):
        raise FormatError(f"rope.scaling.attn_factor must be 1; got {brief(attention)}; use a model without it")
    kind = fields.get("rope.scaling.type")
    if kind not in (None, "none", "linear"):
        raise FormatError(f"rope.scaling.type must be none or linear; got {brief(kind)}; use a model with one of these")
    factor = 1.0
    for key in ("rope.scale_linear", "rope.scaling.factor"):  # the older name first
        if kind != "none" and fields.get(key):
            factor = fields.number(key)
    if stored is None:
        return None if factor == 1.0 else {"type": "linear", "factor": factor}
    if stored.shape != (config.head_size // 2,) or stored.kind.name != "F32":
        raise FormatError(
            f"{ROPE_FACTORS} must be F32, of shape ({config.head_size // 2},); got {stored.kind.name}, {stored.shape}; "
            "convert the model again"
        )
    factors = stored.data.view("<f4").astype(np.float64)
    llama3 = _llama3_scaling(factors, config) if factor == 1.0 else None
    return llama3 or {"type": "factors", "factors": [number * factor for number in factors.tolist()]}


def rope_factors(config: ModelConfig) -> NDArray[np.float64] | None:
    """The values of rope_freqs.weight, (D/2,): a divisor for each frequency. None if the model needs no such tensor."""
    scaling = config.rope_scaling
    if config.positions != "rope" or scaling is None or scaling["type"] == "linear":
        return None
    return rope_divisors(config)


def _llama3_scaling(factors: NDArray[np.float64], config: ModelConfig) -> dict[str, Any] | None:
    """Llama 3's RoPE scaling that gives these divisors; None if none does.

    Its factor is the largest divisor. The original context follows from a divisor between 1 and that. Without one, it
    is as near to LLAMA3_CONTEXT as the divisors allow.
    """
    low, high = LLAMA3_TURNS
    factor = float(factors.max())
    if not factor > 1:
        return None
    wavelengths = 2 * math.pi / base_frequencies(config)
    between = np.flatnonzero((factors > 1) & (factors < factor))
    if len(between):
        i = between[0]
        keep = (1 / factors[i] - 1 / factor) / (1 - 1 / factor)
        original = round((low + keep * (high - low)) * wavelengths[i])
    else:
        least = math.ceil(high * wavelengths[factors == 1].max(initial=0))
        most = math.floor(low * wavelengths[factors == factor].min())
        original = min(max(LLAMA3_CONTEXT, least), most)
    scaling = {
        "type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    made = rope_factors(ModelConfig.from_dict({**config.to_dict(), "rope_scaling": scaling}))
    assert made is not None
    return scaling if np.allclose(factors, made, rtol=FACTOR_TOLERANCE, atol=0) else None


def _weights(config: ModelConfig, modules: tuple[Module, ...], tensors: Mapping[str, GgufTensor]) -> Weights:
    given = {name: tensor for name, tensor in tensors.items() if name != ROPE_FACTORS}
    check_layers(config, given)
    layout = layout_of(modules, config)
    check(given, {tensor.name: tensor.shape for tensor in layout})
    weights: Weights = {}
    for tensor in layout:
        stored = given[tensor.name]
        if len(tensor.shape) == 1:
            vector = dequantize(Packed(stored.data.reshape(1, -1), stored.kind))[0]
            weights.update(zip(tensor.ours, np.split(vector, tensor.rows), strict=True))
            continue
        rows = stored.data.reshape(tensor.shape[0], -1)  # (rows, bytes per row)
        for name, part in zip(tensor.ours, np.split(rows, tensor.rows), strict=True):
            matrix = Packed(part, stored.kind)
            weights[name] = dequantize(matrix) if name == POSITIONS else matrix
    return weights


def _generation(path: Path, metadata: Json, config: ModelConfig) -> dict[str, Any]:
    ids = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    options = {ours: metadata.get(f"general.sampling.{theirs}") for ours, theirs in OPTIONS.items()}
    options = {ours: shortest_decimal(value) if isinstance(value, float) else value for ours, value in options.items()}
    return generation_facts(path, config.vocab_size, ids, options)


def _other_generation(path: Path, metadata: Json, config: ModelConfig) -> dict[str, Any]:
    keys = {"bos_token_id": "bos", "pad_token_id": "padding"}
    given = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    return named_ids(path, config.vocab_size, given)
