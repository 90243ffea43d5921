"""Beam search over the KV cache, one hypothesis a slot.

    score = sum of log-probabilities / length ** length_penalty

length counts the generated tokens, the end token included (Wu et al. 2016, arXiv:1609.08144, equation 14,
with the plain length in place of (5 + length) / 6, as in Hugging Face's transformers).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastllm.generation.config import GenerationConfig
from fastllm.generation.sampling import Floats, largest, log_softmax

if TYPE_CHECKING:
    from fastllm.model import Model


class Hypothesis(NamedTuple):
    """A generated sequence, without its end token, and its score."""

    tokens: list[int]
    score: float


def search(
    model: Model, prompt: np.ndarray, max_tokens: int, config: GenerationConfig, end_ids: Collection[int]
) -> list[Hypothesis]:
    """The best hypotheses, at most `config.beams`, best first.

    prompt      (N,) int32, N >= 1
    max_tokens  in place of config's; N + max_tokens - 1 <= model.config.context

    A step looks at the best continuations of all running hypotheses: of the first `beams`, those that end
    are finished, and the first `beams` that don't end go on. At max_tokens every hypothesis ends. The search
    stops early only when no running hypothesis can beat the worst finished one. With as many beams as there
    are prefixes of max_tokens - 1 tokens it is exhaustive.
    """
    beams, length_penalty = config.beams, config.length_penalty
    cache = model.new_cache(beams)
    logits = model.prefill(prompt, np.array([0, prompt.size], np.int32), cache)
    running: list[list[int]] = [[]]
    sums: Floats = np.zeros(1)  # (B,) log-probabilities of the running hypotheses, descending
    finished: list[Hypothesis] = []

    for length in range(1, max_tokens + 1):
        totals = sums[:, None] + log_softmax(logits[: len(running)])  # (B, V)
        # enough for `beams` to go on, whichever end
        best = largest(totals.ravel(), beams + len(running) * len(end_ids))
        best = best[totals.flat[best] > -np.inf]
        parents, tokens = np.divmod(best, totals.shape[1])
        is_end = np.isin(tokens, list(end_ids))
        stops = is_end | (length == max_tokens)

        for i in np.flatnonzero(stops[:beams]):
            sequence = running[parents[i]] + ([] if is_end[i] else [int(tokens[i])])
            finished.append(Hypothesis(sequence, float(totals.flat[best[i]]) / length**length_penalty))
        finished = sorted(finished, key=lambda hypothesis: -hypothesis.score)[:beams]

        going_on = np.flatnonzero(~stops)[:beams]
        if not going_on.size:
            break
        sums = totals.flat[best[going_on]]
        # A sum can only fall. Divided, it is best at the greatest length, or with a negative penalty at the
        # next one.
        reachable = sums[0] / (max_tokens if length_penalty > 0 else length + 1) ** length_penalty
        if len(finished) == beams and reachable <= finished[-1].score:
            break
        running = [[*running[parents[i]], int(tokens[i])] for i in going_on]
        # slots to spare follow slot 0, and nobody looks at their logits
        slots, appended = np.zeros((2, beams), np.int32)
        slots[: len(running)] = parents[going_on]
        appended[: len(running)] = tokens[going_on]
        cache.reorder(slots)
        logits = model.decode(appended, cache)
    return finished
