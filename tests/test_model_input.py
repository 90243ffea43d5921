"""Wrong input to a model: an error of one line, and nothing changed."""

import re

import numpy as np
import pytest
from model_switches import make_model

import fastllm

CONFIG = fastllm.ModelConfig(vocab_size=19, width=12, hidden=11, layers=1, heads=3, context=9)


@pytest.fixture(params=["numba", "numpy"])
def model(request):
    return make_model(CONFIG, request.param)


def raises(error, pattern):
    return pytest.raises(error, match=rf"\A[^\n]*{pattern}[^\n]*\Z")


WRONG_TOKENS = [
    ("too large", [1, 19], None, ValueError, "vocab_size.*got 19 at position 1"),
    ("negative", [1, -1], None, ValueError, "got -1 at position 1"),
    ("far too large", np.array([1, 2**32 + 5]), None, ValueError, f"got {2**32 + 5} at position 1"),
    ("unsigned", np.array([2**32 - 1], np.uint32), None, ValueError, f"got {2**32 - 1}"),
    ("floats", [1.0, 2.0], None, TypeError, "whole numbers; got float64"),
    ("truth values", [True, False], None, TypeError, "whole numbers; got bool"),
    ("text", ["a"], None, TypeError, "whole numbers"),
    ("none", np.empty(0, np.int32), None, ValueError, "at least one token"),
    ("no rows", np.empty((0, 3), np.int32), None, ValueError, "at least one token"),
    ("one number", np.int32(3), None, ValueError, re.escape("got shape ()")),
    ("a cube", np.zeros((2, 2, 2), np.int32), None, ValueError, re.escape("got shape (2, 2, 2)")),
    ("rows of different lengths", [[1, 2], [3]], None, ValueError, r"of equal length; got \[\[1, 2\], \[3\]\]; join"),
    ("too long", np.zeros(10, np.int32), None, ValueError, "context = 9 tokens; got 10"),
    ("too long a row", np.zeros((2, 10), np.int32), None, ValueError, "context = 9 tokens; got 10"),
    ("too long a sequence", np.zeros(12, np.int32), [0, 2, 12], ValueError, "context = 9 tokens; got 10"),
    ("starts of a rectangle", np.zeros((2, 3), np.int32), [0, 3, 6], ValueError, "leave starts out"),
    ("starts from 1", np.zeros(5, np.int32), [1, 5], ValueError, "starts must rise from 0"),
    ("starts end early", np.zeros(5, np.int32), [0, 3], ValueError, "starts must rise from 0"),
    ("starts end late", np.zeros(5, np.int32), [0, 6], ValueError, "starts must rise from 0"),
    ("empty sequence", np.zeros(5, np.int32), [0, 3, 3, 5], ValueError, "starts must rise from 0"),
    ("falling starts", np.zeros(5, np.int32), [0, 4, 3, 5], ValueError, "starts must rise from 0"),
    ("one start", np.zeros(5, np.int32), [0], ValueError, "starts must rise from 0"),
    ("no starts", np.zeros(5, np.int32), np.empty(0, np.int32), ValueError, "starts must rise from 0"),
    ("starts of floats", np.zeros(5, np.int32), [0.0, 5.0], TypeError, "starts must be whole numbers"),
]


@pytest.mark.parametrize(
    ("tokens", "starts", "error", "pattern"), [case[1:] for case in WRONG_TOKENS], ids=[c[0] for c in WRONG_TOKENS]
)
def test_wrong_tokens(model, tokens, starts, error, pattern):
    with raises(error, pattern):
        model.forward(tokens, starts)
    with raises(error, pattern):
        model.prefill(tokens, starts, model.new_cache(4))


@pytest.mark.parametrize(
    ("options", "error", "pattern"),
    [
        ({"normalizer": 0}, ValueError, "normalizer must be a number > 0; got 0;"),
        ({"normalizer": "2"}, ValueError, "normalizer must be a number > 0; got '2'"),
        ({"normalizer": [2]}, ValueError, "normalizer must be a number > 0; got .2."),
        ({"normalizer": 1e-40}, ValueError, "normalizer must be a number > 0; got 1e-40"),  # 1 / it is no float32
        ({"normalizer": 10**400}, ValueError, "normalizer must be a number > 0; got 1000"),
        ({"normalizer": float("nan")}, ValueError, "normalizer must be a number > 0; got nan"),
        ({"dropout_seed": -1}, ValueError, "dropout_seed must be from 0"),
        ({"dropout_seed": 0.5}, TypeError, "dropout_seed must be a whole number; got 0.5"),
    ],
)
def test_wrong_options_of_a_step(model, options, error, pattern):
    with raises(error, pattern):
        model.score_and_gradients([1, 2], [2, 3], **options)


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (1 << 63, ValueError), ("0", TypeError)])
def test_wrong_seeds(model, seed, error):
    with raises(error, "seed must be"):
        fastllm.Model(CONFIG, seed=seed, backend="numpy")
    with raises(error, "seed must be"):
        model.add_lora(seed=seed)
    assert model.adapter is None


