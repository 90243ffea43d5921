"""A model that decodes with a cache: logits as without one, slots, pages, float16, interruptions."""

import dataclasses
import weakref
from functools import partial

import numpy as np
import pytest
from model_switches import make_model
from whole_models import CONFIG, POSITIONS, TOLERANCE, assert_close, backends

import fastllm
from fastllm.kernels import cached_rows
from fastllm.layers import kv_cache
from fastllm.memory import aligned

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


def test_a_cache_grows_as_its_texts_do():
    """Once for all slots of a step, with room for as much again; what counts is what has been taken."""
    model = make_model(dataclasses.replace(CONFIG, context=1024), "numpy")
    cache, places = model.new_cache(4), set()
    model.prefill(np.zeros((4, 128), int), None, cache)
    page = cache.nbytes // 4
    for tokens, pages in ((1, 8), (127, 8), (1, 12), (128, 16), (400, 28)):
        places.add(cache.place)
        model.prefill(np.zeros((4, tokens), int), None, cache)
        assert cache.nbytes == pages * page
    assert len(places) == 2
    for tokens in (100, 139):
        model.prefill(np.zeros((4, tokens), int), None, cache)
    for slot in range(4):
        cache.truncate(slot, 785)
    model.prefill(np.zeros((4, 239), int), None, cache)  # on the pages that were given back
    assert cache.nbytes == 32 * page and len(cache.keys[0]) == 32
    with pytest.raises(ValueError, match="at most context = 1024 tokens"):
        model.decode([1, 1, 1, 1], cache)


def test_a_large_cache_grows_by_half(monkeypatch):
    model = make_model(dataclasses.replace(CONFIG, context=1024), "numpy")
    monkeypatch.setattr(kv_cache, "LITTLE", 2 * model.new_cache()._page_bytes)
    cache, sizes = model.new_cache(2), []
    for tokens in (128, 128, 128):
        model.prefill(np.zeros((2, tokens), int), None, cache)
        sizes.append(len(cache.keys[0]))
    assert sizes == [4, 4, 9]  # 2 + 2, the same, 6 + 3


def test_a_cache_grows_one_layer_after_another(monkeypatch):
    """What has been copied is given back before the next is: else there would be twice the memory for a while."""
    model = make_model(dataclasses.replace(CONFIG, context=512), "numpy")
    cache, living = model.new_cache(), []
    model.prefill(np.zeros(128, int), None, cache)
    old = [weakref.ref(array) for array in (*cache.keys, *cache.values)]

    def counted(*arguments):
        living.append(sum(array() is not None for array in old))
        return aligned(*arguments)

    monkeypatch.setattr(kv_cache, "aligned", counted)
    model.prefill(np.zeros(256, int), None, cache)
    assert living == list(range(len(old), 0, -1))


def test_a_slot_that_is_copied_onto_itself_stays():
    model = make_model(CONFIG, "numpy")
    cache = model.new_cache()
    model.prefill([1, 2, 3], None, cache)
    cache.copy(0, 0)
    assert_close(model.decode([4], cache)[0], model.forward([1, 2, 3, 4])[-1])


def test_a_cache_grows_for_slots_that_part():
    model = make_model(dataclasses.replace(CONFIG, context=64), "numpy")
    cache = model.new_cache(4)
    model.prefill([1, 2, 3], None, cache)
    for slot in (1, 2, 3):
        cache.copy(0, slot)
    logits = model.decode([5] * 4, cache)
    assert (logits == logits[0]).all() and len(cache.keys[0]) == 4


@pytest.mark.parametrize("length", [200, 256], ids=["in a page", "at its end"])
@pytest.mark.parametrize("share", [lambda cache: cache.copy(0, 1), lambda cache: cache.reorder([0, 0])])
def test_pages_that_a_failed_step_took_are_not_shared(monkeypatch, share, length):
    """Nor do they stand in for those that another slot needs: there are no more in memory."""

    def decoded(fails):
        model = make_model(dataclasses.replace(CONFIG, context=600), "numpy")
        cache = model.new_cache(2)
        model.prefill(np.arange(length) % 19, None, cache, slots=[0])
        if fails:
            with monkeypatch.context() as patch:
                patch.setattr(model._network, "forward", full)
                with pytest.raises(MemoryError):
                    model.prefill(np.zeros(200, int), None, cache, slots=[0])
            assert cache.nbytes == 4 * cache._page_bytes and len(cache.keys[0]) == 4
        share(cache)
        return [model.decode(pair, cache) for pair in ([1, 2], [3, 4], [5, 6])]

    def full(*arguments):
        raise MemoryError

    np.testing.assert_array_equal(decoded(True), decoded(False))


