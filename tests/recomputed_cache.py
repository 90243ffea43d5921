"""A model's cached generation by way of Model.forward: it keeps tokens and reads the whole text each time.

install() gives it to Model where Model.decode has no slots of its own.
"""

import inspect

import numpy as np
import pytest

from fastllm.model import Model

RECOMPUTES = "slots" not in inspect.signature(Model.decode).parameters
in_a_process_of_its_own = pytest.mark.skipif(RECOMPUTES, reason="the cache is recomputed in this process only")


class RecomputedCache:
    def __init__(self, slots):
        self.texts = [[] for _ in range(slots)]

    @property
    def lengths(self):
        return np.array([len(text) for text in self.texts], np.int32)

    def truncate(self, slot, length):
        self.texts[slot] = self.texts[slot][:length]

    def release(self, slot):
        self.texts[slot] = []

    def copy(self, source, target):
        self.texts[target] = self.texts[source]

    def reorder(self, indices):
        self.texts = [self.texts[index] for index in indices]


def install():
    if not RECOMPUTES:
        return
    new_cache, prefill, decode = Model.new_cache, Model.prefill, Model.decode

    def with_slots(model, *sizes, slots=None, **other):
        return new_cache(model, *sizes, **other) if slots is None else RecomputedCache(slots)

    def append(model, cache, slot, tokens):
        text = [*cache.texts[slot], *map(int, tokens)]
        if len(text) > model.config.context:
            raise ValueError(f"the cache is full: the context has {model.config.context} tokens")
        cache.texts[slot] = text
        return model.forward(np.array(text, np.int32))[-1]

    def prefill_slots(model, tokens, starts, cache, slots=None):
        if not isinstance(cache, RecomputedCache):
            return prefill(model, tokens, starts, cache)
        stretches = np.split(np.asarray(tokens), np.asarray(starts)[1:-1])
        slots = range(len(stretches)) if slots is None else slots
        return np.stack([append(model, cache, slot, part) for slot, part in zip(slots, stretches, strict=True)])

    def decode_slots(model, tokens, cache, slots=None):
        if not isinstance(cache, RecomputedCache):
            return decode(model, tokens, cache)
        slots = range(len(tokens)) if slots is None else slots
        return np.stack([append(model, cache, slot, [token]) for slot, token in zip(slots, tokens, strict=True)])

    Model.new_cache, Model.prefill, Model.decode = with_slots, prefill_slots, decode_slots
    Model.generation_options = {}
