import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.errors import FastllmError
from fastllm.generation import GenerationConfig, Sampler
from fastllm.generation.sampling import largest, log_softmax, probabilities, top_k_mask, top_p_mask

LOGITS = np.array([0.3, -1.0, 2.0, 0.0, 1.9, -3.0, 0.3, 1.0], np.float32)

# few distinct values: many ties
values = st.lists(st.integers(-3, 3), min_size=1, max_size=30).map(lambda x: np.array(x, np.float64))


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def by_rank(x):
    return sorted(range(len(x)), key=lambda i: (-x[i], i))


def test_temperature_zero_is_the_first_maximum():
    sampler = Sampler(GenerationConfig(top_k=3, top_p=0.1))
    assert sampler(LOGITS) == 2
    assert sampler(np.array([-np.inf, 1.0, 4.0, 4.0], np.float32)) == 2


@given(values, st.integers(1, 40))
def test_top_k_keeps_the_k_largest_and_of_equals_the_lowest_ids(x, k):
    assert np.flatnonzero(top_k_mask(x, k)).tolist() == sorted(by_rank(x)[:k])
    assert largest(x, k).tolist() == by_rank(x)[:k]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 63))
def test_top_p_keeps_the_fewest_that_reach_p(weights, numerator):
    weights.append(64 - sum(weights))  # multiples of 1/64: their sums are exact, and some equal p
    probability = np.array(weights) / 64
    p = numerator / 64
    kept, total = [], 0.0
    for i in by_rank(probability):
        kept.append(i)
        total += probability[i]
        if total >= p:
            break
    assert np.flatnonzero(top_p_mask(probability, p)).tolist() == sorted(kept)


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=50), st.floats(1e-17, 1, exclude_max=True))
def test_top_p_of_any_distribution(logits, p):
    probability = softmax(np.array(logits))
    mask = top_p_mask(probability, p)
    kept = probability[mask]
    assert kept.sum() >= p - 1e-12  # rounding of 50 sums
    assert kept.sum() - kept.min() < p + 1e-12
    assert mask.all() or kept.min() >= probability[~mask].max()


def test_probabilities_follow_the_definition():
    x = LOGITS.astype(np.float64)
    np.testing.assert_allclose(probabilities(LOGITS, 1.0), softmax(x), rtol=1e-14)
    np.testing.assert_allclose(probabilities(LOGITS, 0.7), softmax(x / 0.7), rtol=1e-14)
    np.testing.assert_allclose(probabilities(LOGITS + 1000, 0.7), softmax(x / 0.7), rtol=1e-3)  # float32 sum

    top3 = np.where(np.isin(np.arange(8), [2, 4, 7]), softmax(x / 0.7), 0.0)
    np.testing.assert_allclose(probabilities(LOGITS, 0.7, top_k=3), top3 / top3.sum(), rtol=1e-14)
    assert np.array_equal(probabilities(LOGITS, 0.7, top_k=0), probabilities(LOGITS, 0.7, top_k=None))
    assert np.array_equal(probabilities(LOGITS, 0.7, top_k=100), probabilities(LOGITS, 0.7))


def test_top_p_counts_what_top_k_left():
    logits = np.log([0.4, 0.3, 0.2, 0.1])
    # 4/7 of the two that are left is 0.571: one token reaches 0.55, of all four two tokens do
    assert np.count_nonzero(probabilities(logits, 1.0, top_k=2, top_p=0.55)) == 1
    assert np.count_nonzero(probabilities(logits, 1.0, top_p=0.55)) == 2


def test_temperature_goes_before_top_p():
    logits = np.log([0.4, 0.3, 0.2, 0.1])
    assert np.count_nonzero(probabilities(logits, 0.1, top_p=0.9)) == 1
    assert np.count_nonzero(probabilities(logits, 100.0, top_p=0.9)) == 4


def test_tiny_temperature_shares_among_the_maxima():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert probabilities(np.array([1.0, 5.0, -2.0, 5.0]), 5e-324).tolist() == [0, 0.5, 0, 0.5]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 1.7},
        {"temperature": 1.0, "top_k": 4},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.5, "top_k": 6, "top_p": 0.9},
    ],
    ids=str,
)
def test_draws_follow_the_distribution(options):
    draws = 20_000
    sampler = Sampler(GenerationConfig(seed=7, **options))
    counts = np.bincount([sampler(LOGITS) for _ in range(draws)], minlength=8)
    options = {"top_k": None, "top_p": 1.0, **options}
    expected = draws * probabilities(LOGITS, **options)
    assert not counts[expected == 0].any()
    possible = expected > 0
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    # 99.9% quantiles of chi-square by degrees of freedom; the seed is fixed, so this doesn't flicker
    assert statistic < {2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 6: 22.46, 7: 24.32}[possible.sum() - 1]


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 1), (0.2499, 1), (0.25, 2), (0.7499, 2), (0.75, 4), (1 - 2**-53, 4)]
)
def test_a_token_is_drawn_by_its_cumulative_probability(uniform, token):
    sampler = Sampler(GenerationConfig(temperature=1.0))
    sampler.random = SimpleNamespace(random=lambda: uniform)
    with np.errstate(divide="ignore"):
        logits = np.log([0, 0.25, 0.5, 0, 0.25, 0])
    assert sampler(logits) == token


def test_rounding_leaves_no_draw_without_a_token():
    sampler = Sampler(GenerationConfig(temperature=1.0))
    sampler.random = SimpleNamespace(random=lambda: 1 - 2**-53)
    assert np.cumsum([0.1] * 10)[-1] < 1
    assert sampler(np.zeros(10)) == 9


def test_seeds():
    def draw(seed):
        sampler = Sampler(GenerationConfig(temperature=1.0, seed=seed))
        return [sampler(LOGITS) for _ in range(50)]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    assert draw(None) != draw(None)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [[0.0, np.nan, 1.0], [0.0, np.inf, 1.0], [-np.inf] * 3])
def test_damaged_logits_are_an_error(temperature, bad):
    sampler = Sampler(GenerationConfig(temperature=temperature))
    with pytest.raises(FastllmError, match=r"largest logit must be finite; got .*damaged"):
        sampler(np.array(bad, np.float32))
    with pytest.raises(FastllmError):
        log_softmax(np.array([[1.0, 2.0, 3.0], bad]))


def test_logits_are_left_alone():
    logits = LOGITS.copy()
    Sampler(GenerationConfig(temperature=0.5, top_k=2, top_p=0.5))(logits)
    log_softmax(logits)
    assert np.array_equal(logits, LOGITS)


def test_log_softmax_is_the_log_of_softmax():
    x = np.random.default_rng(0).normal(size=(3, 7))
    expected = np.log([softmax(row) for row in x])
    np.testing.assert_allclose(log_softmax(x + 500), expected, rtol=1e-12)
    assert log_softmax(np.array([0.0, -np.inf])).tolist() == [0.0, -np.inf]
