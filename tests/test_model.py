"""What a model promises besides its formula: packing, masks, accumulation, threads, memory, the cache."""

import copy
import dataclasses
import os
import pickle
import subprocess
import sys
import tracemalloc
from functools import partial
from itertools import pairwise

import numba
import numpy as np
import pytest
from model_switches import LLAMA3, make_batch, make_model

import fastllm
from fastllm.kernels import reference
from fastllm.layers.batch import Batch
from fastllm.layers.workspace import Rows

# The same sums in another order: of the largest number. See test_model_switches.
TOLERANCE = 3e-5

CONFIG = fastllm.ModelConfig(
    vocab_size=19, width=12, hidden=11, layers=2, heads=6, kv_heads=2, context=9, norm="rms_norm",
    activation="swiglu", positions="rope", rope_scaling=LLAMA3,
)  # fmt: skip
POSITIONS = {
    kind: fastllm.ModelConfig(vocab_size=19, width=12, hidden=11, layers=2, heads=3, context=9, positions=kind)
    for kind in ("learned", "rope", "sinusoidal", "none")
}

backends = pytest.mark.parametrize("backend", ["numba", "numpy"])


def assert_close(got, expected, tolerance=TOLERANCE):
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def gradients_of(model, *batches, **options):
    """The gradients of some batches added up, from zero."""
    model.zero_gradients()
    for batch in batches:
        model.score_and_gradients(batch.tokens, batch.targets, batch.starts, **options)
    return model.gradients.flat.copy()


# Packing


@backends
@pytest.mark.parametrize("config", POSITIONS.values(), ids=POSITIONS)
def test_packed_sequences_do_not_see_each_other(config, backend):
    model = make_model(config, backend)
    batch = make_batch(config, (5, 1, 9, 2))
    logits = model.forward(batch.tokens, batch.starts)
    for begin, end in pairwise(batch.starts):
        assert_close(logits[begin:end], model.forward(batch.tokens[begin:end]))


@backends
def test_packed_gradients_are_those_of_the_sequences_added_up(backend):
    model = make_model(CONFIG, backend)
    batch = make_batch(CONFIG, (5, 1, 9, 2))
    together = gradients_of(model, batch, normalizer=batch.target_count)
    alone = gradients_of(model, *batch.split(4), normalizer=batch.target_count)
    assert_close(together, alone)


@backends
def test_a_rectangle_is_packed_rows(backend):
    model = make_model(CONFIG, backend)
    batch = make_batch(CONFIG, (7, 7, 7))
    tokens, targets = batch.tokens.reshape(3, 7), batch.targets.reshape(3, 7)
    logits = model.forward(tokens)
    assert logits.shape == (3, 7, 19)
    np.testing.assert_array_equal(logits.reshape(21, 19), model.forward(batch.tokens, batch.starts))
    assert model.loss(tokens, targets) == model.loss(batch.tokens, batch.targets, batch.starts)
    packed = gradients_of(model, batch)
    model.zero_gradients()
    model.loss_and_gradients(tokens, targets)
    np.testing.assert_array_equal(model.gradients.flat, packed)


def test_ids_of_any_integer_type_and_lists_are_taken():
    model = make_model(CONFIG, "numpy")
    ids = [3, 0, 18]
    expected = model.forward(np.array(ids, np.int32))
    for tokens in (ids, np.array(ids, np.uint8), np.array(ids, np.int64), np.repeat(ids, 2)[::2]):
        np.testing.assert_array_equal(model.forward(tokens), expected)


# Loss


@backends
def test_masked_targets_cost_nothing(backend):
    """The loss is the mean over the others; rows after the last target get no gradient."""
    model = make_model(CONFIG, backend)
    batch = make_batch(CONFIG, (9, 9))
    log_likelihood = model.forward(batch.tokens, batch.starts).astype(np.float64)
    log_likelihood -= np.log(np.exp(log_likelihood).sum(axis=1, keepdims=True))
    rows = np.flatnonzero(batch.targets >= 0)
    assert 0 < len(rows) < 18
    score = model.score(batch.tokens, batch.targets, batch.starts)
    assert score.loss == pytest.approx(-log_likelihood[rows, batch.targets[rows]].mean(), rel=1e-5)
    assert score.targets == len(rows)
    assert score.correct == (log_likelihood[rows].argmax(axis=1) == batch.targets[rows]).sum()


