"""The options of generation, checked once."""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Self, TypedDict

from ..config import STEP_ROWS
from ..errors import ConfigError

MOST_TEXTS, MOST_BEAMS = 1 << 16, 1 << 10  # each takes memory of its own
LARGEST = 1e30  # bias or penalty: stays finite when added to any logit, and when counted once for each token of a text


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Options of `generate`, `generate_batch`, `stream`, `generate_tokens`, `beam_search` and `Chat`.

    An option that isn't given takes the model's own default (`model.generation_options`) or, if it has none, the
    default below.

    max_tokens      most tokens to generate, the end token included; None: until the context is full
    end_ids         tokens that end a text; None: the tokenizer's end token
    stop            one or several strings; the text ends before the first of them to be completed
    seed            the same seed gives the same text; None takes a new one from the operating system
    n               completions of each prompt in `generate_batch`: samples, which need a temperature above 0, or with
                    beams the best hypotheses
    logprobs        how many alternatives to give with each token's log-probability; 0: only its own; None: off.
                    They are log_softmax of the model's logits, before anything below changes them

    logit_bias          {token id: number added to its logit}; -inf bans a token
    repetition_penalty  logits of tokens in prompt or output are divided by it where positive, multiplied
                        where negative (Keskar et al. 2019, arXiv:1909.05858)
    presence_penalty    subtracted from the logit of each token generated so far
    frequency_penalty   subtracted from the logit of a token once for each time it was generated
    temperature         0: the most probable token, always; above 0: draw from softmax(logits / temperature)
    top_k               draw from the k most probable tokens; None or 0: from all
    top_p               draw from the fewest most probable tokens whose probabilities add up to top_p or more
                        (Holtzman et al. 2020, arXiv:1904.09751); 1: from all
    min_p               leave out tokens less probable than min_p times the most probable one; 0: none
    typical_p           draw from the tokens whose surprisal is nearest to the distribution's entropy, the fewest
                        that add up to typical_p or more (Meister et al. 2023, arXiv:2202.00666); 1: from all

    These nine are applied in this order, which is transformers', each to the result of the one before
    (generation/sampling.py).

    beams           above 1: beam search with this many hypotheses, at temperature 0 and without `stop`
    length_penalty  a hypothesis scores log-probability / length ** length_penalty
    early_stopping  when a beam search ends before max_tokens. True: when `beams` hypotheses are finished;
                    False: when the best running one, scored at its present length, is no better than the worst
                    finished one; "never": when none can become better. As in transformers

    speculate        greedy decoding only: most tokens to draft from an earlier place in the text and verify in one
                     step (prompt lookup). The text is the same, and comes faster where it repeats itself; 0: off
    speculate_ngram  longest n-gram at the end of the text to look up

    Raises ValueError for a value out of range, TypeError for a value of another type.

    >>> GenerationConfig(temperature=0.8, top_p=0.95, stop="\\n").stop
    ('\\n',)
    """

    max_tokens: int | None = None
    end_ids: Sequence[int] | None = None
    stop: str | Sequence[str] = ()
    seed: int | None = 0
    n: int = 1
    logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    speculate: int = 0
    speculate_ngram: int = 3

    def __new__(cls, **given: Any) -> Self:
        self = super().__new__(cls)
        object.__setattr__(self, "_given", frozenset(given))
        return self

    @property
    def given(self) -> dict[str, Any]:
        """The fields that were given, even with their default value: these override a model's defaults.

        To change some, use `GenerationConfig.of(config, {...})`: with `dataclasses.replace` all fields count as given.

        >>> GenerationConfig(temperature=0.0).given
        {'temperature': 0.0}
        """
        names: frozenset[str] = self._given  # type: ignore[attr-defined]
        return {name: getattr(self, name) for name in FIELDS if name in names}

    def __post_init__(self) -> None:
        self._check_types()
        # each condition is false for NaN too
        _check(
            self.max_tokens is None or self.max_tokens >= 1,
            f"max_tokens must be 1 or more; got {self.max_tokens}; None generates until the context is full",
        )
        _check(
            min(self.end_ids or (0,)) >= 0,
            f"end_ids must not be negative; got {self.end_ids}; use None for the tokenizer's end token",
        )
        _check("" not in self.stop, "stop strings must not be empty; got ''; use stop=() to stop at none")
        _check(
            self.seed is None or self.seed >= 0,
            f"seed must not be negative; got {self.seed}; use None for a new seed each time",
        )
        _check(1 <= self.n <= MOST_TEXTS, f"n must be from 1 to {MOST_TEXTS}; got {self.n}; 1 gives one of each prompt")
        _check(
            self.logprobs is None or self.logprobs >= 0,
            f"logprobs must not be negative; got {self.logprobs}; use None for no log-probabilities",
        )
        self._check_penalties()
        self._check_sampling()
        self._check_beams()
        _check(
            0 <= self.speculate < STEP_ROWS,
            f"speculate must be from 0 to {STEP_ROWS - 1}; got {self.speculate}; use 0 for no drafts, "
            "about 8 for a text that repeats itself",
        )
        _check(
            self.speculate_ngram >= 1,
            f"speculate_ngram must be 1 or more; got {self.speculate_ngram}; use speculate=0 for no drafts",
        )

    def _check_types(self) -> None:
        """Also turns `stop` and `end_ids` into tuples and NumPy's numbers into Python's, and copies `logit_bias`."""
        for name, nothing in (("stop", ()), ("logit_bias", {})):
            if getattr(self, name) is None:
                object.__setattr__(self, name, nothing)
        _check_type("stop", self.stop, Iterable, "a string or several")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        for string in stop:
            _check_type("stop", string, str, "a string or several")
        object.__setattr__(self, "stop", stop)
        if self.end_ids is not None:
            _check_type("end_ids", self.end_ids, Iterable, "token ids or None")
            end_ids = tuple(_whole("end_ids", token, "token ids or None") for token in self.end_ids)
            object.__setattr__(self, "end_ids", end_ids)
        _check_type("logit_bias", self.logit_bias, Mapping, "a mapping of token ids to numbers")
        for token, bias in self.logit_bias.items():
            _whole("logit_bias", token, "a mapping of token ids to numbers")
            _check_type("logit_bias", bias, Real, "a mapping of token ids to numbers")
            _check(
                bias == -math.inf or abs(bias) <= LARGEST,
                f"logit_bias must be from {-LARGEST:g} to {LARGEST:g}, or -inf; got {bias!s:.20} for token "
                f"{token!s:.20}; use -inf to ban a token, 100 to prefer it to all others",
            )
        object.__setattr__(self, "logit_bias", {int(t): float(bias) for t, bias in self.logit_bias.items()})
        for name in ("max_tokens", "top_k", "seed", "logprobs"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _whole(name, getattr(self, name), "a whole number or None"))
        for name in ("n", "beams", "speculate", "speculate_ngram"):
            object.__setattr__(self, name, _whole(name, getattr(self, name), "a whole number"))
        for name in ("repetition_penalty", "presence_penalty", "frequency_penalty", "temperature", "top_p", "min_p",
                     "typical_p", "length_penalty"):  # fmt: skip
            _check_type(name, getattr(self, name), Real, "a number")
            try:
                object.__setattr__(self, name, float(getattr(self, name)))
            except OverflowError:
                raise ValueError(f"{name} must be finite; got a number too large for a float; lower it") from None

    def _check_penalties(self) -> None:
        for token in self.logit_bias:
            _check(
                0 <= token < 1 << 31,
                f"logit_bias must be of token ids; got {token}; use ids from 0 to the vocabulary's size - 1",
            )
        _check(
            1 / LARGEST <= self.repetition_penalty <= LARGEST,
            f"repetition_penalty must be from {1 / LARGEST:g} to {LARGEST:g}; got {self.repetition_penalty}; "
            "use 1 for none, about 1.2 against repetition",
        )
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _check(
                abs(value) <= LARGEST,
                f"{name} must be from {-LARGEST:g} to {LARGEST:g}; got {value}; use 0 for none, up to 2 against "
                "repetition",
            )

    def _check_sampling(self) -> None:
        _check(
            0 <= self.temperature <= sys.float_info.max,
            f"temperature must be finite and not negative; got {self.temperature}; "
            "use 0 for the most probable token, about 0.8 for variety",
        )
        _check(
            self.top_k is None or self.top_k >= 0,
            f"top_k must not be negative; got {self.top_k}; use None or 0 to draw from all tokens",
        )
        for name in ("top_p", "typical_p"):
            value = getattr(self, name)
            _check(
                0 < value <= 1,
                f"{name} must be above 0 and at most 1; got {value}; "
                f"use temperature=0 for the most probable token, {name}=1 to draw from all tokens",
            )
        _check(
            0 <= self.min_p <= 1,
            f"min_p must be from 0 to 1; got {self.min_p}; use 0 to draw from all tokens, about 0.05 to leave out "
            "improbable ones",
        )

    def _check_beams(self) -> None:
        beams = self.beams
        _check(1 <= beams <= MOST_BEAMS, f"beams must be from 1 to {MOST_BEAMS}; got {beams}; use 1 for no beam search")
        _check(
            beams == 1 or self.temperature == 0,
            f"beams above 1 need temperature=0; got beams={beams}, temperature={self.temperature}; "
            "use beams=1 to sample",
        )
        _check(
            beams == 1 or not self.stop,
            f"beams above 1 can't have stop strings; got beams={beams}, stop={self.stop}; "
            "use beams=1, or cut the text afterwards",
        )
        _check(
            beams == 1 or self.logprobs is None,
            f"beams above 1 have scores but no logprobs; got beams={beams}, logprobs={self.logprobs}; use beams=1",
        )
        _check(
            beams == 1 or self.n <= beams,
            f"n must be at most beams, or beams 1; got n={self.n}, beams={beams}; use beams={self.n}",
        )
        _check(
            -10 <= self.length_penalty <= 10,
            f"length_penalty must be between -10 and 10; got {self.length_penalty}; "
            "use 0 to compare sums of log-probabilities, 1 to compare their means",
        )
        _check(
            any(self.early_stopping is value for value in (True, False)) or self.early_stopping == "never",
            f"early_stopping must be True, False or 'never'; got {self.early_stopping!r:.80}; "
            "use 'never' to stop only when no hypothesis can become better",
        )

    @classmethod
    def of(
        cls, config: GenerationConfig | None, options: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
    ) -> Self:
        """Each field from `options`, else from what `config` was given, else from `defaults`, else its own default.

        options, defaults  fields by name; defaults are a model's own, `model.generation_options`

        A default that contradicts what was asked for is dropped: temperature, stop strings and log-probabilities where
        beams are asked for, and the reverse. Raises ConfigError for an unknown name.

        >>> GenerationConfig.of(GenerationConfig(top_k=3), {"top_k": 5}, {"temperature": 0.6, "top_k": 50}).given
        {'temperature': 0.6, 'top_k': 5}
        """
        if not isinstance(config, GenerationConfig | None):
            raise TypeError(f"config must be a GenerationConfig; got {config!r:.40}; give options by their names")
        asked = {**(config.given if config else {}), **options}
        own = dict(defaults or {})
        for name in (*asked, *own):
            if name not in FIELDS:
                closest = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.0)[0]
                raise ConfigError(
                    f"a generation option must be one of {', '.join(FIELDS)}; got {name!r}; did you mean {closest!r}?"
                )
        if asked.get("beams", 1) != 1:
            for name in ("temperature", "stop", "logprobs"):
                own.pop(name, None)
        elif any(asked.get(name) for name in ("temperature", "stop")) or asked.get("logprobs") is not None:
            own.pop("beams", None)
        return cls(**own | asked)


FIELDS = tuple(field.name for field in dataclasses.fields(GenerationConfig))


class GenerationOptions(TypedDict, total=False):
    """The fields of GenerationConfig as keyword arguments, so that editors and type checkers know their names."""

    max_tokens: int | None
    end_ids: Sequence[int] | None
    stop: str | Sequence[str]
    seed: int | None
    n: int
    logprobs: int | None
    logit_bias: Mapping[int, float]
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    temperature: float
    top_k: int | None
    top_p: float
    min_p: float
    typical_p: float
    beams: int
    length_penalty: float
    early_stopping: bool | str
    speculate: int
    speculate_ngram: int


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _whole(name: str, value: Any, wanted: str) -> int:
    """A whole number as a Python int of at most 64 bits: Python may refuse to print a longer one in a message."""
    _check_type(name, value, Integral, wanted)
    _check(-(1 << 63) <= value < 1 << 63, f"{name} must fit into 64 bits; got a longer number; use a smaller one")
    return int(value)


def _check_type(name: str, value: object, kind: type, wanted: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name} must be {wanted}; got {value!r:.80}; see fastllm.GenerationConfig")
