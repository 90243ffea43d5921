"""Beam search over the KV cache, with a slot for each hypothesis.

    score = sum of log-probabilities / length ** length_penalty

length counts the generated tokens, the end token included (Wu et al. 2016, arXiv:1609.08144, equation 14,
with the plain length in place of (5 + length) / 6, as in Hugging Face's transformers).

logit_bias and the penalties change the log-probabilities, after log_softmax, as they would logits; this is what
transformers does, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .config import GenerationConfig
from .sampling import Floats, Penalties, largest, log_softmax

if TYPE_CHECKING:
    from ..model import Model


class Hypothesis(NamedTuple):
    """A generated sequence without its end token, its score, and whether an end token ended it."""

    tokens: list[int]
    score: float
    ended: bool


def search(model: Model, prompt: np.ndarray, max_tokens: int, config: GenerationConfig) -> list[Hypothesis]:
    """The best hypotheses, at most `config.beams`, best first.

    prompt      (N,) int32, N >= 1
    max_tokens  replaces config's; N + max_tokens - 1 <= model.config.context

    Each step ranks the continuations of all running hypotheses. Those among the best `beams` that end are finished;
    the best `beams` that don't end go on. At max_tokens every hypothesis ends; `config.early_stopping` decides
    whether the search stops before. With "never", and as many beams as there are prefixes of max_tokens - 1 tokens,
    the search is exhaustive.
    """
    beams, length_penalty, end_ids = config.beams, config.length_penalty, list(config.end_ids or ())
    cache = model.new_cache(slots=beams)
    logits = model.prefill(prompt, np.array([0, prompt.size], np.int32), cache, np.zeros(1, np.int32))
    running: list[list[int]] = [[]]
    penalties = [Penalties(config, prompt)]
    sums: Floats = np.zeros(1)  # (B,) log-probabilities of the running hypotheses, descending
    finished: list[Hypothesis] = []

    for length in range(1, max_tokens + 1):
        logs = log_softmax(logits)
        changed = np.stack([penalty(row) for penalty, row in zip(penalties, logs, strict=True)])
        totals = sums[:, None] + changed  # (B, V)
        # enough that `beams` go on however many of them end
        best = largest(totals.ravel(), beams + len(running) * len(end_ids))
        best = best[totals.flat[best] > -np.inf]
        parents, tokens = np.divmod(best, totals.shape[1])
        is_end = np.isin(tokens, end_ids)
        stops = is_end | (length == max_tokens)

        for i in np.flatnonzero(stops[:beams]):
            sequence = running[parents[i]] + ([] if is_end[i] else [int(tokens[i])])
            finished.append(Hypothesis(sequence, float(totals.flat[best[i]]) / length**length_penalty, bool(is_end[i])))
        finished = sorted(finished, key=lambda hypothesis: -hypothesis.score)[:beams]

        going_on = np.flatnonzero(~stops)[:beams]
        if not going_on.size:
            break
        sums = totals.flat[best[going_on]]
        if len(finished) == beams and _is_settled(config, float(sums[0]), length, max_tokens, finished[-1].score):
            break
        sources, appended = parents[going_on], tokens[going_on].astype(np.int32)
        running = [[*running[i], int(token)] for i, token in zip(sources, appended, strict=True)]
        penalties = [penalties[i].copy() for i in sources]
        for penalty, token in zip(penalties, appended.tolist(), strict=True):
            penalty.add(token)
        slots = np.zeros(beams, np.int32)  # unused slots share slot 0's pages
        slots[: len(running)] = sources
        cache.reorder(slots)
        logits = model.decode(appended, cache, np.arange(len(running), dtype=np.int32))
    return finished


def _is_settled(config: GenerationConfig, best_sum: float, length: int, max_tokens: int, worst_score: float) -> bool:
    """Whether a search with `beams` finished hypotheses stops; best_sum is the best running hypothesis's."""
    if config.early_stopping is True:
        return True
    # A sum of log-probabilities can only fall (a positive bias aside). So no running hypothesis can score more than the
    # best sum does at max_tokens or, with a length_penalty of 0 or less, at its present length. In other cases the
    # present length is only a heuristic.
    reaches_far = config.early_stopping == "never" and config.length_penalty > 0
    return best_sum / (max_tokens if reaches_far else length) ** config.length_penalty <= worst_score