@backends
def test_tokens_behind_the_last_target_do_not_matter(backend):
    model = make_model(CONFIG, backend)
    batch = make_batch(CONFIG, (9,))
    batch.targets[4:] = -1
    whole = gradients_of(model, batch)
    batch.tokens[5:] = (batch.tokens[5:] + 1) % 19
    np.testing.assert_array_equal(gradients_of(model, batch), whole)


@backends
def test_any_negative_target_is_masked(backend):
    model = make_model(CONFIG, backend)
    batch = make_batch(CONFIG, (9,))
    expected = model.loss(batch.tokens, batch.targets)
    assert model.loss(batch.tokens, np.where(batch.targets < 0, -100, batch.targets)) == expected


@backends
def test_gradients_are_added(backend):
    model = make_model(CONFIG, backend)
    one, other = make_batch(CONFIG, (4, 9), seed=1), make_batch(CONFIG, (7,), seed=2)
    both = gradients_of(model, one, other)
    assert_close(both, gradients_of(model, one) + gradients_of(model, other))


@backends
def test_score_and_loss_and_gradients_agree(backend):
    model = make_model(CONFIG, backend)
    batch = make_batch(CONFIG, (4, 9))
    arguments = batch.tokens, batch.targets, batch.starts
    assert model.loss(*arguments) == pytest.approx(model.loss_and_gradients(*arguments), rel=1e-6)


