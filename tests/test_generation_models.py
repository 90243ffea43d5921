"""Generation with a model and its cache, on the kernels and on the twins: what fakes can't show."""

from itertools import product

import numpy as np
import pytest
from generation_fakes import greedy_without_cache

import fastllm
from fastllm.generation import (
    Engine,
    GenerationConfig,
    beam_search,
    generate_tokens,
)
from fastllm.generation.sampling import log_softmax
from fastllm.tokenizers import CharacterTokenizer

CHARACTERS = CharacterTokenizer.build(["abcdefgh END"])


def real_model(backend="numpy", **changes):
    import fastllm

    sizes = {"vocab_size": 29, "width": 24, "hidden": 40, "layers": 2, "heads": 4, "context": 19}
    model = fastllm.Model(fastllm.ModelConfig(**{**sizes, **changes}), seed=0, backend=backend)
    random = np.random.default_rng(1)
    for parameter in model.parameters.values():  # biases too, and logits of about 1
        parameter[...] += random.normal(scale=0.2, size=parameter.shape)
    return model


VARIANTS = [
    {"positions": "learned"},
    {"positions": "sinusoidal"},
    {"positions": "none"},
    {"positions": "rope"},
    {"positions": "rope", "rope_interleaved": True},
    {"positions": "rope", "kv_heads": 2, "head_size": 8},
    {"positions": "rope", "kv_heads": 1, "norm": "rms_norm", "norm_bias": False, "activation": "swiglu"},
    {"heads": 1, "norm_position": "post", "final_norm": False, "attention_output": False, "tied_head": False},
]

# Cached and uncached logits are sums of the same float32 products in another order: some 100 products an
# entry and a few layers, each within 6e-8 of itself.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def starts_of(*lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_cached_equals_uncached(backend, variant):
    model = real_model(backend, **variant)
    tokens = np.random.default_rng(2).integers(0, 29, 19).astype(np.int32)
    uncached = model.forward(tokens)
    assert np.abs(uncached).max() > 0.5
    for stretches in ((1,), (2,), (11,), (19,), (3, 4, 5), (1, 1, 9)):
        cache = model.new_cache(slots=1)
        length = 0
        for stretch in stretches:
            logits = model.prefill(tokens[length : length + stretch], starts_of(stretch), cache)
            length += stretch
            np.testing.assert_allclose(logits, uncached[[length - 1]], **CLOSE)
        for n in range(length, 19):
            logits = model.decode(tokens[n : n + 1], cache)
            np.testing.assert_allclose(logits[0], uncached[n], **CLOSE)
        assert cache.lengths.tolist() == [19]
        with pytest.raises(ValueError, match=r"context|cache"):
            model.decode(tokens[:1], cache)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_slots_grow_shrink_and_are_copied(backend):
    """Any of the cache's operations, in any order, and the texts kept beside it."""
    model = real_model(backend, positions="rope", kv_heads=2, context=150)
    random = np.random.default_rng(0)
    cache = model.new_cache(slots=4)
    texts = [[] for _ in range(4)]
    checked = 0
    for _ in range(200):
        some = random.permutation(4)[: random.integers(1, 5)].astype(np.int32)
        operation = random.choice(["prefill", "decode", "several", "truncate", "release", "copy", "reorder"])
        logits, rows = [], []
        if operation == "prefill":
            parts = [random.integers(0, 29, random.integers(1, 40)).astype(np.int32) for _ in some]
            if max(len(texts[slot]) + len(part) for slot, part in zip(some, parts, strict=True)) <= 150:
                logits = model.prefill(np.concatenate(parts), starts_of(*map(len, parts)), cache, some)
                for slot, part in zip(some, parts, strict=True):
                    texts[slot] = [*texts[slot], *part]
                    rows.append(texts[slot])
        elif operation in ("decode", "several"):
            slots = np.repeat(some, 1 if operation == "decode" else 3)
            if all(0 < len(texts[slot]) <= 147 for slot in some):
                tokens = random.integers(0, 29, slots.size).astype(np.int32)
                logits = model.decode(tokens, cache, slots)
                for slot, token in zip(slots, tokens, strict=True):
                    texts[slot] = [*texts[slot], token]
                    rows.append(texts[slot])
        elif operation == "truncate":
            length = int(random.integers(0, len(texts[some[0]]) + 1))
            cache.truncate(some[0], length)
            texts[some[0]] = texts[some[0]][:length]
        elif operation == "release":
            cache.release(some[0])
            texts[some[0]] = []
        elif operation == "copy" and some.size > 1:
            cache.release(some[1])
            cache.copy(some[0], some[1])
            texts[some[1]] = texts[some[0]]
        elif operation == "reorder":
            order = random.integers(0, 4, 4).astype(np.int32)
            cache.reorder(order)
            texts = [texts[slot] for slot in order]
        assert cache.lengths.tolist() == [len(text) for text in texts]
        for row, text in zip(logits, rows, strict=True):
            np.testing.assert_allclose(row, model.forward(np.array(text, np.int32))[-1], **CLOSE)
            checked += 1
    assert checked > 50


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_batch_equals_each_alone_and_slots_can_be_reordered(backend):
    model = real_model(backend, positions="rope", kv_heads=2)
    texts = [np.random.default_rng(n).integers(0, 29, 14).astype(np.int32) for n in range(3)]
    lengths = (5, 1, 8)
    cache = model.new_cache(slots=3)
    prompts = np.concatenate([text[:n] for text, n in zip(texts, lengths, strict=True)])
    logits = model.prefill(prompts, starts_of(*lengths), cache)
    order = np.array([0, 1, 2], np.int32)
    for step, swap in enumerate([(2, 0, 1), (0, 0, 1), (1, 2, 2)]):
        for slot, text in enumerate(order):
            expected = model.forward(texts[text][: lengths[text] + step])[-1]
            np.testing.assert_allclose(logits[slot], expected, **CLOSE)
        cache.reorder(np.array(swap, np.int32))
        order = order[list(swap)]
        following = [texts[text][lengths[text] + step] for text in order]
        logits = model.decode(np.array(following, np.int32), cache)


