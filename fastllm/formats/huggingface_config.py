"""Hugging Face's config.json of GPT-2, Llama, Mistral, Qwen2 and Qwen3, and our configuration, both ways.

Mistral is Llama with a sliding window, Qwen2 is Llama with biases in query, key and value, Qwen3 has norms of query and
key instead. A window of W tokens hides nothing from a text of at most W tokens, so such a model is opened with a
context of W: within it, the results are the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from ..config import ROPE_SCALINGS, ModelConfig
from ..errors import ConfigError, FormatError
from ..small_files import brief

Json = Mapping[str, Any]

ROPE_TYPES = ("default", "linear", "llama3")
DYNAMIC = "dynamic"  # plain RoPE within the context, scaled only beyond it

GPT2_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",  # its older name
}
# Other names that transformers knows for sizes of GPT-2.
GPT2_ALIASES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}


class Architecture(NamedTuple):
    """An architecture, by its model_type.

    fixed      fields of ours that are the same in every such model
    read       config.json -> the other fields
    related    our configuration -> values that some of its fields must have, given the others
    write      our configuration -> config.json
    name       the class in transformers
    """

    fixed: Json
    read: Callable[[Json], Json]
    related: Callable[[ModelConfig], Json]
    write: Callable[[ModelConfig], Json]
    name: str


def config_from_huggingface(config: Json) -> ModelConfig:
    """Our configuration of the model that a parsed config.json describes.

    Keys that don't change what is computed are ignored, and so is dropout, which is for training: it is 0.

    Raises FormatError for an architecture or feature that fastllm lacks, a missing key, an impossible value.

    >>> sizes = {"vocab_size": 61, "n_positions": 24, "n_embd": 16, "n_layer": 2, "n_head": 4}
    >>> config_from_huggingface({"model_type": "gpt2", **sizes}).hidden
    64
    """
    architecture = ARCHITECTURES[_choice(config, "model_type", None, ARCHITECTURES)]
    _require(config, "is_causal", True)
    if config.get("per_layer_config"):
        raise FormatError(
            f"layers must be alike; got per_layer_config {brief(config['per_layer_config'])}; "
            "use a model without that feature"
        )
    try:
        return ModelConfig(**{**architecture.read(config), **architecture.fixed})
    except ConfigError as error:
        raise FormatError(f"config.json describes no model that fastllm can run: {error}") from error


def config_to_huggingface(config: ModelConfig, *, dtype: str = "float32") -> dict[str, Any]:
    """The config.json of this model for transformers 4 and 5, as JSON-ready values.

    RoPE is written as in transformers 4, which 5 reads too. It is RoPE on halves: the queries and keys of a model with
    RoPE on pairs must be reordered, as to_huggingface does.

    Raises FormatError for a model whose architecture Hugging Face lacks.

    >>> config_to_huggingface(ModelConfig(vocab_size=61, width=16, hidden=64, layers=2, heads=4, context=24))["n_embd"]
    16
    """
    name = model_type(config)
    architecture = ARCHITECTURES[name]
    return {
        "architectures": [architecture.name],
        "model_type": name,
        "dtype": dtype,
        "torch_dtype": dtype,  # its older name
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied_head,
        **architecture.write(config),
    }


def model_type(config: ModelConfig) -> str:
    """The model_type of a configuration. Raises FormatError if Hugging Face lacks the architecture."""
    differences = []
    for name, architecture in ARCHITECTURES.items():
        needed = {**architecture.fixed, **architecture.related(config)}
        wrong = [f"{field}={value}" for field, value in needed.items() if getattr(config, field) != value]
        if not wrong:
            return name
        differences.append(f"{name} has {', '.join(wrong)}")
    raise FormatError(
        f"a Hugging Face folder must hold one of its architectures; got another: {'; '.join(differences)}; "
        "keep the model in fastllm's own format"
    )


def _read_gpt2(config: Json) -> Json:
    for alias, name in GPT2_ALIASES.items():
        if config.get(alias) is None:
            continue
        if config.get(name) not in (None, config[alias]):
            raise FormatError(
                f"{name} and {alias} are one number; got {brief(config[name])} and {brief(config[alias])}; leave out "
                f"the wrong one (transformers takes {alias})"
            )
        config = {**config, name: config[alias]}
    _require(config, "scale_attn_weights", True)
    _require(config, "scale_attn_by_inverse_layer_idx", False)
    _require(config, "add_cross_attention", False)
    width = _size(config, "n_embd")
    return {
        "vocab_size": _size(config, "vocab_size"),
        "width": width,
        "hidden": _size(config, "n_inner", 4 * width),
        "layers": _size(config, "n_layer"),
        "heads": _size(config, "n_head"),
        "context": _size(config, "n_positions"),
        "norm_eps": _number(config, "layer_norm_epsilon", 1e-5),
        "activation": GPT2_ACTIVATIONS[_choice(config, "activation_function", "gelu_new", GPT2_ACTIVATIONS)],
        "tied_head": config.get("tie_word_embeddings", True),
    }


def _related_gpt2(config: ModelConfig) -> Json:
    known = config.activation in GPT2_ACTIVATIONS.values()
    return {
        "activation": config.activation if known else "gelu_tanh",
        "kv_heads": config.heads,
        "head_size": config.width / config.heads,  # not //: GPT-2's heads fill the width
    }


def _write_gpt2(config: ModelConfig) -> Json:
    activations = {ours: theirs for theirs, ours in reversed(GPT2_ACTIVATIONS.items())}
    return {
        "n_embd": config.width,
        "n_inner": config.hidden,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_positions": config.context,
        "n_ctx": config.context,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": activations[config.activation],
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
    }


def _read_llama(config: Json) -> Json:
    _choice(config, "hidden_act", "silu", ("silu", "swish"))
    heads, width = _size(config, "num_attention_heads"), _size(config, "hidden_size")
    return {
        "vocab_size": _size(config, "vocab_size"),
        "width": width,
        "hidden": _size(config, "intermediate_size"),
        "layers": _size(config, "num_hidden_layers"),
        "heads": heads,
        "context": _size(config, "max_position_embeddings"),
        "kv_heads": _size(config, "num_key_value_heads", heads),
        "head_size": _size(config, "head_dim", width // heads),
        "norm_eps": _number(config, "rms_norm_eps", 1e-6),
        "attention_bias": config.get("attention_bias", False),
        "feed_forward_bias": config.get("mlp_bias", False),
        "tied_head": config.get("tie_word_embeddings", False),
        **_read_rope(config),
    }


def _related_llama(config: ModelConfig) -> Json:
    # transformers refuses a width that is no multiple of the heads, even with head_dim
    return {**_related_qwen3(config), "width": config.width - config.width % config.heads}


def _related_qwen3(config: ModelConfig) -> Json:
    return {"attention_output_bias": config.attention_bias, **_scaling_with_a_name(config)}


def _write_llama(config: ModelConfig) -> Json:
    scaling = None
    if config.rope_scaling is not None:
        numbers = {key: value for key, value in config.rope_scaling.items() if key != "type"}
        scaling = {"rope_type": config.rope_scaling["type"], **numbers}
    return {
        "hidden_size": config.width,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "max_position_embeddings": config.context,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.feed_forward_bias,
        "attention_dropout": 0.0,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
    }


def _write_windowless(config: ModelConfig) -> Json:
    return {**_write_llama(config), "sliding_window": None, "use_sliding_window": False}


def _read_mistral(config: Json) -> Json:
    return _windowed(_read_llama(config), config, MISTRAL_WINDOW)


def _read_qwen2(config: Json) -> Json:
    return _windowed_qwen(_read_llama(config), config)


def _read_qwen3(config: Json) -> Json:
    return _windowed_qwen(_read_llama({**config, "head_dim": _size(config, "head_dim", QWEN3_HEAD)}), config)


def _windowed_qwen(fields: Json, config: Json) -> Json:
    use = config.get("use_sliding_window", False)
    if not isinstance(use, bool):
        raise FormatError(f"use_sliding_window must be true or false; got {brief(use)}; fix config.json")
    kinds = config.get("layer_types")
    if kinds is None:  # those from max_window_layers on are windowed
        unwindowed = _size(config, "max_window_layers", QWEN_UNWINDOWED, least=0)
        kinds = ["sliding_attention" if unwindowed < _size(config, "num_hidden_layers") else "full_attention"]
    if not isinstance(kinds, list):
        raise FormatError(f"layer_types must be a list; got {brief(kinds)}; fix config.json")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise FormatError(f"layer_types must be full_attention; got {brief(kind)}; use a model with that alone")
    use = use and "sliding_attention" in kinds
    window = config.get("sliding_window", QWEN_WINDOW) if use else None
    return _windowed(fields, {**config, "sliding_window": window}, None)


def _windowed(fields: Json, config: Json, default: int | None) -> Json:
    """The fields, with the context limited to the sliding window, which hides nothing within it."""
    if config.get("sliding_window", default) is None:
        return fields
    return {**fields, "context": min(fields["context"], _size(config, "sliding_window", default))}


def _read_rope(config: Json) -> Json:
    """RoPE's theta and scaling: in rope_parameters since transformers 5, in rope_theta and rope_scaling before.

    If both are there, transformers takes rope_scaling.
    """
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise FormatError(f"RoPE's parameters must be an object; got {brief(rope)}; fix config.json")
    defaults = {
        "rope_type": rope.get("type", "default"),  # its older name
        "original_max_position_embeddings": config["max_position_embeddings"],
    }
    rope = {**defaults, **config, **rope}  # what it lacks may be at the top level
    if rope.get("partial_rotary_factor") is not None:
        _require(rope, "partial_rotary_factor", 1.0)
    kind = _choice(rope, "rope_type", None, (*ROPE_TYPES, DYNAMIC))
    if config.get("original_max_position_embeddings") is not None:  # here the top level wins
        rope["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    if kind == DYNAMIC:
        context = min(_size(rope, "max_position_embeddings"), _size(rope, "original_max_position_embeddings"))
        return {"rope_theta": _number(rope, "rope_theta", 10000.0), "context": context}
    scaling = None
    if kind != "default":
        scaling = {"type": kind, **{key: _number(rope, key) for key in ROPE_SCALINGS[kind]}}
    return {"rope_theta": _number(rope, "rope_theta", 10000.0), "rope_scaling": scaling}


def _size(config: Json, key: str, default: int | None = None, least: int = 1) -> int:
    """A whole number >= least, which is 0 or 1."""
    value = config.get(key)
    value = default if value is None else value  # null too means the default
    if not isinstance(value, int) or value < least:
        rule = f"a whole number {'>' if least else '>='} 0"
        raise FormatError(f"{key} must be {rule}; got {brief(value)}; fix config.json")
    return value


def _number(config: Json, key: str, default: float | None = None) -> float:
    value = config.get(key, default)
    if not isinstance(value, (int, float)) or not 0 < value < sys.float_info.max:
        raise FormatError(f"{key} must be a finite number > 0; got {brief(value)}; fix config.json")
    return value


def _choice(config: Json, key: str, default: str | None, choices: Collection[str]) -> str:
    value = config.get(key, default)
    if not isinstance(value, str) or value not in choices:
        raise FormatError(
            f"{key} must be one of {', '.join(choices)}; got {brief(value)}; use a model with one of these"
        )
    return value


def _require(config: Json, key: str, only: object) -> None:
    """Raise FormatError where a switch is set to what fastllm does not compute."""
    if config.get(key, only) != only:
        raise FormatError(f"{key} must be {only}; got {brief(config[key])}; use a model without that feature")


# transformers' defaults for keys that config.json may lack.
MISTRAL_WINDOW = QWEN_WINDOW = 4096
QWEN3_HEAD = 128
QWEN_UNWINDOWED = 28  # layers

LLAMA_PARTS = {
    "norm": "rms_norm",
    "norm_position": "pre",
    "final_norm": True,
    "activation": "swiglu",
    "positions": "rope",
    "attention_output": True,
    "head_bias": False,
}


def _scaling_with_a_name(config: ModelConfig) -> Json:
    """What rope_scaling must be: as it is if Hugging Face has its type, else none."""
    has_name = config.rope_scaling is None or config.rope_scaling["type"] in ROPE_TYPES
    return {"rope_scaling": config.rope_scaling if has_name else None}


ARCHITECTURES = {
    "gpt2": Architecture(
        {
            "norm": "layernorm",
            "norm_position": "pre",
            "norm_bias": True,
            "final_norm": True,
            "positions": "learned",
            "attention_bias": True,
            "attention_output": True,
            "attention_output_bias": True,
            "feed_forward_bias": True,
            "head_bias": False,
        },
        _read_gpt2,
        _related_gpt2,
        _write_gpt2,
        "GPT2LMHeadModel",
    ),
    "llama": Architecture(
        {**LLAMA_PARTS, "qk_norm": False}, _read_llama, _related_llama, _write_llama, "LlamaForCausalLM"
    ),
    "mistral": Architecture(
        {
            **LLAMA_PARTS,
            "qk_norm": False,
            "attention_bias": False,
            "attention_output_bias": False,
            "feed_forward_bias": False,
        },
        _read_mistral,
        _scaling_with_a_name,
        _write_windowless,
        "MistralForCausalLM",
    ),
    "qwen2": Architecture(
        {
            **LLAMA_PARTS,
            "qk_norm": False,
            "attention_bias": True,
            "attention_output_bias": False,
            "feed_forward_bias": False,
        },
        _read_qwen2,
        _scaling_with_a_name,
        _write_windowless,
        "Qwen2ForCausalLM",
    ),
    "qwen3": Architecture(
        {**LLAMA_PARTS, "qk_norm": True, "feed_forward_bias": False},
        _read_qwen3,
        _related_qwen3,
        _write_windowless,
        "Qwen3ForCausalLM",
    ),
}