@backends
def test_head_in_chunks(backend, monkeypatch):
    """Logits that do not fit at once are made a few rows at a time."""
    batch = make_batch(CONFIG, (9, 9, 9))
    results = []
    for logits in (2**24, 5 * 19):
        monkeypatch.setattr("fastllm.layers.head.CHUNK_LOGITS", logits)
        model = make_model(CONFIG, backend)
        score = model.score(batch.tokens, batch.targets, batch.starts)
        results.append((score.total, score.correct, gradients_of(model, batch)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    assert results[0][1] == results[1][1]
    assert_close(results[1][2], results[0][2])


@backends
@pytest.mark.parametrize("rows", [1, 7, 12])
def test_a_batch_in_parts_is_the_batch(backend, rows, monkeypatch):
    """With dropout; one sequence is longer than the rows at once, and one has no target."""
    config = dataclasses.replace(POSITIONS["learned"], dropout=0.25)
    model, batch = make_model(config, backend), make_batch(config, (3, 9, 1, 4, 2, 5))
    found = []
    for at_once in (1000, rows):
        monkeypatch.setattr("fastllm.model.ROWS_AT_ONCE", at_once)
        score = model.score(batch.tokens, batch.targets, batch.starts)
        logits = model.forward(batch.tokens, batch.starts)
        found.append((score, logits, gradients_of(model, batch, dropout_seed=5)))
    (whole, logits, gradients), (parts, part_logits, part_gradients) = found
    assert parts.total == pytest.approx(whole.total, rel=1e-6)
    assert (parts.correct, parts.targets) == (whole.correct, whole.targets)
    assert_close(part_logits, logits)
    assert_close(part_gradients, gradients)


@pytest.mark.parametrize("rows", [1, 3, 5, 100])
def test_parts_cover_a_batch_in_order(rows):
    tokens = np.arange(20, dtype=np.int32)
    starts = np.array([0, 4, 5, 9, 17, 20], np.int32)
    parts = list(Batch(tokens, starts, tokens * 2, dropout=7).parts(rows))
    assert np.concatenate([part.tokens for part in parts]).tolist() == tokens.tolist()
    assert np.concatenate([part.positions for part in parts]).tolist() == (tokens * 2).tolist()
    assert np.concatenate([part.starts[:-1] + part.first for part in parts]).tolist() == starts[:-1].tolist()
    for part in parts:
        assert part.starts[0] == 0
        assert part.starts[-1] == len(part.tokens)
        assert part.dropout == 7
        assert tokens[part.rows].tolist() == part.tokens.tolist()
        assert len(part.tokens) <= max(rows, 8)  # the longest sequence


# Dropout


@backends
def test_dropout_follows_from_its_seed(backend):
    config = fastllm.ModelConfig(vocab_size=19, width=12, hidden=11, layers=2, heads=3, context=9, dropout=0.2)
    model = make_model(config, backend)
    batch = make_batch(config, (9, 4))
    one, again, other = (gradients_of(model, batch, dropout_seed=seed) for seed in (7, 7, 8))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert (one != gradients_of(model, batch)).any()
    np.testing.assert_array_equal(
        gradients_of(model, batch), gradients_of(make_model(config, backend), batch)
    )  # without a seed there is no dropout, so nothing random


def test_every_place_has_masks_of_its_own(monkeypatch):
    config = fastllm.ModelConfig(vocab_size=19, width=12, hidden=11, layers=2, heads=3, context=9, dropout=0.5)
    masks = []

    def record(out, x, probability, seed, offset):
        drop(out, np.ones_like(x), probability, seed, offset)
        masks.append((out > 0).tobytes())

    drop = reference.dropout_forward
    monkeypatch.setattr(reference, "dropout_forward", record)
    batch = make_batch(config, (9, 4))
    gradients_of(make_model(config, "numpy"), batch, dropout_seed=7)
    assert len(set(masks)) == len(masks) == 1 + 2 * config.layers


def test_mean_over_masks_is_the_gradient_of_a_linear_model():
    """Scaled by 1 / (1 - p), dropout changes no expected value: here of the stream before a norm."""
    config = fastllm.ModelConfig(
        vocab_size=19, width=12, hidden=11, layers=1, heads=3, context=9, dropout=0.5, final_norm=False
    )
    model = make_model(config, "numpy", np.float64)
    model.parameters["blocks.0.attention.output.weight"][...] = 0
    model.parameters["blocks.0.attention.output.bias"][...] = 0
    model.parameters["blocks.0.feed_forward.down.weight"][...] = 0
    batch = make_batch(config, (9,))
    name = "blocks.0.feed_forward.down.bias"
    model.parameters[name][...] = 0
    model.parameters["embedding.token.weight"][...] = 0  # logits 0: the loss is linear around here
    total = np.zeros(12)
    for seed in range(50):
        gradients_of(model, batch, dropout_seed=seed)
        total += model.gradients[name]
    gradients_of(model, batch)
    np.testing.assert_allclose(total / 50, model.gradients[name], atol=1e-12)


# Threads and memory

LARGE = {
    "nano": fastllm.preset("nano", vocab_size=300, layers=2, dropout=0.1),
    "rustgpt": fastllm.preset("rustgpt", vocab_size=300, layers=2),
    "gpt2": fastllm.preset("gpt2", vocab_size=300, layers=2, width=128, hidden=512, heads=4, context=128),
}


@pytest.mark.parametrize("config", LARGE.values(), ids=LARGE)
def test_same_bits_on_one_and_two_threads(config):
    """Of three updates on a thousand rows, which every kernel splits in several parts."""
    assert numba.config.NUMBA_NUM_THREADS >= 2, "needs NUMBA_NUM_THREADS=2 or more; set it before numba loads"
    batch = make_batch(config, (80,) * 12 + (17, 1))
    threads = numba.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            numba.set_num_threads(count)
            model = fastllm.Model(config, seed=0)
            optimizer = fastllm.AdamW(model, weight_decay=0.1)
            for step in range(3):
                model.zero_gradients()
                model.score_and_gradients(batch.tokens, batch.targets, batch.starts, dropout_seed=step)
                fastllm.clip_gradients(model, 0.5)
                optimizer.step(1e-3)
            results.append((model.parameters.flat.tobytes(), model.forward(batch.tokens, batch.starts).tobytes()))
    finally:
        numba.set_num_threads(threads)
    assert results[0] == results[1]


PROCESS = """
import hashlib, numba, numpy, fastllm
config = fastllm.preset("nano", vocab_size=300, layers=2, dropout=0.1)
model, starts = fastllm.Model(config, seed=0), numpy.arange(0, 1001, 100, dtype=numpy.int32)
optimizer, tokens = fastllm.AdamW(model, weight_decay=0.1), numpy.arange(1000, dtype=numpy.int32) * 7 % 300
for step in range(3):
    model.zero_gradients()
    model.score_and_gradients(tokens, numpy.roll(tokens, -1), starts, dropout_seed=step)
    fastllm.clip_gradients(model, 0.5)
    optimizer.step(1e-3)
print(numba.get_num_threads(), hashlib.sha256(model.parameters.flat).hexdigest())
"""


def test_same_bits_on_any_number_of_threads():
    """In processes of their own: one can't have more threads than it began with, nor more than cores by default."""
    bits = {}
    for count in (1, 2, 3):
        process = subprocess.run(
            [sys.executable, "-c", PROCESS],
            env=os.environ | {"NUMBA_NUM_THREADS": str(count)},
            capture_output=True,
            text=True,
            check=True,
        )
        threads, digest = process.stdout.split()
        bits[int(threads)] = digest
    assert set(bits) == {1, 2, 3}
    assert len(set(bits.values())) == 1


@pytest.mark.parametrize("config", LARGE.values(), ids=LARGE)
def test_a_step_after_the_first_takes_no_memory(config):
    """But for what Python needs: row numbers of targets and the like, some bytes a token."""
    model = fastllm.Model(config, seed=0)
    optimizer = fastllm.AdamW(model)
    large, small = make_batch(config, (80,) * 12), make_batch(config, (80,) * 5)

    def step(batch):
        model.zero_gradients()
        model.score_and_gradients(batch.tokens, batch.targets, batch.starts, dropout_seed=1)
        fastllm.clip_gradients(model, 1.0)
        optimizer.step(1e-3)

    step(large)
    taken = model._workspace.nbytes
    tracemalloc.start()
    try:
        for batch in (large, small, large):
            step(batch)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert model._workspace.nbytes == taken
    row = config.width * 4
    assert taken > 10 * 960 * row
    assert peak < 960 * row / 4, "a quarter of the smallest activation"


def test_a_larger_batch_after_a_smaller_one():
    small, large = make_batch(CONFIG, (3,)), make_batch(CONFIG, (9, 9, 4))
    model = make_model(CONFIG, "numba")
    expected = gradients_of(make_model(CONFIG, "numba"), large)
    for batch in (small, large, small):
        got = gradients_of(model, batch)
    np.testing.assert_array_equal(gradients_of(model, large), expected)
    np.testing.assert_array_equal(got, gradients_of(make_model(CONFIG, "numba"), small))


def test_logits_belong_to_the_caller():
    model = make_model(CONFIG, "numba")
    first = model.forward([1, 2, 3])
    kept = first.copy()
    model.forward([4, 5, 6])
    np.testing.assert_array_equal(first, kept)
    first[...] = np.nan
    np.testing.assert_array_equal(model.forward([1, 2, 3]), kept)


# The cache

# What it keeps keys and values in, and how near its logits come: half of the last of 11 bits, of many numbers.
caches = pytest.mark.parametrize(("dtype", "tolerance"), [("float32", TOLERANCE), ("float16", 2e-3)])


def model_with_cache(config, backend, dtype):
    model = make_model(config, backend)
    model.cache_dtype = dtype
    return model


def same_bits(backend, tolerance):
    """What asserts them; or, on the twins, where BLAS gives a row other bits alone, that numbers are close."""
    return np.testing.assert_array_equal if backend == "numba" else partial(assert_close, tolerance=tolerance)


@backends
@caches
@pytest.mark.parametrize("config", [*POSITIONS.values(), CONFIG], ids=[*POSITIONS, "grouped"])
def test_decoding_with_a_cache_equals_reading_all(config, backend, dtype, tolerance):
    """Slots of different lengths grow together; each equals its own text read at once."""
    model = model_with_cache(config, backend, dtype)
    rng = np.random.default_rng(3)
    texts = rng.integers(0, 19, (3, 9))
    read = [5, 1, 3]
    cache = model.new_cache(3)
    prompts = np.concatenate([text[:length] for text, length in zip(texts, read, strict=True)])
    logits = model.prefill(prompts, np.cumsum([0, *read]), cache)
    for _ in range(4):
        for text, length, row in zip(texts, cache.lengths, logits, strict=True):
            assert_close(row, model.forward(text[:length])[-1], tolerance)
        logits = model.decode(texts[np.arange(3), cache.lengths], cache)
    assert cache.lengths.tolist() == [9, 5, 7]


@backends
@caches
def test_reorder_moves_whole_sequences(backend, dtype, tolerance):
    model = model_with_cache(CONFIG, backend, dtype)
    texts = np.random.default_rng(3).integers(0, 19, (3, 5))
    cache = model.new_cache(3)
    model.prefill(texts[:, :4], None, cache)
    cache.reorder(np.array([2, 0, 0]))
    logits = model.decode(texts[[2, 0, 0], 4], cache)
    for row, text in zip(logits, texts[[2, 0, 0]], strict=True):
        assert_close(row, model.forward(text)[-1], tolerance)


@backends
@caches
def test_a_text_in_pieces_gives_the_bits_of_the_whole(backend, dtype, tolerance):
    """Prompts in chunks, beside others or alone, over the border of a page."""
    config = dataclasses.replace(CONFIG, context=300)
    model = model_with_cache(config, backend, dtype)
    texts = np.random.default_rng(3).integers(0, 19, (3, 290))
    whole = model.prefill(texts, None, model.new_cache(3))
    cache = model.new_cache(4)
    pieces = [texts[:, :7], texts[:, 7:130], texts[:, 130:]]
    for piece in pieces:
        logits = model.prefill(piece, None, cache, slots=[3, 0, 2])
    same = same_bits(backend, tolerance)
    same(logits, whole)
    alone = model.new_cache()
    same(model.prefill(texts[1], None, alone)[0], whole[1])
    for row, text in zip(whole, texts, strict=True):
        assert_close(row, model.forward(text)[-1], tolerance)
    assert cache.lengths.tolist() == [290, 0, 290, 290]


@backends
@caches
def test_tokens_of_one_slot_decoded_together_give_the_bits_of_one_after_another(backend, dtype, tolerance):
    """A slot named several times, as for drafted tokens; forgotten afterwards."""
    model = model_with_cache(dataclasses.replace(CONFIG, context=300), backend, dtype)
    text = np.random.default_rng(3).integers(0, 19, 140)
    same = same_bits(backend, tolerance)
    cache, other = model.new_cache(), model.new_cache(2)
    model.prefill(text[:124], None, cache)
    expected = np.concatenate([model.decode([token], cache) for token in text[124:134]])
    for _ in range(2):
        model.prefill(text[:124], None, other, slots=[1])
        model.decode([5], other, slots=[0])
        logits = model.decode([*text[124:134], 7], other, slots=[1] * 10 + [0])
        same(logits[:10], expected)
        other.truncate(1, 3)
        other.truncate(1, 0)
    assert other.lengths.tolist() == [4, 0]


@backends
@caches
def test_slots_that_share_pages_go_their_own_ways(backend, dtype, tolerance):
    model = model_with_cache(dataclasses.replace(CONFIG, context=300), backend, dtype)
    rng = np.random.default_rng(3)
    text, tails = rng.integers(0, 19, 200), rng.integers(0, 19, (3, 20))
    cache = model.new_cache(3)
    model.prefill(text, None, cache)
    cache.copy(0, 1)
    cache.reorder([1, 0, 0])
    for column in tails.T:
        logits = model.decode(column, cache)
    for row, tail in zip(logits, tails, strict=True):
        assert_close(row, model.forward(np.concatenate([text, tail]))[-1], tolerance)
    sizes = set()
    for _ in range(3):  # what is released is used again
        for slot in range(3):
            cache.release(slot)
        model.prefill(np.tile(text, (3, 1)), None, cache)
        sizes.add(cache.nbytes)
    assert len(sizes) == 1


def test_an_interrupted_step_leaves_the_cache_as_it_was(monkeypatch):
    model = make_model(CONFIG, "numpy")
    cache = model.new_cache()
    model.prefill([1, 2, 3], None, cache)
    expected = model.decode([4], cache)
    cache.truncate(0, 3)

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model.head.map, "forward", interrupt)
        for _ in range(20):  # more often than there are pages
            with pytest.raises(KeyboardInterrupt):
                model.decode([5], cache)
    assert cache.lengths.tolist() == [3]
    np.testing.assert_array_equal(model.decode([4], cache), expected)


def test_a_cache_of_float16_takes_half_the_memory():
    model = make_model(CONFIG, "numpy")
    sizes = []
    for dtype in (np.float32, np.float16):
        model.cache_dtype = dtype
        cache = model.new_cache()
        model.prefill([1, 2, 3], None, cache)
        sizes.append(cache.nbytes)
    assert sizes[0] == 2 * sizes[1]
    assert model.cache_dtype == np.float16


@pytest.mark.parametrize("dtype", ["float64", "int8", "half a float", None, 16])
def test_a_cache_of_what_it_cannot_keep(dtype):
    model = make_model(CONFIG, "numpy")
    with pytest.raises(ValueError, match="cache_dtype must be float32 or float16; got"):
        model.cache_dtype = dtype
    assert model.cache_dtype == np.float32


# What comes in between


@pytest.mark.parametrize("place", ["Embedding", "Head", "Block"])
def test_ctrl_c_while_layers_are_made_leaves_the_model_as_it_was(monkeypatch, place):
    """In the first step, in unfreeze, and where an adapter comes or goes: the next try is as good as the first."""

    def interrupt(*arguments):
        raise KeyboardInterrupt

    def interrupted(work):
        with monkeypatch.context() as patch:
            patch.setattr(f"fastllm.model.{place}", interrupt)
            with pytest.raises(KeyboardInterrupt):
                work()

    x = np.arange(8)
    expected = make_model(CONFIG, "numpy")
    expected.zero_gradients()
    expected.loss_and_gradients(x, x)
    model = fastllm.Model(CONFIG, backend="numpy", weights=dict(make_model(CONFIG, "numpy").parameters))
    interrupted(lambda: model.loss_and_gradients(x, x))
    assert model.is_frozen
    model.loss_and_gradients(x, x)
    np.testing.assert_array_equal(model.gradients.flat, expected.gradients.flat)
    logits = model.forward(x)
    interrupted(lambda: model.add_lora(rank=2))
    assert model.adapter is None
    adapter = model.add_lora(rank=2)
    adapter.flat[...] = 0.5
    changed = model.forward(x)
    for work in (model.remove_adapter, model.merge_adapter):
        interrupted(work)
        assert model.adapter is adapter
        np.testing.assert_array_equal(model.forward(x), changed)
    model.remove_adapter()
    np.testing.assert_array_equal(model.forward(x), logits)


@pytest.mark.parametrize("failure", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [0, 3, 10])
def test_a_step_that_finds_no_memory_harms_no_later_one(monkeypatch, failure, at):
    config = dataclasses.replace(CONFIG, context=64)
    model, other = make_model(config, "numpy"), make_model(config, "numpy")
    small, large = np.arange(8) % 19, np.arange(60) % 19
    model.loss_and_gradients(small, small)
    taken, take = [], Rows._take

    def full(self, rows):
        taken.append(rows)
        if len(taken) > at:
            raise failure
        return take(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Rows, "_take", full)
        with pytest.raises(failure):
            model.loss_and_gradients(large, large)
    for x in (large, small):
        for each in (model, other):
            each.zero_gradients()
            each.loss_and_gradients(x, x)
        np.testing.assert_array_equal(model.gradients.flat, other.gradients.flat)


def test_a_cache_that_finds_no_memory_can_grow_later(monkeypatch):
    model = make_model(dataclasses.replace(CONFIG, context=400), "numpy")
    text = np.arange(380) % 19
    cache, whole = model.new_cache(), model.new_cache()
    model.prefill(text[:100], None, cache)
    calls, empty = [], np.empty

    def full(shape, dtype=float):
        if len(shape) > 3:
            calls.append(shape)
            if len(calls) > 2:
                raise MemoryError
        return empty(shape, dtype)

    with monkeypatch.context() as patch:
        patch.setattr("fastllm.layers.kv_cache.np.empty", full)
        with pytest.raises(MemoryError):
            model.prefill(text[100:], None, cache)
    logits = model.prefill(text[100:], None, cache)
    assert_close(logits, model.prefill(text, None, whole))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_copies_are_models_of_their_own(copied):
    x = np.arange(8)
    model = make_model(CONFIG, "numpy")
    model.cache_dtype, model.generation_options = "float16", {"temperature": 0.5}
    model.add_lora(rank=2)
    other = copied(model)
    assert (other.cache_dtype, other.generation_options) == (model.cache_dtype, model.generation_options)
    before = model.forward(x)
    np.testing.assert_array_equal(other.forward(x), before)
    for trained in (other, model):
        trained.set_adapter(copied(trained.adapter))
        optimizer = fastllm.AdamW(trained)
        losses = []
        for _ in range(30):
            losses.append(trained.score_and_gradients(x, x, accumulate=False).loss)
            optimizer.step(1e-2)
        assert losses[-1] < losses[0] - 0.1
        if trained is other:
            np.testing.assert_array_equal(model.forward(x), before)
    parameters = copied(model.parameters)
    parameters.flat += 1
    for name, view in parameters.items():
        assert np.shares_memory(view, parameters.flat)
        np.testing.assert_array_equal(view, model.parameters[name] + 1)