WRONG_TARGETS = [
    ("too large", [1, 19, 0], ValueError, "below vocab_size = 19; got 19 at position 1"),
    ("far too large", np.array([1, 2**32 + 5, 0]), ValueError, f"got {2**32 + 5} at position 1"),
    ("too few", [1, 2], ValueError, re.escape("the shape (3,) of the tokens")),
    ("too many", [1, 2, 3, 4], ValueError, re.escape("the shape (3,) of the tokens")),
    ("another shape", [[1], [2], [3]], ValueError, re.escape("the shape (3,) of the tokens")),
    ("rows of different lengths", [[1, 2], [3]], ValueError, "targets must be one row or rows of equal length"),
    ("all masked", [-1, -1, -1], ValueError, "at least one target"),
    ("floats", [1.0, 2.0, 3.0], TypeError, "whole numbers; got float64"),
]


@pytest.mark.parametrize(
    ("targets", "error", "pattern"), [case[1:] for case in WRONG_TARGETS], ids=[c[0] for c in WRONG_TARGETS]
)
def test_wrong_targets(model, targets, error, pattern):
    gradients = model.gradients.flat.copy()
    with raises(error, pattern):
        model.loss([1, 2, 3], targets)
    with raises(error, pattern):
        model.loss_and_gradients([1, 2, 3], targets)
    np.testing.assert_array_equal(model.gradients.flat, gradients)


def test_targets_of_a_rectangle_must_stand_the_same_way():
    """(3, 2) has as many targets as (2, 3) has tokens, but would pair them wrongly."""
    model = make_model(CONFIG, "numpy")
    with raises(ValueError, re.escape("the shape (2, 3) of the tokens, an entry for each; got (3, 2)")):
        model.loss(np.zeros((2, 3), np.int32), np.zeros((3, 2), np.int32))


def test_a_model_can_be_used_after_an_error(model):
    expected = model.forward([1, 2, 3])
    with pytest.raises(ValueError, match="context"):
        model.forward(np.zeros(100, np.int32))
    np.testing.assert_array_equal(model.forward([1, 2, 3]), expected)


@pytest.mark.parametrize("slots", [0, -1])
def test_wrong_size_of_a_cache(model, slots):
    with raises(ValueError, "a cache needs at least one slot"):
        model.new_cache(slots)


def test_wrong_use_of_a_cache(model):
    cache = model.new_cache(2)
    with raises(ValueError, "slots must be from 0 to 1"):
        model.prefill([[1], [2], [3]], None, cache)
    with raises(ValueError, "each slot once"):
        model.prefill([[1], [2]], None, cache, slots=[1, 1])
    model.prefill([[1, 2, 3], [4, 5, 6]], None, cache)
    for slot in (2, -1):
        with raises(ValueError, rf"slots must be from 0 to 1; got \[{slot}\]"):
            model.decode([1], cache, slots=[slot])
    with raises(ValueError, "slots must be 1 numbers here; got 2; give one for each"):
        model.decode([1], cache, slots=[0, 1])
    with raises(ValueError, "decode takes tokens"):
        model.decode([[1]], cache)
    with raises(ValueError, "got 19 at position 0"):
        model.decode([19, 0], cache)
    for indices in ([0], [0, 2], [-1, 0]):
        with raises(ValueError, "reorder takes 2 slot numbers"):
            cache.reorder(np.array(indices))
    with raises(ValueError, "at most the tokens it has, 3; got 4"):
        cache.truncate(0, 4)
    assert cache.lengths.tolist() == [3, 3]
    model.decode([1, 2, 3, 4, 5, 6, 7], cache, slots=[0, 1, 0, 0, 0, 0, 0])
    with raises(ValueError, "at most context = 9 tokens; got 10 with the 1 new ones, in slot 0"):
        model.decode([1, 2], cache)
    with raises(ValueError, "context = 9"):
        model.prefill([[1, 2, 3, 4, 5, 6]], None, cache, slots=[1])
    assert cache.lengths.tolist() == [9, 4]


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"backend": "torch"}, "backend must be 'numba' or 'numpy'; got 'torch'"),
        ({"dtype": np.float64}, "float32.*got float64"),
        ({"dtype": "single precision"}, "dtype must be float32 or float64; got 'single precision'"),
        ({"backend": "numpy", "dtype": np.float16}, "float32 or float64; got float16"),
    ],
)
def test_wrong_backend(options, pattern):
    with raises(ValueError, pattern):
        fastllm.Model(CONFIG, **options)
