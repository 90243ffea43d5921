"""What a model promises besides its formula: packing, masks, accumulation, threads, memory, interruptions."""

import copy
import dataclasses
import os
import pickle
import subprocess
import sys
import tracemalloc
from itertools import pairwise

import numba
import numpy as np
import pytest
from model_switches import make_batch, make_model
from whole_models import CONFIG, POSITIONS, assert_close, backends

import fastllm
from fastllm.kernels import reference
from fastllm.layers.batch import Batch
from fastllm.layers.workspace import Rows
from fastllm.memory import aligned


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
    parts = list(Batch(tokens, starts, tokens * 2, dropout=np.array([7, 0], np.uint64)).parts(rows))
    assert np.concatenate([part.tokens for part in parts]).tolist() == tokens.tolist()
    assert np.concatenate([part.positions for part in parts]).tolist() == (tokens * 2).tolist()
    assert np.concatenate([part.starts[:-1] + part.first for part in parts]).tolist() == starts[:-1].tolist()
    for part in parts:
        assert part.starts[0] == 0
        assert part.starts[-1] == len(part.tokens)
        assert part.dropout.tolist() == [7, part.first]
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

    def record(out, x, probability, draw, offset):
        drop(out, np.ones_like(x), probability, draw, offset)
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
def test_same_bits_in_any_number_of_parts(monkeypatch, config):
    """After three updates on a thousand rows, which every kernel splits into several parts, products into `parts`."""
    assert numba.config.NUMBA_NUM_THREADS >= 2, "needs NUMBA_NUM_THREADS=2 or more; set it before numba loads"
    batch = make_batch(config, (80,) * 12 + (17, 1))
    threads = numba.get_num_threads()
    results = []
    try:
        for count, parts in [(1, 1), (2, 2), (2, 3)]:
            numba.set_num_threads(count)
            monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", parts)
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
    assert results[0] == results[1] == results[2]


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
    taken = model._network.workspace.nbytes
    tracemalloc.start()
    try:
        for batch in (large, small, large):
            step(batch)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert model._network.workspace.nbytes == taken
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


def test_activations_that_are_kept_are_of_all_rows():
    config = fastllm.preset("nano", vocab_size=11, layers=1, width=32, heads=2)
    model = fastllm.Model(config, seed=0)
    tokens = np.random.default_rng(0).integers(0, 11, (20, 64))
    logits = model.forward(tokens, keep=True)
    assert model.blocks[0].middle.array.shape[0] == 20 * 64
    np.testing.assert_allclose(logits, model.forward(tokens), atol=1e-5)


def test_logits_belong_to_the_caller():
    model = make_model(CONFIG, "numba")
    first = model.forward([1, 2, 3])
    kept = first.copy()
    model.forward([4, 5, 6])
    np.testing.assert_array_equal(first, kept)
    first[...] = np.nan
    np.testing.assert_array_equal(model.forward([1, 2, 3]), kept)


# What comes in between


@pytest.mark.parametrize("place", ["Embedding", "Head", "Block"])
def test_ctrl_c_while_layers_are_made_leaves_the_model_as_it_was(monkeypatch, place):
    """In the first step, in unfreeze, and where an adapter comes or goes: the next try is as good as the first."""

    def interrupt(*arguments):
        raise KeyboardInterrupt

    def interrupted(work):
        with monkeypatch.context() as patch:
            patch.setattr(f"fastllm.layers.network.{place}", interrupt)
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
    calls = []

    def full(shape, dtype):
        calls.append(shape)
        if len(calls) > 2:
            raise MemoryError
        return aligned(shape, dtype)

    with monkeypatch.context() as patch:
        patch.setattr("fastllm.layers.kv_cache.aligned", full)
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


def test_what_layers_hold_is_written_into_and_not_replaced(tiny_model):
    """Layers would go on with what they hold: `model.adapter = None` would change no logit."""
    config = dataclasses.replace(tiny_model.config, dropout=0.5)
    for name, value in {"config": config, "parameters": {}, "adapter": None}.items():
        with pytest.raises(AttributeError, match=f"a model's {name} can't be set"):
            setattr(tiny_model, name, value)
    name = "blocks.0.attention.query.weight"
    view, before = tiny_model.parameters[name], tiny_model.parameters[name].copy()
    tiny_model.parameters[name] *= 2
    np.testing.assert_array_equal(view, 2 * before)
    tiny_model.gradients[name] = 3
    assert (tiny_model.gradients[name] == 3).all()
    assert tiny_model.parameters[name] is view
    with pytest.raises(ValueError, match="broadcast"):
        tiny_model.parameters[name] = np.ones(3)
