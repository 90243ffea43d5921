import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.errors import FastllmError
from fastllm.generation import GenerationConfig, Sampler
from fastllm.generation.sampling import (
    Penalties,
    candidates,
    largest,
    log_softmax,
    min_p_mask,
    token_logprobs,
    top_k_mask,
    top_p_mask,
    typical_p_mask,
)

LOGITS = np.array([0.3, -1.0, 2.0, 0.0, 1.9, -3.0, 0.3, 1.0], np.float32)

# few distinct values: many ties
values = st.lists(st.integers(-3, 3), min_size=1, max_size=30).map(lambda x: np.array(x, np.float64))


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def probabilities(logits, *settings, **named):
    """The distribution that a token is drawn from, (V,): 0 for tokens left out."""
    ids, probability = candidates(logits, *settings, **named)
    out = np.zeros(logits.size)
    out[slice(None) if ids is None else ids] = probability
    return out


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


@pytest.mark.parametrize("levels", [3, 1000, None], ids=["many ties", "some", "none"])
@pytest.mark.parametrize("size", [129, 6400, 50_257])
@pytest.mark.parametrize("banned", [0.0, 0.5, 0.999])
def test_top_k_of_a_large_vocabulary(size, levels, banned):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(size) if levels is None else rng.integers(0, levels, size).astype(float)
    x[rng.random(size) < banned] = -np.inf
    for k in (1, 2, 50, size // 200 + 1, size // 2, size - 1):
        assert np.flatnonzero(top_k_mask(x, k)).tolist() == sorted(by_rank(x)[:k])


def test_top_p_that_no_sum_reaches():
    probability = np.full(10, 0.1)  # which add up to 0.9999999999999999
    assert np.cumsum(probability)[-1] < 1
    assert top_p_mask(probability, 1 - 2**-53).all()


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


@given(values, st.floats(0, 1))
def test_min_p_keeps_what_reaches_the_share_of_the_largest(logits, p):
    probability = softmax(logits)
    expected = [i for i, x in enumerate(probability) if x >= p * max(probability)]
    assert np.flatnonzero(min_p_mask(probability, p)).tolist() == expected
    assert int(np.argmax(probability)) in expected


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=50), st.floats(1e-17, 1, exclude_max=True))
def test_typical_p_keeps_the_fewest_nearest_to_the_entropy(logits, p):
    probability = softmax(np.array(logits))
    mask = typical_p_mask(probability, p)
    surprisal = [-math.log(x) for x in probability]
    entropy = math.fsum(x * s for x, s in zip(probability, surprisal, strict=True))
    distance = np.abs(np.array(surprisal) - entropy)
    rounding = 1e-12  # of 50 products of numbers up to 60
    assert probability[mask].sum() >= p - rounding
    assert mask.all() or distance[mask].max() <= distance[~mask].min() + rounding
    nearer = distance < distance[mask].max() - rounding  # without the last of them p isn't reached
    assert probability[nearer].sum() < p + rounding


def test_typical_p_may_leave_out_the_most_probable_token():
    probability = np.array([0.4, 0.2, 0.2, 0.1, 0.1])  # entropy 1.47; surprisals 0.92, 1.61, 1.61, 2.30, 2.30
    assert typical_p_mask(probability, 0.3).tolist() == [False, True, True, False, False]
    assert typical_p_mask(probability, 0.41).tolist() == [True, True, True, False, False]
    assert typical_p_mask(probability, 0.81).all()  # of equals all
    assert typical_p_mask(np.array([0.0, 0.5, 0.5]), 0.5).tolist() == [False, True, True]


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


def test_min_p_counts_after_temperature_and_typical_p_what_it_left():
    logits = np.log([0.4, 0.3, 0.2, 0.1])
    assert np.count_nonzero(probabilities(logits, 1.0, min_p=0.6)) == 2
    assert np.count_nonzero(probabilities(logits, 0.1, min_p=0.6)) == 1
    assert np.count_nonzero(probabilities(logits, 100.0, min_p=0.6)) == 4
    # of all four 0.2 and 0.3 are the most typical; of the first two, 4/7 is nearer to their entropy of 0.683
    assert np.flatnonzero(probabilities(logits, 1.0, typical_p=0.25)).tolist() == [1]
    assert np.flatnonzero(probabilities(logits, 1.0, min_p=0.6, typical_p=0.5)).tolist() == [0]
    assert np.flatnonzero(probabilities(logits, 1.0, min_p=0.6, typical_p=0.6)).tolist() == [0, 1]


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
        {"temperature": 1.3, "min_p": 0.15},
        {"temperature": 1.2, "typical_p": 0.7},
        {"temperature": 1.5, "top_k": 7, "top_p": 0.95, "min_p": 0.05, "typical_p": 0.9},
    ],
    ids=str,
)
def test_draws_follow_the_distribution(options):
    draws = 20_000
    sampler = Sampler(GenerationConfig(seed=7, **options))
    counts = np.bincount([sampler(LOGITS) for _ in range(draws)], minlength=8)
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


