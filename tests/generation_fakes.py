"""Models small enough to predict, with the methods that generation calls."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np

from fastllm.generation import generate_tokens
from fastllm.generation.sampling import Sampler


class FakeCache:
    """Keeps the tokens themselves, so a wrong slot, copy or reorder changes the logits."""

    def __init__(self, slots):
        self.texts = [[] for _ in range(slots)]
        self.used = set()  # slots that hold something and aren't released
        self.log = []

    @property
    def lengths(self):
        return np.array([len(text) for text in self.texts], np.int32)

    def append(self, slot, tokens):
        self.texts[slot] = [*self.texts[slot], *map(int, tokens)]
        self.used.add(int(slot))

    def truncate(self, slot, length):
        assert 0 <= length <= len(self.texts[slot])
        self.texts[slot] = self.texts[slot][:length]

    def release(self, slot):
        self.texts[slot] = []
        self.used.discard(int(slot))

    def copy(self, source, target):
        assert source != target
        assert not self.texts[target]
        self.log.append("copy")
        self.texts[target] = self.texts[source]
        self.used.add(int(target))

    def reorder(self, indices):
        assert indices.shape == (len(self.texts),)
        self.texts = [self.texts[index] for index in indices]


class TableModel:
    """logits after t_0 ... t_n = sum over i of 0.6 ** (n - i) * table[i, t_i].

    What prefill and decode returned is worth nothing after the next call.
    """

    def __init__(self, vocab_size=5, context=8, seed=0, scale=1.0):
        self.config = SimpleNamespace(vocab_size=vocab_size, context=context)
        self.table = np.random.default_rng(seed).normal(scale=scale, size=(context, vocab_size, vocab_size))
        self.generation_options = {}
        self.backend = "numpy"  # nothing is compiled for it
        self.prompts = []  # stretches of prompts, in the order they were read
        self.prefilled = []  # tokens in each call of prefill
        self.rows = []  # rows in each call of decode
        self.caches = []
        self.returned = np.empty(0)

    @property
    def decoded(self):
        return len(self.rows)

    @property
    def cache(self):
        return self.caches[-1]

    def next_logits(self, tokens):
        places = np.arange(len(tokens))
        weights = 0.6 ** places[::-1]
        return (weights @ self.table[places, tokens]).astype(np.float32)

    def new_cache(self, slots=8):
        self.caches.append(FakeCache(slots))
        return self.cache

    def prefill(self, tokens, starts, cache, slots=None):
        slots = np.arange(len(starts) - 1) if slots is None else slots
        assert tokens.dtype == starts.dtype == np.int32
        assert (starts[0], starts[-1], len(slots)) == (0, len(tokens), len(starts) - 1)
        assert len(set(slots.tolist())) == len(slots)
        self.prefilled.append(len(tokens))
        for slot, (start, stop) in zip(slots, pairwise(starts), strict=True):
            assert start < stop
            self.prompts.append(tokens[start:stop].tolist())
            cache.append(slot, tokens[start:stop])
        return self.give([self.logits_of(cache, slot) for slot in slots])

    def decode(self, tokens, cache, slots=None):
        slots = np.arange(len(tokens)) if slots is None else slots
        assert tokens.dtype == np.int32
        assert tokens.shape == slots.shape != (0,)
        self.rows.append(len(tokens))
        logits = []
        for token, slot in zip(tokens, slots, strict=True):
            assert cache.texts[slot]
            cache.append(slot, [token])
            logits.append(self.logits_of(cache, slot))
        return self.give(logits)

    def give(self, rows):
        self.returned.fill(np.nan)
        self.returned = np.stack(rows)
        return self.returned

    def logits_of(self, cache, slot):
        assert len(cache.texts[slot]) <= self.config.context
        return self.next_logits(cache.texts[slot])


class ScriptedModel(TableModel):
    """Says the same tokens after every prompt: one script an answer, and 0s after its end."""

    def __init__(self, *scripts, vocab_size, context=64):
        super().__init__(vocab_size, context, scale=0.0)
        self.scripts = list(scripts)
        self.whole = []  # prompts, with what the cache held of them before
        self.begun = {}  # slot -> length of its prompt and what it says

    def prefill(self, tokens, starts, cache, slots=None):
        slots = np.arange(len(starts) - 1) if slots is None else slots
        for slot, length in zip(slots, np.diff(starts), strict=True):
            self.begun[int(slot)] = len(cache.texts[slot]) + int(length), self.scripts.pop(0)
        logits = super().prefill(tokens, starts, cache, slots)
        self.whole += [list(map(int, cache.texts[slot])) for slot in slots]
        return logits

    def logits_of(self, cache, slot):
        length, script = self.begun[int(slot)]
        said = len(cache.texts[slot]) - length
        logits = super().logits_of(cache, slot)
        logits[script[said] if said < len(script) else 0] = 1.0
        return logits


def greedy_without_cache(model, tokens, count):
    tokens = list(tokens)
    for _ in range(count):
        tokens.append(int(np.argmax(model.next_logits(tokens))))
    return tokens[-count:]


def run(engine):
    while engine.busy:
        engine.step()


def is_idle(engine):
    """Whether all slots are free, and the cache holds nothing."""
    return len(engine._free) == engine.slots and not engine._cache.used and not engine.busy


def samples(prompt, config, model):
    """What each of the samples is alone."""
    for sample in range(config.n):
        yield list(generate_tokens(model, prompt, config, n=1, sampler=Sampler(config, sample)))
