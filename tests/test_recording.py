"""Passes that are done again give what the layers give, bit by bit, and hold on to nothing."""

import copy
import dataclasses
import gc
import pickle
import threading
import weakref

import numpy as np
import pytest
from model_switches import ROWS, make_batch, make_config, make_model

import fastllm
from fastllm.layers import network, recording
from fastllm.layers.recording import Recordings

CONFIG = fastllm.ModelConfig(
    vocab_size=19, width=16, hidden=24, layers=2, heads=4, kv_heads=2, context=700, positions="rope"
)


@pytest.fixture
def layers_only(monkeypatch):
    """Within it, nothing is done again without the layers."""

    def apply():
        monkeypatch.setattr(Recordings, "run", lambda self, owner, key, batch, compute: compute(batch))

    return apply


@pytest.fixture
def replayed(monkeypatch):
    """Counts passes that were done again."""
    counts = []
    run = recording._Recording.run
    monkeypatch.setattr(recording._Recording, "run", lambda *a: (counts.append(1), run(*a))[1])
    return counts


def of_batches(model, batches, **options):
    """Losses, right answers and gradients of each batch, four times over: done, written down, and done again."""
    results = []
    for batch in batches * 4:
        score = model.score_and_gradients(batch.tokens, batch.targets, batch.starts, **options)
        results.append((score, model.gradients.flat.tobytes()))
    return results


# The same lengths come again with other tokens, other targets, another number of them, another order of lengths.
SHAPES = [((9,), 3), ((5, 2, 1), 0), ((5, 2, 1), 1), ((2, 5, 1), 2), ((9,), 4), ((5, 2, 1), 5)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(row.values()))
def test_training_passes_are_the_same_bits(row, layers_only, replayed):
    config = make_config(row)
    batches = [make_batch(config, lengths, seed) for lengths, seed in SHAPES]
    options = {"accumulate": False, "dropout_seed": 5 if config.dropout else None}
    got = of_batches(make_model(config, "numba"), batches, **options)
    assert len(replayed) >= len(batches)
    layers_only()
    assert got == of_batches(make_model(config, "numba"), batches, **options)


@pytest.mark.parametrize("options", [{}, {"normalizer": 3.5}, {"accumulate": False}, {"dropout_seed": 4}], ids=str)
def test_options_are_told_apart(options, layers_only, replayed):
    config = dataclasses.replace(CONFIG, dropout=0.2)
    batches = [make_batch(config, lengths, seed) for lengths, seed in SHAPES]

    def results():
        model = make_model(config, "numba")
        return of_batches(model, batches, accumulate=False, normalizer=2.0) + of_batches(model, batches, **options)

    got = results()
    assert replayed
    layers_only()
    assert got == results()


def test_a_longer_sequence_in_a_batch_of_the_same_size(layers_only, replayed):
    """It is beyond the angles that were there when the pass was recorded."""
    several, long = (make_batch(CONFIG, lengths) for lengths in [(90, 90, 90), (268, 1, 1)])
    long = dataclasses.replace(several, starts=long.starts)
    batches = [several] * 3 + [long]

    def results():
        return of_batches(make_model(CONFIG, "numba"), batches, accumulate=False)

    got = results()
    assert replayed
    layers_only()
    assert got == results()


def test_each_step_has_masks_of_its_own(layers_only, replayed):
    """A recorded pass takes the seed from an array, as it takes tokens."""
    batch = make_batch(CONFIG, *SHAPES[0])

    def results():
        model = make_model(dataclasses.replace(CONFIG, dropout=0.2), "numba")
        return [of_batches(model, [batch], dropout_seed=seed, accumulate=False) for seed in (1, 2, 3, 4, 3)]

    got = results()
    assert len(replayed) >= 16
    assert got[2] == got[4] != got[3]
    layers_only()
    assert got == results()