def test_samples_of_one_seed_are_random_and_repeatable():
    def draw(seed, sample):
        sampler = Sampler(GenerationConfig(temperature=1.0, seed=seed), sample)
        return tuple(sampler(LOGITS) for _ in range(50))

    assert draw(3, 0) == tuple(map(Sampler(GenerationConfig(temperature=1.0, seed=3)), [LOGITS] * 50))
    assert draw(3, 1) == draw(3, 1)
    assert len({draw(seed, sample) for seed in (0, 1, 2) for sample in (0, 1, 2)}) == 9


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


# --- penalties


def penalised(logits, prompt, generated, bias, repetition, presence, frequency):
    """The definitions, token by token."""
    out = [float(x) for x in logits]
    for token in range(len(out)):
        out[token] += bias.get(token, 0.0)
        if token in prompt or token in generated:
            out[token] = out[token] * repetition if out[token] < 0 else out[token] / repetition
        if token in generated:
            out[token] -= presence + frequency * generated.count(token)
    return out


ids = st.lists(st.integers(0, 7), max_size=12)
numbers = st.floats(-3, 3)


@given(
    st.lists(numbers, min_size=8, max_size=8),
    ids,
    ids,
    st.dictionaries(st.integers(0, 7), st.one_of(numbers, st.just(-math.inf)), max_size=4),
    st.floats(0.1, 10),
    numbers,
    numbers,
)
def test_penalties_follow_their_definitions(logits, prompt, generated, bias, repetition, presence, frequency):
    config = GenerationConfig(
        logit_bias=bias,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
    )
    logits = np.array(logits)
    before = logits.copy()
    penalties = Penalties(config, prompt)
    for token in generated:
        penalties.add(token)
    expected = penalised(logits, prompt, generated, bias, repetition, presence, frequency)
    np.testing.assert_allclose(penalties(logits), expected, rtol=1e-14, atol=1e-15)
    assert np.array_equal(logits, before)


def test_a_sampler_counts_what_it_chooses_until_a_new_text_begins():
    sampler = Sampler(GenerationConfig(frequency_penalty=1.5))
    logits = np.array([3.0, 2.0, 0.0])
    assert [sampler(logits) for _ in range(5)] == [0, 1, 0, 1, 0]  # 3, 2 | 1.5 | 0.5 | 0 and 0.5 ...
    sampler.begin([0, 0])
    assert sampler(logits) == 0  # the prompt doesn't count
    repeating = Sampler(GenerationConfig(repetition_penalty=2.0))
    repeating.begin([0, 2])
    assert [repeating(logits) for _ in range(3)] == [1, 0, 0]  # 1.5 against 2; 1.5 against 1


def test_a_copy_of_penalties_goes_its_own_way():
    penalties = Penalties(GenerationConfig(presence_penalty=1.0))
    penalties.add(1)
    other = penalties.copy()
    other.add(0)
    assert penalties(np.zeros(3)).tolist() == [0, -1, 0]
    assert other(np.zeros(3)).tolist() == [-1, -1, 0]


def test_a_bias_bans_or_forces_tokens():
    def choices(**bias):
        bias = {int(token[1:]): value for token, value in bias.items()}
        sampler = Sampler(GenerationConfig(temperature=1.0, logit_bias=bias))
        return {sampler(LOGITS) for _ in range(100)}

    assert 2 in choices()
    assert 2 not in choices(t2=-math.inf)
    assert choices(t5=100) == {5}
    assert Sampler(GenerationConfig(logit_bias={2: -math.inf}))(LOGITS) == 4


def test_a_bias_that_leaves_nothing_or_is_of_another_vocabulary_is_an_error():
    logits = np.array([1.0, 2.0, -np.inf])
    banned = dict.fromkeys(range(2), -math.inf)
    with pytest.raises(ValueError, match=r"must leave a token .*; got 2 of 3 tokens"):
        Sampler(GenerationConfig(logit_bias=banned))(logits)
    with pytest.raises(ValueError, match=r"token ids below 3; got 3; "):
        Sampler(GenerationConfig(logit_bias={3: 1.0}))(logits)


def test_without_penalties_the_logits_are_read_as_they_are():
    assert Penalties(GenerationConfig(temperature=1.0), [1, 2])(LOGITS) is LOGITS


@pytest.mark.parametrize("bad", [[0.0, np.nan, 1.0], [0.0, np.inf, 1.0], [-np.inf] * 3])
def test_damaged_logits_are_an_error_of_penalties(bad):
    with pytest.raises(FastllmError, match="damaged"):
        Sampler(GenerationConfig(presence_penalty=1.0))(np.array(bad))


# --- log-probabilities


@given(values, st.integers(0, 40), st.data())
def test_log_probabilities_of_a_token_and_its_alternatives(logits, alternatives, data):
    token = data.draw(st.integers(0, logits.size - 1))
    found = token_logprobs(logits, token, alternatives)
    logs = np.log(softmax(logits))
    assert found.token == token
    assert found.logprob == pytest.approx(logs[token], abs=1e-12)
    assert [id for id, _ in found.top] == by_rank(logits)[:alternatives]
    np.testing.assert_allclose([logprob for _, logprob in found.top], logs[by_rank(logits)[:alternatives]], atol=1e-12)


