"""From logits to one token.

    logits       + logit_bias
                 / repetition_penalty where positive, * where negative, of tokens in prompt or output
                 - presence_penalty * (count > 0) - frequency_penalty * count, of tokens in the output
    probability  = softmax(logits / temperature), then top_k, top_p, min_p, typical_p, each renormalised
    token        = first id whose cumulative probability exceeds u, u uniform in [0, 1)

This is the order in transformers, which has no presence and frequency penalties; they are defined, and placed, as in
OpenAI's API. Among equally probable tokens the lowest id ranks first, here and in beam search; typical_p keeps all
tokens that are as typical as the last one it needs.

Probabilities are float64: in float32 the error of a cumulative sum over 50,000 tokens exceeds the probability of most
of them. Greedy decoding without penalties takes the argmax of the logits as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, FastllmError
from .config import GenerationConfig

Floats = NDArray[np.floating]

BINS = 1024
LIMITS = (-3e38, 3e38)  # of logits after repetition_penalty: nearly float32's range
GROUP = 64  # logits in a group of which at first only the largest is considered


class Sampler:
    """Chooses the tokens of one sequence, one at a time; holds the random state and the counts for the penalties.

    sample  the number of this sample among those of one prompt; each has a random state of its own

    Each token takes one random number of the sequence's own, so it is the same alone and beside other sequences.

    >>> sampler = Sampler(GenerationConfig(temperature=1.0, top_k=2, seed=1))
    >>> [sampler(np.array([0.0, 3.0, 2.5])) for _ in range(5)]
    [1, 2, 1, 2, 1]
    """

    def __init__(self, config: GenerationConfig, sample: int = 0) -> None:
        self.config = config
        seed = np.random.SeedSequence(config.seed, spawn_key=(sample,) if sample else ())
        self.random = np.random.default_rng(seed)
        self.penalties = Penalties(config)

    def begin(self, prompt: Iterable[int]) -> None:
        """Start a new text with this prompt, with nothing generated yet. The random state continues."""
        self.penalties = Penalties(self.config, prompt)

    def __call__(self, logits: Floats) -> int:
        """logits (V,) of the next token -> the token.

        Raises FastllmError if the logits contain NaN or have no finite maximum, ValueError if logit_bias bans all
        tokens or names one that isn't in the vocabulary.
        """
        token = self._choose(self.penalties(logits))
        self.penalties.add(token)
        return token

    def _choose(self, logits: Floats) -> int:
        config = self.config
        if config.temperature == 0:
            token = int(np.argmax(logits))
            check_logits(logits[token])  # argmax finds the first NaN, if there is one
            return token
        ids, probability = candidates(
            logits, config.temperature, config.top_k, config.top_p, config.min_p, config.typical_p
        )
        cumulative = np.cumsum(probability)
        place = int(np.searchsorted(cumulative, self.random.random() * cumulative[-1], side="right"))
        return place if ids is None else int(ids[place])


class Penalties:
    """Applies logit_bias and the penalties for tokens that the text already contains.

    prompt  its token ids: repetition_penalty applies to them, too; presence_penalty and frequency_penalty don't

    >>> penalties = Penalties(GenerationConfig(repetition_penalty=2.0, presence_penalty=0.5), prompt=[0])
    >>> penalties.add(1)
    >>> penalties(np.array([3.0, -1.0, 4.0]))
    array([ 1.5, -2.5,  4. ])
    """

    def __init__(self, config: GenerationConfig, prompt: Iterable[int] = ()) -> None:
        self.config = config
        self.counts: dict[int, int] = {}  # of generated tokens
        self._repeats = config.repetition_penalty != 1
        self._subtracts = config.presence_penalty != 0 or config.frequency_penalty != 0
        self._is_off = not (self._repeats or self._subtracts or config.logit_bias)
        self._prompt = np.unique(np.fromiter(prompt, np.int64)) if self._repeats else np.empty(0, np.int64)

    def add(self, token: int) -> None:
        """Count a generated token."""
        if not self._is_off:
            self.counts[token] = self.counts.get(token, 0) + 1

    def copy(self) -> Self:
        """A copy, to continue the same text in another way."""
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__, counts=self.counts.copy())
        return new

    def __call__(self, logits: Floats) -> Floats:
        """logits (V,), which aren't modified -> (V,), the same array if there is nothing to change.

        Raises FastllmError for damaged logits, ValueError if logit_bias bans all tokens or names one that isn't in the
        vocabulary.
        """
        if self._is_off:
            return logits
        config = self.config
        out = check_logits(logits).copy()
        if config.logit_bias:
            check_bias(config, out.size)
            ids = np.fromiter(config.logit_bias, np.int64)
            out[ids] += np.fromiter(config.logit_bias.values(), out.dtype)
            if out.max() == -np.inf:
                raise ValueError(
                    f"logit_bias must leave a token that the model allows; got {ids.size} of {out.size} tokens, "
                    "and no other is possible; ban fewer"
                )
        generated = np.fromiter(self.counts, np.int64)
        if self._repeats:
            ids = np.concatenate([self._prompt, generated])
            seen, penalty = out[ids], out.dtype.type(config.repetition_penalty)
            with np.errstate(over="ignore"):
                changed = np.clip(np.where(seen < 0, seen * penalty, seen / penalty), *LIMITS)
            out[ids] = np.where(np.isfinite(seen), changed, seen)
        if self._subtracts:
            counts = np.fromiter(self.counts.values(), out.dtype)
            out[generated] -= config.presence_penalty + config.frequency_penalty * counts
        return out


def check_bias(config: GenerationConfig, vocab_size: int) -> None:
    """Raise ConfigError if logit_bias names a token that isn't in the vocabulary."""
    largest_id = max(config.logit_bias, default=0)
    if largest_id >= vocab_size:
        raise ConfigError(
            f"logit_bias must be of token ids below {vocab_size}; got {largest_id}; use ids of the model's vocabulary"
        )


