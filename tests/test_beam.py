from itertools import product

import numpy as np
import pytest
from generation_fakes import TableModel
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.generation import GenerationConfig, beam, generate_tokens
from fastllm.generation.beam import Hypothesis
from fastllm.generation.sampling import log_softmax

END = 0
PROMPT = np.array([1, 1], np.int32)


def search(model, max_tokens, end_ids=(END,), **options):
    return beam.search(model, PROMPT, max_tokens, GenerationConfig(**options), end_ids)


def score(next_logits, tokens, length_penalty):
    total = 0.0
    for i, token in enumerate(tokens):
        total += log_softmax(next_logits([*PROMPT, *tokens[:i]]))[token]
    return total / len(tokens) ** length_penalty


def every_hypothesis(next_logits, vocab_size, max_tokens, length_penalty, end_ids=(END,)):
    """All sequences that end with an end token or at max_tokens, best first."""
    words = [token for token in range(vocab_size) if token not in end_ids]
    sequences = [
        [*body, end] for n in range(max_tokens) for body in product(words, repeat=n) for end in end_ids
    ]
    sequences += [list(body) for body in product(words, repeat=max_tokens)]
    found = [
        Hypothesis([t for t in tokens if t not in end_ids], score(next_logits, tokens, length_penalty))
        for tokens in sequences
    ]
    return sorted(found, key=lambda hypothesis: -hypothesis.score)


def plain_search(model, max_tokens, beams, length_penalty):
    """Beam search without cache or early stop: the definition, to the last token."""
    running, finished = [([], 0.0)], []
    for length in range(1, max_tokens + 1):
        continued = []
        for tokens, total in running:
            logs = log_softmax(model.next_logits([*PROMPT, *tokens]))
            continued += [([*tokens, token], total + logs[token]) for token in range(len(logs))]
        continued.sort(key=lambda item: -item[1])
        for tokens, total in continued[:beams]:
            if tokens[-1] == END or length == max_tokens:
                finished.append((tokens, total / length**length_penalty))
        running = [item for item in continued if item[0][-1] != END][:beams]
    finished.sort(key=lambda item: -item[1])
    return [Hypothesis([t for t in tokens if t != END], score) for tokens, score in finished[:beams]]


def assert_same(found, expected):
    assert [hypothesis.tokens for hypothesis in found] == [hypothesis.tokens for hypothesis in expected]
    # the sums go in the same order, in float64
    np.testing.assert_allclose([h.score for h in found], [h.score for h in expected], rtol=1e-12)


penalties = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 3.0])


@settings(deadline=None)
@given(
    st.integers(0, 10**6), st.integers(2, 4), st.integers(1, 4), penalties, st.sampled_from([0.1, 1.0, 5.0])
)
def test_equals_brute_force_when_nothing_is_pruned(seed, vocab_size, max_tokens, penalty, scale):
    model = TableModel(vocab_size, context=5, seed=seed, scale=scale)
    beams = vocab_size ** (max_tokens - 1)
    found = search(model, max_tokens, beams=beams, length_penalty=penalty)
    expected = every_hypothesis(model.next_logits, vocab_size, max_tokens, penalty)
    assert_same(found, expected[:beams])


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), penalties, st.sampled_from([0.3, 2.0]), st.integers(0, 3))
def test_cache_and_early_stop_change_nothing(seed, beams, penalty, scale, end_bias):
    model = TableModel(vocab_size=6, context=12, seed=seed, scale=scale)
    model.table[:, :, END] += end_bias
    found = search(model, 10, beams=beams, length_penalty=penalty)
    assert_same(found, plain_search(model, 10, beams, penalty))


def test_two_end_tokens():
    model = TableModel(vocab_size=4, context=5, seed=5)
    found = search(model, 3, end_ids=(0, 3), beams=16)
    assert_same(found, every_hypothesis(model.next_logits, 4, 3, 1.0, end_ids=(0, 3))[:16])


def test_no_end_token():
    model = TableModel(vocab_size=3, context=5, seed=5)
    found = search(model, 3, end_ids=(), beams=9)
    assert_same(found, every_hypothesis(model.next_logits, 3, 3, 1.0, end_ids=())[:9])


def test_tokens_ruled_out_are_in_no_hypothesis():
    model = TableModel(vocab_size=4, context=6, seed=1)
    model.table[:, :, 2:] = -np.inf
    found = search(model, 3, beams=6)
    assert {token for hypothesis in found for token in hypothesis.tokens} == {1}
    assert len(found) == 4  # "", "1", "1 1" and "1 1 1"


@pytest.mark.parametrize("seed", range(5))
def test_one_beam_without_penalty_is_greedy(seed):
    model = TableModel(vocab_size=6, context=12, seed=seed)
    [found] = search(model, 10, beams=1, length_penalty=0.0)
    assert found.tokens == list(generate_tokens(model, PROMPT, max_tokens=10, end_ids=[END]))


def test_more_beams_find_a_better_hypothesis_than_greedy():
    scores = []
    for beams in (1, 27):
        found = [
            search(TableModel(3, context=6, seed=s), 4, beams=beams, length_penalty=0.0)[0] for s in range(20)
        ]
        scores.append([hypothesis.score for hypothesis in found])
    assert all(wide >= narrow for narrow, wide in zip(*scores, strict=True))
    assert sum(scores[1]) > sum(scores[0])


def test_with_a_negative_penalty_the_next_token_is_the_best_chance():
    log_probabilities = {(): {END: -2.4, 1: -0.1}, (1,): {END: -1.0, 1: -0.5}, (1, 1): {END: -0.05, 1: -4.0}}
    model = TableModel(vocab_size=3, context=6)

    def next_logits(tokens):
        probability = np.zeros(3)
        for token, value in log_probabilities.get(tuple(tokens[len(PROMPT) :]), {END: -1.0, 1: -1.0}).items():
            probability[token] = np.exp(value)
        probability[2] = 1 - probability.sum()  # what is left
        return np.log(probability)

    model.next_logits = next_logits
    # after two tokens both places are taken, by -2.2 and -2.4; three tokens reach 3 * -0.65 = -1.95
    found = search(model, 4, beams=2, length_penalty=-1.0)
    assert [hypothesis.tokens for hypothesis in found] == [[1, 1], [1]]
    np.testing.assert_allclose([hypothesis.score for hypothesis in found], [-1.95, -2.2])


def test_stops_when_no_beam_can_catch_up():
    model = TableModel(vocab_size=5, context=60, seed=0, scale=0.1)
    model.table[1, :, END] += 20  # after the prompt the end is almost certain
    model.table[2, :, END] += 20
    search(model, 50, beams=2, length_penalty=0.0)
    assert model.decoded < 5
