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
    config = GenerationConfig(**{"early_stopping": "never", "end_ids": end_ids, **options})
    return beam.search(model, PROMPT, max_tokens, config)


def score(next_logits, tokens, length_penalty):
    total = 0.0
    for i, token in enumerate(tokens):
        total += log_softmax(next_logits([*PROMPT, *tokens[:i]]))[token]
    return total / len(tokens) ** length_penalty


def every_hypothesis(next_logits, vocab_size, max_tokens, length_penalty, end_ids=(END,)):
    """All sequences that end with an end token or at max_tokens, best first."""
    words = [token for token in range(vocab_size) if token not in end_ids]
    sequences = [[*body, end] for n in range(max_tokens) for body in product(words, repeat=n) for end in end_ids]
    sequences += [list(body) for body in product(words, repeat=max_tokens)]
    found = [
        Hypothesis(
            [t for t in tokens if t not in end_ids],
            score(next_logits, tokens, length_penalty),
            tokens[-1] in end_ids,
        )
        for tokens in sequences
    ]
    return sorted(found, key=lambda hypothesis: -hypothesis.score)


def plain_search(model, max_tokens, beams, length_penalty, early_stopping="never"):
    """Beam search without cache, and with "never" without early stop: the definition, to the last token."""
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
        finished.sort(key=lambda item: -item[1])
        finished = finished[:beams]
        running = [item for item in continued if item[0][-1] != END][:beams]
        if len(finished) == beams and early_stopping is True:
            break
        best = running[0][1] / length**length_penalty
        if len(finished) == beams and early_stopping is False and best <= finished[-1][1]:
            break
    return [Hypothesis([t for t in tokens if t != END], score, tokens[-1] == END) for tokens, score in finished]


def assert_same(found, expected):
    assert [(h.tokens, h.ended) for h in found] == [(h.tokens, h.ended) for h in expected]
    # the sums go in the same order, in float64
    np.testing.assert_allclose([h.score for h in found], [h.score for h in expected], rtol=1e-12)


penalties = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 3.0])


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(1, 4), penalties, st.sampled_from([0.1, 1.0, 5.0]))
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


@settings(deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 5), penalties, st.sampled_from([0.3, 2.0]), st.integers(0, 3), st.booleans()
)
def test_early_stopping_is_as_defined(seed, beams, penalty, scale, end_bias, early_stopping):
    model = TableModel(vocab_size=6, context=12, seed=seed, scale=scale)
    model.table[:, :, END] += end_bias
    found = search(model, 10, beams=beams, length_penalty=penalty, early_stopping=early_stopping)
    assert_same(found, plain_search(model, 10, beams, penalty, early_stopping))


def test_the_sooner_a_search_stops_the_less_it_finds():
    steps, scores = {}, {}
    for early_stopping in (True, False, "never"):
        models = [TableModel(vocab_size=6, context=40, seed=seed, scale=1.0) for seed in range(30)]
        found = [search(model, 38, beams=3, early_stopping=early_stopping) for model in models]
        steps[early_stopping] = sum(model.decoded for model in models)
        scores[early_stopping] = sum(best[0].score for best in found)
    assert steps[True] < steps[False] < steps["never"]
    assert scores[True] < scores[False] < scores["never"]


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
    assert found.ended == (len(found.tokens) < 10)


def test_more_beams_find_a_better_hypothesis_than_greedy():
    scores = []
    for beams in (1, 27):
        found = [search(TableModel(3, context=6, seed=s), 4, beams=beams, length_penalty=0.0)[0] for s in range(20)]
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


def test_a_long_prompt_is_read_once():
    model = TableModel(vocab_size=5, context=700, seed=0)
    prompt = np.random.default_rng(0).integers(0, 5, 600).astype(np.int32)
    found = beam.search(model, prompt, 3, GenerationConfig(beams=3))
    assert model.prefilled == [600]
    score = 0.0
    for i, token in enumerate(found[0].tokens):
        score += log_softmax(model.next_logits([*prompt, *found[0].tokens[:i]]))[token]
    assert found[0].score == pytest.approx(score / 3)