def test_room_for_more_is_not_needed(monkeypatch):
    """If memory is short, a cache allocates only what it needs; if even that fails, it stays as it was."""
    most = []

    def short(shape, dtype):
        if shape[0] > most[-1]:
            raise MemoryError
        return aligned(shape, dtype)

    model = make_model(dataclasses.replace(CONFIG, context=700), "numpy")
    texts = np.random.default_rng(3).integers(0, 19, (2, 300))
    expected = model.prefill(texts, None, model.new_cache(2))
    aligned = kv_cache.aligned
    monkeypatch.setattr(kv_cache, "aligned", short)
    cache = model.new_cache(2)
    most.append(2)
    model.prefill(texts[:, :100], None, cache)
    assert len(cache.keys[0]) == 2
    with pytest.raises(MemoryError):
        model.prefill(texts[:, 100:], None, cache)
    before = cache.keys[0]
    cache.keys[0] = larger = aligned((6, *before.shape[1:]), np.float32)  # as if it had failed after the first
    larger[:2] = before
    most.append(6)
    assert_close(model.prefill(texts[:, 100:], None, cache), expected)
    assert cache.keys[0] is larger and len(cache.keys[1]) == len(cache.values[0]) == 6


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


@pytest.mark.parametrize("dtype", ["float16", np.float16, np.dtype(np.float16)])
def test_a_cache_of_float16_by_any_name(dtype):
    assert kv_cache.KVCache(CONFIG, 1, dtype).keys[0].dtype == np.uint16


class Interrupted(list):
    """How many slots hold each page, where Ctrl-C comes before one more does."""

    def __setitem__(self, where, value):
        raise KeyboardInterrupt


def test_an_interrupted_copy_gives_no_page_to_two_slots_that_one_may_write_to():
    model = model_with_cache(CONFIG, "numpy", "float32")
    cache = model.new_cache(2)
    text = np.arange(7)
    model.prefill(text, None, cache, [0])
    users, cache._users = cache._users, Interrupted(cache._users)
    with pytest.raises(KeyboardInterrupt):
        cache.copy(0, 1)
    cache._users = users
    assert cache.lengths.tolist() == [7, 0]
    cache.copy(0, 1)
    cache.release(0)
    model.prefill(text[::-1], None, cache, [0])
    assert_close(model.decode([3], cache, [1])[0], model.forward([*text, 3])[-1], TOLERANCE)


def test_slots_that_are_not_there():
    cache = fastllm.Model(CONFIG, backend="numpy").new_cache(3)
    for use in (lambda: cache.copy(2, -1), lambda: cache.copy(3, 0), lambda: cache.truncate(-1, 0),
                lambda: cache.release(3)):  # fmt: skip
        with pytest.raises(ValueError, match="a slot must be from 0 to 2; got"):
            use()
    assert cache.lengths.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "use",
    [
        lambda cache: cache.truncate(0, 1.5),
        lambda cache: cache.release(0.0),
        lambda cache: cache.copy(0, 0.5),
        lambda cache: cache.reorder([0.0, 1.5, 2.0]),
    ],
)
def test_slots_and_lengths_are_whole_numbers(use):
    cache = fastllm.Model(CONFIG, backend="numpy").new_cache(3)
    cache.reserve({0: 2})
    cache.advance({0: 2})
    with pytest.raises(TypeError, match=r"must be (a )?whole number"):
        use(cache)
    assert cache.lengths.tolist() == [2, 0, 0]


def test_kernels_and_caches_agree_on_which_keys_stand_together():
    assert cached_rows.GROUP == kv_cache.GROUP
    assert kv_cache.PAGE % kv_cache.GROUP == 0


def test_what_is_no_cache():
    model = make_model(CONFIG, "numpy")
    with pytest.raises(ValueError, match="a cache must be of a model like this one"):
        model.decode([1], None)
    with pytest.raises(TypeError, match=r"slots must be a whole number; got 2\.5"):
        model.new_cache(2.5)
