"""A model's configuration: an immutable description from which all shapes follow."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from .errors import ConfigError
from .small_files import brief

NORMS = ("layernorm", "rms_norm")
NORM_POSITIONS = ("pre", "post")
ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu", "swiglu")
POSITIONS = ("learned", "rope", "sinusoidal", "none")
ROPE_SCALINGS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "factors": ("factors",),
}


STEP_ROWS = 32  # most rows in a decoding step: up to this many, each has the same bits that it would have alone
FLOAT32 = (1e-37, 3e38)  # range of numbers that are neither 0 nor infinite as float32
MOST_POSITIONS = 1 << 27  # floats in the table of sinusoidal positions: half a gigabyte


def reject_unknown_keys(given: Mapping[str, Any], known: list[str] | tuple[str, ...], what: str) -> None:
    """Raise ConfigError for the first key of `given` that is not among `known`, suggesting the nearest."""
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            fix = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            raise ConfigError(f"{what} has no key {brief(key)}; {fix}")


def whole_number(value: object, what: str) -> int:
    """A whole number, Python's or NumPy's, as an int. Raises TypeError for anything else."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{what} must be a whole number; got {value!r:.40}; use one such as 1")
    return int(value)


def _require(condition: bool, rule: str, received: object, fix: str) -> None:
    if not condition:
        raise ConfigError(f"{rule}; got {brief(received)}; {fix}")


def _is_size(value: object) -> bool:
    """Whether this is a positive count that fits into an int32, as ids and positions must."""
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 < int(value) < 1 << 31