# --- transformers' own


@pytest.fixture(scope="module")
def processors():
    pytest.importorskip("torch", reason="transformers runs on PyTorch")
    return pytest.importorskip("transformers", reason="compares with transformers").generation.logits_process


def theirs(processor, logits, tokens=(0,)):
    import torch

    return processor(torch.tensor([list(tokens)]), torch.tensor(logits[None])).numpy()[0]


def random_logits(seed, distinct):
    random = np.random.default_rng(seed)
    x = random.normal(scale=2, size=random.integers(2, 200))
    return x if distinct else np.round(x)  # rounded: many ties


SEEDS = range(40)


@pytest.mark.parametrize("distinct", [True, False])
def test_min_p_and_typical_p_are_those_of_transformers(processors, distinct):
    for seed in SEEDS:
        x = random_logits(seed, distinct)
        for p in (0.02, 0.3, 0.7, 0.95):
            expected = np.isfinite(theirs(processors.MinPLogitsWarper(p), x))
            assert np.array_equal(min_p_mask(softmax(x), p), expected)
            expected = np.isfinite(theirs(processors.TypicalLogitsWarper(p), x))
            assert np.array_equal(typical_p_mask(softmax(x), p), expected)


@pytest.mark.parametrize("distinct", [True, False])
def test_top_k_and_top_p_are_those_of_transformers(processors, distinct):
    """They keep all that equals the last of top_k, and of equals at top_p's border any; we the lowest ids."""
    for seed in SEEDS:
        x = random_logits(seed, distinct)
        for k in (1, 3, 20):
            expected = np.isfinite(theirs(processors.TopKLogitsWarper(k), x))
            mask = top_k_mask(x, k)
            assert not mask[~expected].any()
            assert set(x[expected & ~mask]) <= {x[mask].min()}
            assert np.count_nonzero(mask) == min(k, x.size)
            assert np.array_equal(mask, expected) or not distinct
        for p in (0.1, 0.5, 0.9, 0.99):
            expected = np.isfinite(theirs(processors.TopPLogitsWarper(p), x))
            mask = top_p_mask(softmax(x), p)
            assert np.array_equal(np.sort(x[mask]), np.sort(x[expected]))
            assert np.array_equal(mask, expected) or not distinct


@pytest.mark.parametrize(("bias", "repetition"), [(1e30, 1e-30), (-1e30, 1e30)])
def test_the_largest_penalties_leave_finite_logits(bias, repetition):
    config = GenerationConfig(logit_bias={0: bias, 1: -np.inf}, repetition_penalty=repetition)
    out = Penalties(config, [0, 1])(np.zeros(5, np.float32))
    assert np.isfinite(out[[0, 2, 3, 4]]).all() and out[1] == -np.inf


def test_repetition_penalty_and_bias_are_those_of_transformers(processors):
    for seed in SEEDS:
        x = random_logits(seed, distinct=True).astype(np.float32)
        random = np.random.default_rng(seed)
        prompt, output = random.integers(0, x.size, (2, 30))
        repetition, bias = float(random.uniform(0.5, 2)), {int(prompt[0]): 1.5, int(output[0]): -np.inf, 1: -0.25}
        penalties = Penalties(GenerationConfig(logit_bias=bias, repetition_penalty=repetition), prompt)
        for token in output.tolist():
            penalties.add(token)
        tokens = [*prompt, *output]
        expected = theirs(
            processors.SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()}), x, tokens
        )
        expected = theirs(processors.RepetitionPenaltyLogitsProcessor(repetition), expected, tokens)
        assert np.array_equal(penalties(x), expected)


def test_all_together_are_in_the_order_of_transformers(processors):
    """Its scores, step by step, of a small random model; the tokens it drew are taken over."""
    import torch
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=300, **sizes)).eval()
    torch.nn.init.normal_(model.lm_head.weight, std=1.0)  # logits of about 4
    prompt = [5, 17, 5, 201]
    options = {"temperature": 1.4, "top_k": 60, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.8}
    options["repetition_penalty"] = 1.3
    bias = {5: 2.0, 17: -np.inf, 33: 4.0}
    found = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 4), do_sample=True, max_new_tokens=30, eos_token_id=None,
        pad_token_id=0, sequence_bias=[[[token], value] for token, value in bias.items()],
        output_scores=True, output_logits=True, return_dict_in_generate=True, **options,
    )  # fmt: skip
    config = GenerationConfig(logit_bias=bias, **options)
    penalties = Penalties(config, prompt)
    sizes = set()
    for token, logits, scores in zip(found.sequences[0, 4:].tolist(), found.logits, found.scores, strict=True):
        ids, probability = candidates(
            penalties(logits[0].numpy()), config.temperature, config.top_k, config.top_p, config.min_p, config.typical_p
        )
        assert np.array_equal(ids, np.flatnonzero(np.isfinite(scores[0].numpy())))
        expected = torch.softmax(scores[0].double(), 0).numpy()[ids]
        np.testing.assert_allclose(probability, expected, rtol=1e-5)  # of float32 logits divided by 1.4
        sizes.add(ids.size)
        penalties.add(token)
    assert len(sizes) > 5