def test_hypotheses_share_the_steps():
    model = TableModel(vocab_size=5, context=12, seed=0)
    search(model, 6, end_ids=(), beams=4)
    assert model.prefilled == [2]
    assert model.rows == [4] * 5


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.floats(-2, 2), st.floats(0.5, 2))
def test_penalties_count_each_hypothesis_for_itself(seed, beams, frequency, repetition):
    options = {"frequency_penalty": frequency, "repetition_penalty": repetition, "logit_bias": {2: 0.5}}
    model = TableModel(vocab_size=4, context=8, seed=seed)
    found = search(model, 4, beams=beams, length_penalty=0.0, **options)

    def changed(logs, tokens):
        out = logs.copy()
        out[2] += 0.5
        for token in {*PROMPT.tolist(), *tokens}:
            out[token] = out[token] * repetition if out[token] < 0 else out[token] / repetition
        for token in set(tokens):
            out[token] -= frequency * tokens.count(token)
        return out

    for hypothesis in found:
        tokens = [*hypothesis.tokens, *([END] if hypothesis.ended else [])]
        expected = sum(
            changed(log_softmax(model.next_logits([*PROMPT, *tokens[:i]])), tokens[:i])[token]
            for i, token in enumerate(tokens)
        )
        assert hypothesis.score == pytest.approx(expected, abs=1e-9)


# --- transformers' own


def their_model(kind, seed):
    """A random model of transformers, and ours of the same weights."""
    import torch
    import transformers

    import fastllm
    from fastllm.formats.huggingface import from_huggingface
    from fastllm.formats.huggingface_config import config_from_huggingface

    sizes = {"vocab_size": 40, "tie_word_embeddings": False}
    if kind == "gpt2":
        config = transformers.GPT2Config(n_positions=32, n_embd=16, n_layer=2, n_head=2, **sizes)
    else:
        config = transformers.LlamaConfig(
            max_position_embeddings=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, **sizes,
        )  # fmt: skip
    torch.manual_seed(seed)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    torch.nn.init.normal_(theirs.lm_head.weight, std=0.7)  # logits of about 3: clear decisions
    ours = fastllm.Model(config_from_huggingface(config.to_dict()), backend="numpy")
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    ours.parameters.load(from_huggingface(ours.config, tensors))
    return theirs, ours


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch", reason="transformers runs on PyTorch")
    pytest.importorskip("transformers", reason="compares with transformers")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # its threads wait for each other longer than they work
    yield torch
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_hypotheses_and_scores_are_those_of_transformers(kind, torch):
    ended = 0
    cases = list(product((True, False, "never"), (0.0, 1.0, -1.0, 2.5)))
    for seed, (early_stopping, length_penalty) in enumerate(cases):
        theirs, ours = their_model(kind, seed)
        prompt = np.random.default_rng(seed).integers(0, 40, 5).astype(np.int32)
        beams, end_ids = (2, 3, 5)[seed % 3], ((7, 8, 9, 10), (11,))[seed % 2]
        repetition_penalty = (1.0, 1.3)[seed // 2 % 2]
        expected = theirs.generate(
            torch.tensor(prompt[None], dtype=torch.long), attention_mask=torch.ones(1, 5), max_new_tokens=12,
            do_sample=False, num_beams=beams, num_return_sequences=beams, early_stopping=early_stopping,
            length_penalty=length_penalty, repetition_penalty=repetition_penalty, eos_token_id=list(end_ids),
            pad_token_id=0, output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
        config = GenerationConfig(
            beams=beams,
            early_stopping=early_stopping,
            length_penalty=length_penalty,
            repetition_penalty=repetition_penalty,
            end_ids=end_ids,
        )
        found = beam.search(ours, prompt, 12, config)
        for hypothesis, row in zip(found, expected.sequences[:, 5:].tolist(), strict=True):
            ends = [i for i, token in enumerate(row) if token in end_ids]
            assert hypothesis.tokens == (row[: ends[0]] if ends else row)
            assert hypothesis.ended == bool(ends)
            ended += hypothesis.ended
        scores = [hypothesis.score for hypothesis in found]
        # 12 sums of float32 log-probabilities of about 5, times a length up to 12
        np.testing.assert_allclose(scores, expected.sequences_scores.numpy(), rtol=1e-4)
    assert 5 < ended < 3.3 * len(cases) - 5  # some end, some don't