@pytest.mark.parametrize("row", ROWS[::4], ids=lambda row: " ".join(row.values()))
def test_beside_other_threads_kernels_follow_one_another(row, monkeypatch):
    """Prompts and scores: the layers' Python comes first, and the kernels then wait for no thread's."""
    config = make_config(row)
    batch, more = make_batch(config, *SHAPES[1]), make_batch(config, (2, 3, 1), 4)

    def results():
        model = make_model(config, "numba")
        cache = model.new_cache(3)
        logits = [model.prefill(some.tokens, some.starts, cache) for some in (batch, more)]
        score = model.score(batch.tokens, batch.targets, batch.starts)
        return [x.tobytes() for x in logits], score, model.forward(batch.tokens, batch.starts, keep=True).tobytes()

    alone, runs = results(), []
    run_at_once = Recordings.run_at_once
    monkeypatch.setattr(Recordings, "run_at_once", lambda *given: (runs.append(1), run_at_once(*given))[1])
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert results() == alone
    finally:
        done.set()
        thread.join()
    assert len(runs) == 4


def test_angles_reach_as_far_as_a_later_batch_needs(layers_only):
    shapes = ((150, 150), (150, 150), (150, 150), (299, 1), (20, 280), (1, 299))
    batches = [make_batch(CONFIG, lengths) for lengths in shapes]
    got = of_batches(make_model(CONFIG, "numba"), batches)
    layers_only()
    assert got == of_batches(make_model(CONFIG, "numba"), batches)


def test_what_is_between_does_not_matter(layers_only):
    """Larger batches, passes without gradients and other numbers of rows in between."""

    def results():
        model, kept = make_model(CONFIG, "numba"), []
        for length in (4, 7, 4, 4, 40, 4, 7, 7, 300, 4, 40, 4, 4, 40, 40, 7):
            batch = make_batch(CONFIG, (length, 3), length)
            score = model.score_and_gradients(batch.tokens, batch.targets, batch.starts, accumulate=False)
            logits = model.forward(batch.tokens[:length])
            kept.append((score, model.gradients.flat.tobytes(), logits.tobytes()))
            kept.append(model.score(batch.tokens, batch.targets, batch.starts))
        return kept

    got = results()
    layers_only()
    assert got == results()


@pytest.mark.parametrize("frozen", [False, True], ids=["in memory", "of a file"])
def test_low_rank_passes(frozen, layers_only):
    batches = [make_batch(CONFIG, lengths, seed) for lengths, seed in SHAPES]

    def results():
        model = make_model(CONFIG, "numba")
        if frozen:
            model = fastllm.Model(CONFIG, weights=dict(model.parameters))
        before = [] if frozen else of_batches(model, batches)
        adapter = model.add_lora(rank=2)
        adapter.flat[...] = np.random.default_rng(1).normal(0, 0.1, adapter.flat.shape)
        within = of_batches(model, batches)
        model.merge_adapter()
        return before + within + of_batches(model, batches)

    got = results()
    layers_only()
    assert got == results()


def decoded(model, cache, steps=300):
    """Logits of one, two and three texts side by side, until their caches have grown more than once."""
    kept = []
    model.prefill(np.arange(9) % 19, [0, 2, 6, 9], cache)
    for step in range(steps):
        slots = [[0], [2, 0], [1, 0, 2], [1, 1]][step % 4]
        kept.append(model.decode((np.array(slots) + step) % 19, cache, slots).tobytes())
    return kept


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("row", ROWS[::6], ids=lambda row: " ".join(row.values()))
def test_decoding_passes_are_the_same_bits(row, dtype, layers_only, replayed):
    config = dataclasses.replace(make_config(row), context=700)

    def results():
        model = make_model(config, "numba")
        model.cache_dtype = dtype
        return decoded(model, model.new_cache(3))

    got = results()
    assert len(replayed) > 280
    layers_only()
    assert got == results()


def test_models_that_share_a_cache_and_copies_of_it(layers_only):
    def results():
        one, other = make_model(CONFIG, "numba", seed=0), make_model(CONFIG, "numba", seed=1)
        cache, kept = one.new_cache(), []
        for step in range(12):
            kept.append((one, other)[step % 2].decode([step], cache).tobytes())
        for twin in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache)), copy.copy(cache)):
            for step in range(250):  # they grow, and with the last one the cache itself
                kept.append(one.decode([step % 19], twin).tobytes())
        for step in range(6):
            kept.append(one.decode([step], cache).tobytes())
        return kept

    got = results()
    layers_only()
    assert got == results()


def recorded(model, place):
    """What has been written down of passes on a model and at a place."""
    return [one for one in model._network.workspace.recordings.get(place, {}).values() if one]