def test_texts_of_the_real_model_are_the_same_alone_and_in_any_batch():
    """To the bit, log-probabilities included. (Only on kernels: the twins' BLAS gives a row other bits when alone.)"""
    model = real_model("numba", positions="rope", context=64)
    random = np.random.default_rng(5)
    requests = [
        (random.integers(0, 29, length), GenerationConfig(max_tokens=10, temperature=temperature, logprobs=1))
        for length, temperature in zip((3, 40, 1, 17, 9, 50), (0.0, 1.0, 0.7) * 2, strict=True)
    ]
    found = []
    for slots in (1, 3, 6):
        engine = Engine(model, slots, chunk=16)
        generations = [engine.submit(*request)[0] for request in requests]
        while engine.busy:
            engine.step()
        found.append([(generation.tokens, generation.logprobs) for generation in generations])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_drafts_change_no_text_of_the_real_model(backend, monkeypatch):
    model = real_model(backend, positions="none", context=64)
    steps = []
    decode = type(model).decode

    def counted(model, tokens, cache, slots):
        steps.append(len(tokens))
        return decode(model, tokens, cache, slots)

    monkeypatch.setattr(type(model), "decode", counted)
    texts, used = [], []
    for options in ({}, {"speculate": 5}, {"speculate": 5, "frequency_penalty": 0.3}, {"frequency_penalty": 0.3}):
        steps.clear()
        texts.append(list(generate_tokens(model, [3, 4, 5, 3, 4], **options)))
        used.append(len(steps))
    assert texts[0] == texts[1] != texts[2] == texts[3]
    assert used[1] < used[0] / 2
    assert used[2] <= used[3]


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_greedy_text_of_the_real_model(backend):
    model = real_model(backend, positions="rope")
    model.next_logits = lambda tokens: model.forward(np.array(tokens, np.int32))[-1]
    assert list(generate_tokens(model, [3, 4, 5])) == greedy_without_cache(model, [3, 4, 5], 17)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_beam_search_of_the_real_model_equals_brute_force(backend):
    model = real_model(backend, vocab_size=CHARACTERS.vocab_size - 6, context=6)
    end, steps = CHARACTERS.end_id, 3
    vocab_size = model.config.vocab_size
    prompt = CHARACTERS.encode("a")
    assert prompt[0] < vocab_size

    def score(tokens):
        logs = log_softmax(model.forward(np.array([*prompt, *tokens], np.int32)))
        return sum(logs[i, token] for i, token in enumerate(tokens)) / len(tokens)

    others = [token for token in range(vocab_size) if token != end]
    sequences = [(*body, end) for n in range(steps) for body in product(others, repeat=n)]
    sequences += list(product(others, repeat=steps))
    best = sorted(((score(tokens), tokens) for tokens in sequences), reverse=True)[:20]

    beams = vocab_size ** (steps - 1)
    found = beam_search(model, CHARACTERS, "a", beams=beams, max_tokens=steps, early_stopping="never")[:20]
    np.testing.assert_allclose([s for _, s in found], [s for s, _ in best], **CLOSE)
    assert found[0][0] == CHARACTERS.decode(best[0][1])


@pytest.mark.parametrize(("rows", "is_one"), [(256, False), (257, True)])
def test_the_end_token_is_one_of_the_models(rows, is_one):
    config = fastllm.preset("nano", vocab_size=rows, layers=1, width=8, heads=2, context=8)
    model = fastllm.Model(config, backend="numpy")
    tokenizer = fastllm.ByteTokenizer()
    if is_one:
        assert isinstance(fastllm.generate(model, tokenizer, "a", max_tokens=2), str)
    else:
        with pytest.raises(ValueError, match="must be below the model's vocab_size, 256; got 256"):
            fastllm.generate(model, tokenizer, "a", max_tokens=2)


def test_rows_that_no_token_stands_for_add_nothing():
    tokenizer = fastllm.ByteTokenizer()
    model = fastllm.Model(
        fastllm.preset("nano", vocab_size=320, layers=1, width=8, heads=2, context=64), seed=0, backend="numpy"
    )
    found = fastllm.generate_batch(model, tokenizer, ["a", "b"], max_tokens=40, temperature=2.0, end_ids=(), logprobs=0)
    tokens = [token for one in found for token in one.tokens]
    assert max(tokens) > 259
    for one in found:
        assert one.text == tokenizer.decode([token for token in one.tokens if token < 259])


def test_a_tokenizer_of_a_larger_model_is_refused():
    config = fastllm.preset("nano", vocab_size=100, layers=1, width=8, heads=2, context=8)
    model = fastllm.Model(config, backend="numpy")
    for use in (lambda: fastllm.generate(model, fastllm.ByteTokenizer(), "a"),
                lambda: fastllm.Chat(model, fastllm.ByteTokenizer())):  # fmt: skip
        with pytest.raises(ValueError, match="must be below the model's vocab_size, 100; got 256"):
            use()
