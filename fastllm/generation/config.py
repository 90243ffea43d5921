"""What a person may choose about generation, checked once."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from fastllm.errors import ConfigError


@dataclass(frozen=True)
class GenerationConfig:
    """Options of `generate`, `stream`, `generate_tokens`, `beam_search` and `Chat`.

    max_tokens      most tokens to generate, the end token included; None: until the context is full
    temperature     0: the most probable token, always; above 0: draw from softmax(logits / temperature)
    top_k           draw from the k most probable tokens; None or 0: from all
    top_p           draw from the fewest most probable tokens whose probabilities, after top_k, add up to
                    top_p or more (Holtzman et al. 2020, arXiv:1904.09751); 1: from all
    seed            the same seed gives the same text; None takes a new one from the operating system
    stop            a string or several; the text ends before the first of them to be completed
    beams           above 1: beam search with so many hypotheses, at temperature 0 and without `stop`
    length_penalty  a hypothesis scores log-probability / length ** length_penalty

    Raises ValueError for a value out of range, TypeError for a value of another type.

    >>> GenerationConfig(temperature=0.8, top_p=0.95, stop="\\n").stop
    ('\\n',)
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = 0
    stop: str | tuple[str, ...] = ()
    beams: int = 1
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        _check_type("stop", self.stop, Iterable, "a string or several")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        for name in ("max_tokens", "top_k", "seed"):
            if getattr(self, name) is not None:
                _check_type(name, getattr(self, name), Integral, "a whole number or None")
        _check_type("beams", self.beams, Integral, "a whole number")
        for name in ("temperature", "top_p", "length_penalty"):
            _check_type(name, getattr(self, name), Real, "a number")
        for string in stop:
            _check_type("stop", string, str, "a string or several")

        # each condition is false for NaN too
        _check(
            self.max_tokens is None or self.max_tokens >= 1,
            f"max_tokens must be 1 or more; got {self.max_tokens}; None generates until the context is full",
        )
        _check(
            0 <= self.temperature < math.inf,
            f"temperature must be finite and not negative; got {self.temperature}; "
            "use 0 for the most probable token, about 0.8 for variety",
        )
        _check(
            self.top_k is None or self.top_k >= 0,
            f"top_k must not be negative; got {self.top_k}; use None or 0 to draw from all tokens",
        )
        _check(
            0 < self.top_p <= 1,
            f"top_p must be above 0 and at most 1; got {self.top_p}; "
            "use temperature=0 for the most probable token, top_p=1 to draw from all tokens",
        )
        _check(
            self.seed is None or self.seed >= 0,
            f"seed must not be negative; got {self.seed}; use None for a new seed each time",
        )
        _check("" not in stop, "stop strings must not be empty; got ''; use stop=() to stop at none")
        _check(self.beams >= 1, f"beams must be 1 or more; got {self.beams}; use 1 for no beam search")
        _check(
            self.beams == 1 or self.temperature == 0,
            f"beams above 1 need temperature=0; got beams={self.beams}, temperature={self.temperature}; "
            "use beams=1 to sample",
        )
        _check(
            self.beams == 1 or not stop,
            f"beams above 1 know no stop strings; got beams={self.beams}, stop={stop}; "
            "use beams=1, or cut the text afterwards",
        )
        _check(
            -10 <= self.length_penalty <= 10,
            f"length_penalty must be between -10 and 10; got {self.length_penalty}; "
            "use 0 to compare sums of log-probabilities, 1 to compare their means",
        )

    @classmethod
    def of(cls, config: GenerationConfig | None, options: dict[str, Any]) -> GenerationConfig:
        """`config`, or the defaults, with `options` in place of its values. ConfigError: unknown option."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                closest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise ConfigError(
                    f"a generation option must be one of {', '.join(known)}; got {name!r}; "
                    f"did you mean {closest!r}?"
                )
        return dataclasses.replace(config or cls(), **options)


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _check_type(name: str, value: object, kind: type, wanted: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name} must be {wanted}; got {value!r}; see fastllm.GenerationConfig")