def candidates(
    logits: Floats,
    temperature: float,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
) -> tuple[NDArray[np.intp] | None, Floats]:
    """The ids (M,) of the tokens that may be drawn, ascending, or None for all; and their probabilities (M,) float64.

    Raises FastllmError for damaged logits.
    """
    ids: NDArray[np.intp] | None = None
    x = check_logits(logits)
    if top_k and top_k < x.size:  # before softmax, as temperature doesn't change the order: fewer exponentials
        ids = np.flatnonzero(top_k_mask(x, top_k))
        x = x[ids]
    probability = softmax(x, temperature)
    for mask_of, setting, off in ((top_p_mask, top_p, 1), (min_p_mask, min_p, 0), (typical_p_mask, typical_p, 1)):
        if setting != off:
            kept = np.flatnonzero(mask_of(probability, setting))
            ids = kept if ids is None else ids[kept]
            probability = probability[kept]
            probability /= probability.sum()
    return ids, probability


def softmax(logits: Floats, temperature: float) -> Floats:
    """logits (M,) with a finite maximum -> probabilities (M,) float64."""
    x = logits.astype(np.float64)
    x -= x.max()
    with np.errstate(over="ignore"):  # a tiny temperature: -inf, as in the limit
        x /= temperature
    np.exp(x, out=x)
    x /= x.sum()
    return x


def top_k_mask(values: Floats, k: int) -> NDArray[np.bool_]:
    """values (V,) -> (V,), true for the k largest; among equal values, the lowest ids."""
    if k >= values.size:
        return np.ones(values.size, np.bool_)
    return _mask_down_to(values, _kth_largest(values, k), k)


def _mask_down_to(values: Floats, smallest_kept: Any, k: int) -> NDArray[np.bool_]:
    """top_k_mask, given the k-th largest value."""
    mask = values > smallest_kept
    ties = np.flatnonzero(values == smallest_kept)
    mask[ties[: k - np.count_nonzero(mask)]] = True
    return mask


def _kth_largest(values: Floats, k: int) -> Any:
    """The k-th largest of values (V,), k < V.

    The values are cut into groups. The k-th largest of the groups' maxima is a lower bound, as k values reach it. So
    only values from there up need to be partitioned: a few hundred of 50,000 logits, which takes a fifth of the time.
    """
    groups = values.size // GROUP
    if k < groups // 2:
        heads = values[: groups * GROUP].reshape(GROUP, groups).max(axis=0)
        values = values[values >= np.partition(heads, -k)[-k]]
    return np.partition(values, -k)[-k]


