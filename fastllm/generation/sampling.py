"""From logits to one token.

    probability = softmax(logits / temperature), then top_k, then top_p, then renormalised
    token       = first id whose cumulative probability exceeds u, u uniform in [0, 1)

Probabilities are float64: in float32 the cumulative sum over 50,000 tokens is off by more than the
probability of most of them. Among equals the lowest id is the most probable, here and in beam search.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastllm.errors import FastllmError
from fastllm.generation.config import GenerationConfig

Floats = NDArray[np.floating]


class Sampler:
    """Chooses token after token of one sequence; holds the random state.

    A token costs one random number, so a sequence draws the same tokens alone and beside others.

    >>> sampler = Sampler(GenerationConfig(temperature=1.0, top_k=2, seed=1))
    >>> [sampler(np.array([0.0, 3.0, 2.5])) for _ in range(5)]
    [1, 2, 1, 2, 1]
    """

    def __init__(self, config: GenerationConfig) -> None:
        self.config = config
        self.random = np.random.default_rng(config.seed)

    def __call__(self, logits: Floats) -> int:
        """logits (V,) -> token id. Raises FastllmError if the logits hold NaN or no finite maximum."""
        config = self.config
        if config.temperature == 0:
            return int(np.argmax(check_logits(logits)))
        cumulative = np.cumsum(probabilities(logits, config.temperature, config.top_k, config.top_p))
        return int(np.searchsorted(cumulative, self.random.random() * cumulative[-1], side="right"))


def probabilities(logits: Floats, temperature: float, top_k: int | None = None, top_p: float = 1.0) -> Floats:
    """The distribution a token is drawn from: logits (V,) -> (V,) float64, 0 for tokens left out.

    >>> probabilities(np.log([0.1, 0.4, 0.2, 0.3]), temperature=1.0, top_p=0.6).round(3)
    array([0.   , 0.571, 0.   , 0.429])
    """
    x = check_logits(logits).astype(np.float64)
    x -= x.max()
    with np.errstate(over="ignore"):  # a tiny temperature: -inf, as in the limit
        x /= temperature
    if top_k:
        x[~top_k_mask(x, top_k)] = -np.inf
    out = np.exp(x)
    out /= out.sum()
    if top_p < 1:
        out[~top_p_mask(out, top_p)] = 0.0
        out /= out.sum()
    return out


def top_k_mask(values: Floats, k: int) -> NDArray[np.bool_]:
    """values (V,) -> (V,), true for the k largest; of equal values the lowest ids."""
    if k >= values.size:
        return np.ones(values.size, np.bool_)
    smallest_kept = np.partition(values, -k)[-k]
    mask = values > smallest_kept
    ties = np.flatnonzero(values == smallest_kept)
    mask[ties[: k - np.count_nonzero(mask)]] = True
    return mask


def top_p_mask(probabilities: Floats, p: float) -> NDArray[np.bool_]:
    """probabilities (V,), 0 < p < 1 -> (V,), true for the fewest largest that add up to p or more."""
    # The rest, each below the bound, adds up to less than (1 - p) / 2 and is never reached. Sorting all of
    # 50,257 takes 2.6 ms, a good part of a decoding step; sorting these takes next to nothing.
    likely = np.flatnonzero(probabilities >= (1 - p) / (2 * probabilities.size))
    descending = np.sort(probabilities[likely])[::-1]
    count = int(np.searchsorted(np.cumsum(descending), p)) + 1
    mask = np.zeros(probabilities.size, np.bool_)
    mask[likely[top_k_mask(probabilities[likely], count)]] = True
    return mask


def largest(values: Floats, k: int) -> NDArray[np.intp]:
    """values (V,) -> (min(k, V),) ids of the largest, descending; of equal values the lowest id first."""
    ids = np.flatnonzero(top_k_mask(values, k))
    return ids[np.argsort(-values[ids], kind="stable")]


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities over the last axis, float64. Raises FastllmError like Sampler."""
    x = check_logits(logits).astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return x


def check_logits(logits: Floats) -> Floats:
    """The logits themselves; -inf rules a token out. Their maximum shows NaN, +inf and a row of -inf."""
    top = logits.max(axis=-1)
    if not np.isfinite(top).all():
        raise FastllmError(
            f"the largest logit must be finite; got {top[~np.isfinite(top)].flat[0]}; "
            "the model is damaged: load another checkpoint, or train with a lower learning rate"
        )
    return logits