def is_positive(value: object, smallest: float = 0.0, largest: float = sys.float_info.max) -> bool:
    """Whether this is a number > smallest, and not above the largest."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return smallest < float(value) <= largest
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _python_number(value: Any) -> Any:
    """NumPy's numbers as Python's, also in a list; anything else as it is."""
    if isinstance(value, (list, tuple)):
        return [*map(_python_number, value)]
    if isinstance(value, Real) and not isinstance(value, (int, float)):
        return int(value) if isinstance(value, Integral) else float(value)
    return value


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer.

    vocab_size       V, number of tokens
    width            C, size of a token's vector (the model's width)
    hidden           F, width of the feed-forward layer
    layers           number of blocks
    heads            H, query heads
    context          longest sequence, in tokens
    kv_heads         K, key/value heads; divides heads; None: as many as heads
    head_size        D; None: width // heads
    norm             "layernorm" or "rms_norm"
    norm_position    "pre": x + f(norm(x));  "post": norm(x + f(x))
    norm_eps         added to the variance; in RMSNorm to the mean square
    norm_bias        whether LayerNorm has a bias
    final_norm       whether there is a norm between the last block and the head
    activation       "relu", "gelu" (erf), "gelu_tanh", "silu" or "swiglu" (gated: a third matrix)
    positions        "learned", "rope", "sinusoidal" (fixed, added) or "none"
    rope_theta       base of RoPE's frequencies
    rope_interleaved whether RoPE pairs columns (2i, 2i+1) instead of (i, i + D/2)
    rope_scaling     None, {"type": "linear", "factor": f}, {"type": "llama3", "factor", "low_freq_factor",
                     "high_freq_factor", "original_max_position_embeddings"}, or {"type": "factors", "factors": list}
                     with a divisor for each of the D/2 frequencies
    attention_bias   whether query, key and value have a bias
    qk_norm          whether each head's query and key go through RMSNorm before RoPE, with one weight (D,) for all
                     heads (Qwen3)
    attention_output whether a linear layer follows attention; without it heads * head_size must equal width
    attention_output_bias  whether that layer has a bias; None: as attention_bias
    feed_forward_bias      whether the feed-forward layer's matrices have a bias
    tied_head        whether the head shares the token embedding's weight
    head_bias        whether the head has a bias, one number for each token
    dropout          probability of dropout after the embedding and at the end of each residual branch, in training only
    initial_std      standard deviation of random weights; None: 1 / sqrt(inputs), 0.02 for embeddings. In pre-norm
                     models it is divided by sqrt(2 * layers) for attention.output and feed_forward.down

    Raises ConfigError.
    """

    vocab_size: int
    width: int
    hidden: int
    layers: int
    heads: int
    context: int
    kv_heads: int | None = None
    head_size: int | None = None
    norm: str = "layernorm"
    norm_position: str = "pre"
    norm_eps: float = 1e-5
    norm_bias: bool = True
    final_norm: bool = True
    activation: str = "gelu_tanh"
    positions: str = "learned"
    rope_theta: float = 10000.0
    rope_interleaved: bool = False
    rope_scaling: Mapping[str, Any] | None = dataclasses.field(default=None, hash=False)
    attention_bias: bool = True
    qk_norm: bool = False
    attention_output: bool = True
    attention_output_bias: bool | None = None
    feed_forward_bias: bool = True
    tied_head: bool = True
    head_bias: bool = False
    dropout: float = 0.0
    initial_std: float | None = 0.02

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "hidden", "layers", "heads", "context"):
            value = getattr(self, name)
            _require(
                _is_size(value), f"{name} must be a whole number from 1 to 2^31 - 1", value, f"give {name}=1 or more"
            )
            object.__setattr__(self, name, int(value))
        for name in ("norm_bias", "final_norm", "rope_interleaved", "attention_bias", "qk_norm", "attention_output",
                     "feed_forward_bias", "tied_head", "head_bias"):  # fmt: skip
            value = getattr(self, name)
            _require(isinstance(value, bool), f"{name} must be true or false", value, f"give {name}=True or False")
        for name, choices in (
            ("norm", NORMS),
            ("norm_position", NORM_POSITIONS),
            ("activation", ACTIVATIONS),
            ("positions", POSITIONS),
        ):
            value = getattr(self, name)
            _require(value in choices, f"{name} must be one of {', '.join(choices)}", value, "choose one of them")
        for name, bounds in (("norm_eps", FLOAT32), ("rope_theta", ())):
            value = getattr(self, name)
            _require(
                is_positive(value, *bounds),
                f"{name} must be a finite number > 0{', as a float32 too' if bounds else ''}",
                value,
                "norm_eps is usually 1e-5, rope_theta 1e4",
            )
            object.__setattr__(self, name, float(value))
        _require(
            self.positions != "sinusoidal" or self.context * self.width <= MOST_POSITIONS,
            f"context * width must be at most {MOST_POSITIONS} for sinusoidal positions, of which there is a table",
            (self.context, self.width),
            "give a shorter context",
        )
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)
        if self.head_size is None:
            divides = self.width % self.heads == 0
            _require(divides, "width must be a multiple of heads", (self.width, self.heads), "or give head_size")
            object.__setattr__(self, "head_size", self.width // self.heads)
        if self.attention_output_bias is None:
            object.__setattr__(self, "attention_output_bias", self.attention_bias and self.attention_output)
        bias = self.attention_output_bias
        _require(isinstance(bias, bool), "attention_output_bias must be true or false", bias, "or leave it out")
        assert self.kv_heads is not None
        assert self.head_size is not None
        for name in ("kv_heads", "head_size"):
            value = getattr(self, name)
            _require(_is_size(value), f"{name} must be a whole number from 1 to 2^31 - 1", value, "or leave it out")
            object.__setattr__(self, name, int(value))
        _require(
            self.heads % self.kv_heads == 0,
            "heads must be a multiple of kv_heads",
            (self.heads, self.kv_heads),
            "each key/value head serves the same number of query heads",
        )
        _require(
            self.attention_output or self.heads * self.head_size == self.width,
            "without attention_output, heads * head_size must equal width",
            (self.heads, self.head_size, self.width),
            "set attention_output=True",
        )
        _require(
            self.attention_output or not self.attention_output_bias,
            "attention_output_bias needs attention_output",
            self.attention_output_bias,
            "leave it out",
        )
        _require(
            self.positions != "rope" or self.head_size % 2 == 0,
            "RoPE turns pairs of columns, so head_size must be even",
            self.head_size,
            "choose an even head_size",
        )
        _require(
            isinstance(self.dropout, Real) and 0 <= self.dropout < 1,
            "dropout must be at least 0 and below 1",
            self.dropout,
            "0 turns it off",
        )
        object.__setattr__(self, "dropout", float(self.dropout))
        _require(
            self.initial_std is None or is_positive(self.initial_std, *FLOAT32),
            "initial_std must be a finite number > 0, as a float32 too, or None",
            self.initial_std,
            "0.02 is GPT-2's",
        )
        if self.initial_std is not None:
            object.__setattr__(self, "initial_std", float(self.initial_std))
        if self.rope_scaling is not None:
            is_table = isinstance(self.rope_scaling, Mapping)
            _require(is_table, "rope_scaling must be a table", self.rope_scaling, "give its type and numbers, or None")
            scaling = {key: _python_number(value) for key, value in self.rope_scaling.items()}
            object.__setattr__(self, "rope_scaling", scaling)
            self._check_rope_scaling(self.rope_scaling)

    def _check_rope_scaling(self, scaling: Mapping[str, Any]) -> None:
        kind = scaling.get("type")
        _require(
            kind in list(ROPE_SCALINGS),
            f"rope_scaling's type must be one of {', '.join(ROPE_SCALINGS)}",
            kind,
            "or None",
        )
        needed = ROPE_SCALINGS[str(kind)]
        reject_unknown_keys(scaling, ("type", *needed), "rope_scaling")
        if kind == "factors":
            factors = scaling.get("factors")
            _require(
                isinstance(factors, list)
                and len(factors) == self.head_size // 2  # type: ignore[operator]
                and all(is_positive(factor, *FLOAT32) for factor in factors),
                f"rope_scaling's factors must be a list of {self.head_size} / 2 finite numbers > 0",
                factors,
                "give one for each pair of columns",
            )
            return
        for name in needed:
            value = scaling.get(name)
            _require(
                is_positive(value, *FLOAT32),
                f"rope_scaling needs {name}, a finite number > 0",
                value,
                f"{kind} takes {', '.join(needed)}",
            )
        if kind == "llama3":
            bounds = scaling["low_freq_factor"], scaling["high_freq_factor"]
            _require(
                bounds[0] < bounds[1], "high_freq_factor must be above low_freq_factor", bounds, "Llama 3 has 1 and 4"
            )

    @property
    def qkv_width(self) -> int:
        """Columns of queries, keys and values side by side: (H + 2K) * D."""
        return (self.heads + 2 * self.kv_heads) * self.head_size  # type: ignore[operator]

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-ready values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ModelConfig:
        """The reverse of to_dict. Raises ConfigError for an unknown or missing key."""
        reject_unknown_keys(fields, [field.name for field in dataclasses.fields(cls)], "the model's configuration")
        for field in dataclasses.fields(cls):
            if field.default is dataclasses.MISSING and field.name not in fields:
                raise ConfigError(
                    f"the model's configuration needs {field.name}; got {', '.join(fields) or 'nothing'}; add it, or "
                    f"start from a preset: {', '.join(PRESETS)}"
                )
        return cls(**fields)


PRESETS: dict[str, dict[str, Any]] = {
    # The small system this library grew from: three post-norm blocks, attention without output projection.
    "rustgpt": {
        "width": 128,
        "hidden": 256,
        "layers": 3,
        "heads": 1,
        "context": 80,
        "norm_position": "post",
        "final_norm": False,
        "activation": "relu",
        "attention_bias": False,
        "attention_output": False,
        "tied_head": False,
        "head_bias": True,
        "initial_std": None,
    },
    # GPT-2 124M (Radford et al. 2019).
    "gpt2": {"vocab_size": 50257, "width": 768, "hidden": 3072, "layers": 12, "heads": 12, "context": 1024},
    # A Llama-style model of 15 million parameters (Touvron et al. 2023; sizes as in TinyStories models).
    "llama": {
        "vocab_size": 32000,
        "width": 288,
        "hidden": 768,
        "layers": 6,
        "heads": 6,
        "kv_heads": 2,
        "context": 256,
        "norm": "rms_norm",
        "activation": "swiglu",
        "positions": "rope",
        "attention_bias": False,
        "feed_forward_bias": False,
    },
    # A good small default for your own text: Llama's architecture at the size of nanoGPT's CPU example.
    "nano": {
        "width": 128,
        "hidden": 384,
        "layers": 4,
        "heads": 4,
        "context": 128,
        "norm": "rms_norm",
        "activation": "swiglu",
        "positions": "rope",
        "attention_bias": False,
        "feed_forward_bias": False,
    },
}


def preset(name: str, **overrides: Any) -> ModelConfig:
    """A named configuration, with changes: preset("nano", vocab_size=256, layers=6).

    nano      4 layers of width 128, context 128, RoPE, RMSNorm, SwiGLU; needs vocab_size
    rustgpt   3 layers of width 128, one head, context 80, post-norm; needs vocab_size
    gpt2      GPT-2 124M: 12 layers of width 768, context 1024
    llama     15 million parameters in Llama's style: 6 layers of width 288, context 256

    Raises ConfigError for an unknown name or key.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(str(name), list(PRESETS), n=1)
        fix = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(PRESETS)}"
        raise ConfigError(f"there is no preset {name!r}; {fix}")
    return ModelConfig.from_dict({**PRESETS[name], **overrides})


def in_words(config: ModelConfig) -> str:
    """A model's size, as in "4 layers of width 128, 1 head, context 128"."""
    layers, heads = (
        f"{count} {name}{'s' if count > 1 else ''}"
        for count, name in ((config.layers, "layer"), (config.heads, "head"))
    )
    return f"{layers} of width {config.width}, {heads}, context {config.context}"