def top_p_mask(probabilities: Floats, p: float) -> NDArray[np.bool_]:
    """probabilities (V,), 0 < p < 1 -> (V,), true for the fewest largest that add up to p or more."""
    # Those below this bound add up to less than (1 - p) / 2, so they are never needed. Sorting only the others takes
    # next to nothing; sorting all takes a good part of a decoding step.
    likely = np.flatnonzero(probabilities >= (1 - p) / (2 * probabilities.size))
    descending = np.sort(probabilities[likely])[::-1]
    count = min(int(np.searchsorted(np.cumsum(descending), p)) + 1, likely.size)  # rounding may leave the sum below p
    mask = np.zeros(probabilities.size, np.bool_)
    mask[likely[_mask_down_to(probabilities[likely], descending[count - 1], count)]] = True
    return mask


def min_p_mask(probabilities: Floats, p: float) -> NDArray[np.bool_]:
    """probabilities (V,) -> (V,), true where at least p times the largest."""
    return probabilities >= p * probabilities.max()


def typical_p_mask(probabilities: Floats, p: float) -> NDArray[np.bool_]:
    """probabilities (V,), 0 < p < 1 -> (V,), true for the most typical that add up to p or more.

    distance = | -log(probability) - entropy |, the smaller the more typical; equal distances are kept together
    """
    with np.errstate(divide="ignore"):  # a probability of 0 is infinitely surprising
        surprisal = -np.log(probabilities)
    product = np.multiply(probabilities, surprisal, where=probabilities > 0, out=np.zeros(probabilities.size))
    entropy = product.sum()
    distance = np.abs(surprisal - entropy)
    # Sorting 150,000 distances takes 5 ms. So they are binned first, and only the bin in which p is reached is sorted.
    # Tokens with a surprisal above `rare` add up to less than (1 - p) / 2, so one bin will do for them.
    rare = np.log(2 * probabilities.size / (1 - p))
    bins = np.minimum(distance * (BINS / max(rare - entropy, entropy)), BINS).astype(np.intp)
    sums = np.cumsum(np.bincount(bins, probabilities))
    if sums[-1] < p:  # rounding
        return np.ones(probabilities.size, np.bool_)
    place = int(np.searchsorted(sums, p))
    border = np.flatnonzero(bins == place)
    border = border[np.argsort(distance[border])]
    before = sums[place - 1] if place else 0.0
    last = int(np.searchsorted(before + np.cumsum(probabilities[border]), p))
    return distance <= distance[border[min(last, border.size - 1)]]


def largest(values: Floats, k: int) -> NDArray[np.intp]:
    """values (V,) -> (min(k, V),) ids of the largest, descending; among equal values, the lowest id first."""
    ids = np.flatnonzero(top_k_mask(values, k))
    return ids[np.argsort(-values[ids], kind="stable")]


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities over the last axis, float64. Raises FastllmError like Sampler."""
    x = check_logits(logits).astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return x


class TokenLogprobs(NamedTuple):
    """A generated token's log-probability, and the most probable tokens in its place.

    They are log_softmax of the model's own logits, before penalties, temperature and the rest.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # (token, its log-probability), descending


def token_logprobs(logits: Floats, token: int, alternatives: int) -> TokenLogprobs:
    """For logits (V,) from which the token was chosen, with min(alternatives, V) alternatives.

    Raises FastllmError like Sampler.

    >>> token_logprobs(np.log([0.5, 0.25, 0.25]), token=2, alternatives=1)
    TokenLogprobs(token=2, logprob=-1.3862943611198906, top=((0, -0.6931471805599453),))
    """
    logs = log_softmax(logits)
    top = largest(logs, alternatives) if alternatives else ()
    return TokenLogprobs(token, float(logs[token]), tuple((int(id), float(logs[id])) for id in top))


def check_logits(logits: Floats) -> Floats:
    """The logits themselves, if their maximum is finite: this finds NaN, +inf and rows of only -inf.

    A single -inf is allowed: it rules a token out.
    """
    top = logits.max(axis=-1)
    if not np.isfinite(top).all():
        raise FastllmError(
            f"the largest logit must be finite; got {top[~np.isfinite(top)].flat[0]}; "
            "the model is damaged: load another checkpoint, or train with a lower learning rate; or its keys and "
            "values are too large for a cache of float16: use float32"
        )
    return logits
