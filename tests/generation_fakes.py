"""Models small enough to predict, with the methods that generation calls."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np


class FakeCache:
    """Keeps the tokens themselves, so a wrong reorder changes the logits."""

    def __init__(self, batch, capacity):
        self.tokens = np.full((batch, capacity), -1, np.int32)
        self.lengths = np.zeros(batch, np.int32)
        self.capacity = capacity

    def reorder(self, indices):
        assert indices.shape == self.lengths.shape
        self.tokens[:] = self.tokens[indices]
        self.lengths[:] = self.lengths[indices]


class TableModel:
    """logits after t_0 ... t_n = sum over i of 0.6 ** (n - i) * table[i, t_i]."""

    def __init__(self, vocab_size=5, context=8, seed=0, scale=1.0):
        self.config = SimpleNamespace(vocab_size=vocab_size, context=context)
        self.table = np.random.default_rng(seed).normal(scale=scale, size=(context, vocab_size, vocab_size))
        self.prompts = []
        self.decoded = 0

    def next_logits(self, tokens):
        places = np.arange(len(tokens))
        weights = 0.6 ** places[::-1]
        return (weights @ self.table[places, tokens]).astype(np.float32)

    def new_cache(self, batch, capacity):
        assert capacity <= self.config.context
        return FakeCache(batch, capacity)

    def prefill(self, tokens, starts, cache):
        assert tokens.dtype == starts.dtype == np.int32
        self.prompts.append(tokens.tolist())
        for slot, (start, stop) in enumerate(pairwise(starts)):
            cache.tokens[slot, : stop - start] = tokens[start:stop]
            cache.lengths[slot] = stop - start
        return self._last_logits(cache)[: len(starts) - 1]

    def decode(self, tokens, cache):
        assert tokens.dtype == np.int32
        assert tokens.shape == cache.lengths.shape
        self.decoded += 1
        cache.tokens[np.arange(len(tokens)), cache.lengths] = tokens  # IndexError when the cache is full
        cache.lengths += 1
        return self._last_logits(cache)

    def _last_logits(self, cache):
        return np.stack(
            [self.next_logits(row[:length]) for row, length in zip(cache.tokens, cache.lengths, strict=True)]
        )


class ScriptedModel(TableModel):
    """Says the same tokens after every prompt: one script an answer, and 0s after its end."""

    def __init__(self, *scripts, vocab_size, context=64):
        super().__init__(vocab_size, context, scale=0.0)
        self.scripts = list(scripts)

    def prefill(self, tokens, starts, cache):
        self.script = iter(self.scripts.pop(0))
        return super().prefill(tokens, starts, cache)

    def _last_logits(self, cache):
        logits = super()._last_logits(cache)
        logits[:, next(self.script, 0)] = 1.0
        return logits