def small_passes(model, cache):
    batch = make_batch(CONFIG, (5,))
    for _ in range(3):
        model.score_and_gradients(batch.tokens, batch.targets)
        model.decode([1], cache)
    assert recorded(model, model._network.workspace.place) and recorded(model, cache.place)


def test_memory_that_has_moved_is_given_back():
    model = make_model(CONFIG, "numba")
    cache = model.new_cache()
    small_passes(model, cache)
    keys, stream = weakref.ref(cache.keys[0]), weakref.ref(model.blocks[0].middle._whole.base)
    model.prefill(np.arange(300) % 19, None, cache)  # the cache grows
    assert keys() is None
    small_passes(model, cache)
    longer = make_batch(CONFIG, (400,))
    model.score_and_gradients(longer.tokens, longer.targets)
    assert stream() is None


def test_a_cache_holds_on_to_no_model():
    model = make_model(CONFIG, "numba")
    cache = model.new_cache()
    small_passes(model, cache)
    workspace, weights = weakref.ref(model._network.workspace), weakref.ref(model.parameters.flat.base)
    gc.disable()
    try:
        model.add_lora(rank=2)
        assert workspace() is None
        small_passes(model, cache)
        del model
        assert weights() is None
    finally:
        gc.enable()


def test_smaller_rooms_for_logits_are_given_back():
    config = dataclasses.replace(CONFIG, vocab_size=5000)
    model, rooms = make_model(config, "numba"), []
    for count in range(2, 40, 3):
        batch = make_batch(config, (40,))
        batch.targets[:] = -1
        batch.targets[:count] = 1
        for _ in range(3):
            model.score_and_gradients(batch.tokens, batch.targets)
        rooms.append(weakref.ref(model.head._logits.base))
    assert [room() is None for room in rooms] == [True] * (len(rooms) - 1) + [False]


def test_no_more_are_kept_than_are_allowed(monkeypatch):
    monkeypatch.setattr(recording, "MOST", 5)
    model = make_model(CONFIG, "numba")
    for length in [29, *range(2, 30)] * 3:
        batch = make_batch(CONFIG, (length,))
        model.score_and_gradients(batch.tokens, batch.targets)
        assert len(model._network.workspace.recordings.get(model._network.workspace.place, {})) <= 5
    assert len(recorded(model, model._network.workspace.place)) == 5


def test_what_is_made_once_is_not_made_again():
    model, batch = make_model(CONFIG, "numba"), make_batch(CONFIG, (5, 2))
    model.add_lora(rank=2)
    cache = model.new_cache()
    for _ in range(3):
        model.score_and_gradients(batch.tokens, batch.targets, batch.starts)
        model.decode([1], cache)
    for place in (model._network.workspace.place, cache.place):
        (one,) = recorded(model, place)
        names = {kernel.__name__ for kernel, _ in one._replay._calls}
        assert len(names) > 5
        assert not any("scratch" in name for name in names)


def test_an_interrupted_pass_is_not_kept(monkeypatch):
    model, batch = make_model(CONFIG, "numba"), make_batch(CONFIG, (5, 2))
    for _ in range(2):  # memory is taken, and what comes next is written down
        model.score_and_gradients(batch.tokens, batch.targets, batch.starts)
    expected = of_batches(make_model(CONFIG, "numba"), [batch], accumulate=False)
    kernels = model._backend.kernels

    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model.embedding, "backward", interrupt)
        with pytest.raises(KeyboardInterrupt):
            model.score_and_gradients(batch.tokens, batch.targets, batch.starts)
    assert model._backend.kernels is kernels
    assert not recorded(model, model._network.workspace.place)
    assert of_batches(model, [batch], accumulate=False) == expected


def test_large_passes_and_the_twins_are_not_kept(monkeypatch):
    monkeypatch.setattr(network, "SMALL", 1_000_000_000)
    large = fastllm.Model(fastllm.preset("nano", vocab_size=50, width=384, layers=4, heads=4))
    ids = np.arange(60) % 50
    twin = make_model(CONFIG, "numpy")
    cache = twin.new_cache()
    for _ in range(3):
        large.score_and_gradients(np.tile(ids, (2, 1)), np.tile(ids, (2, 1)))
        twin.score_and_gradients(ids % 19, ids % 19)
        twin.decode([1], cache)
    assert not large._network.workspace.recordings and not twin._network.workspace.recordings
