"""Many requests at once: each as it would be alone, whatever else runs."""

import doctest
import gc
import weakref

import numpy as np
import pytest
from generation_fakes import ScriptedModel, TableModel, is_idle, run, samples
from hypothesis import given
from hypothesis import strategies as st

from fastllm.errors import ConfigError, FastllmError
from fastllm.generation import Engine, GenerationConfig, engine, generate_tokens, prompt_lookup
from fastllm.generation.prompt_lookup import draft
from fastllm.generation.sampling import Sampler, log_softmax


@pytest.mark.parametrize("module", [engine, prompt_lookup])
def test_examples(module):
    results = doctest.testmod(module)
    assert results.attempted
    assert not results.failed


# --- alone and beside others

options = st.fixed_dictionaries(
    {
        "max_tokens": st.integers(1, 9),
        "temperature": st.sampled_from([0.0, 0.7, 1.5]),
        "seed": st.integers(0, 3),
        "end_ids": st.sampled_from([(), (0,), (1, 4)]),
        "frequency_penalty": st.sampled_from([0.0, 0.6]),
        "repetition_penalty": st.sampled_from([1.0, 1.4]),
        "logprobs": st.sampled_from([None, 0, 2]),
        "speculate": st.sampled_from([0, 0, 1, 4, 31]),
    }
)
prompts = st.lists(st.integers(0, 4), min_size=1, max_size=20)


@given(st.lists(st.tuples(prompts, options), min_size=1, max_size=12), st.integers(1, 5), st.integers(1, 9), st.data())
def test_each_text_is_what_it_is_alone(requests, slots, chunk, data):
    model = TableModel(context=24, seed=1)
    model.table[1:] = model.table[0]  # so that texts repeat themselves, and drafts come true
    running = Engine(model, slots, chunk)
    generations = []
    for prompt, option in requests:
        for _ in range(data.draw(st.integers(0, 3))):  # some come later
            running.step()
        generations += running.submit(prompt, GenerationConfig(**option))
    run(running)
    assert is_idle(running)
    assert max(model.rows, default=0) <= 32
    assert max(model.prefilled) <= chunk
    for (prompt, option), generation in zip(requests, generations, strict=True):
        text = list(prompt)
        sampler = Sampler(GenerationConfig(**option))
        sampler.begin(prompt)
        reason = "length"
        for _ in range(min(option["max_tokens"], 25 - len(prompt))):
            logits = model.next_logits(text)
            token = sampler(logits)
            if token in option["end_ids"]:
                reason = "end"
                break
            text.append(token)
            if option["logprobs"] is not None:
                entry = generation.logprobs[len(text) - len(prompt) - 1]
                assert entry.token == token
                assert entry.logprob == pytest.approx(log_softmax(logits)[token], abs=1e-12)
                assert len(entry.top) == option["logprobs"]
        assert generation.tokens == text[len(prompt) :]
        assert generation.finish_reason == reason
        if option["logprobs"] is not None:
            assert len(generation.logprobs) == len(generation.tokens)


def test_texts_share_steps_and_join_as_others_end():
    model = TableModel(context=40)
    running = Engine(model, slots=2)
    for length in (5, 2, 3):
        running.submit([1] * length, GenerationConfig(max_tokens=length))
    run(running)
    # two prompts are read at once; the second text ends after a step, and the third takes its place
    assert model.prefilled == [7, 3]
    assert model.rows == [2, 2, 2, 1]


def test_a_prompt_goes_where_most_of_it_stands_already():
    model = TableModel(context=40)
    running = Engine(model, slots=3, remembers=True)
    for prompt in ([1, 2, 3, 4], [2, 2, 2, 2], [3, 3, 3, 3]):
        running.submit(prompt, GenerationConfig(max_tokens=1))
    run(running)
    model.prefilled.clear()
    for prompt in ([2, 2, 2, 4], [1, 2, 3, 4, 0], [3, 1]):
        running.submit(prompt, GenerationConfig(max_tokens=1))
        run(running)
    assert model.prefilled == [1, 1, 1]


def test_of_a_prompt_that_stands_there_already_the_last_token_is_read_again():
    model = TableModel(context=40)
    running = Engine(model, slots=1, remembers=True)
    texts = []
    for _ in range(2):
        [text] = running.submit([1, 2, 3], GenerationConfig(max_tokens=3))
        run(running)
        texts.append(text.tokens)
    assert texts[0] == texts[1]
    assert model.prefilled == [3, 1]


def test_a_prompt_may_change_once_it_is_submitted():
    model, prompt = TableModel(context=40), np.array([1, 2, 3], np.int32)
    running = Engine(model, slots=1)
    [one] = running.submit(prompt, GenerationConfig(max_tokens=3))
    [two] = running.submit(prompt, GenerationConfig(max_tokens=3))
    prompt[:] = 4
    run(running)
    [alone] = Engine(model).submit([1, 2, 3], GenerationConfig(max_tokens=3))
    assert one.tokens == two.tokens == list(alone)


def test_a_sampler_is_for_one_text():
    config = GenerationConfig(n=3, temperature=1.0)
    with pytest.raises(ConfigError, match="one text is generated here; got n=3"):
        Engine(TableModel()).submit([1], config, Sampler(config))


def test_a_step_tells_what_has_changed():
    running = Engine(TableModel(context=40), slots=2, chunk=4)
    [one] = running.submit([1], GenerationConfig(max_tokens=2))
    [two] = running.submit([1] * 6, GenerationConfig(max_tokens=1))
    [three] = running.submit([1], GenerationConfig(max_tokens=1))
    assert running.step() == [one]  # 1 + 4 tokens are more than 4
    assert running.step() == [one]  # and the first 4 tokens of `two`, whose end isn't read yet
    assert one.finish_reason == "length"
    assert running.step() == [two, three]
    [four] = running.submit([1])
    four.close()
    assert running.step() == [four]
    assert running.step() == []
    assert not running.busy


def test_a_long_prompt_does_not_block_the_others():
    model = TableModel(context=100)
    running = Engine(model, slots=2, chunk=8)
    [short] = running.submit([1, 2], GenerationConfig(max_tokens=20))
    running.step()
    running.submit([3] * 60, GenerationConfig(max_tokens=2))
    lengths = []
    while running.busy:
        running.step()
        lengths.append(len(short.tokens))
    assert lengths[:8] == [2, 3, 4, 5, 6, 7, 8, 9]
    assert model.prefilled == [2, *[8] * 7, 4]


def test_stretches_of_a_prompt_begin_at_multiples_of_the_chunk():
    model = TableModel(context=100)
    running = Engine(model, slots=4, chunk=8)
    texts = [np.random.default_rng(length).integers(0, 5, length).tolist() for length in (3, 21, 5, 8, 30)]
    for text in texts:
        running.submit(text, GenerationConfig(max_tokens=3))
    run(running)
    stretches = [text[start : start + 8] for text in texts for start in range(0, len(text), 8)]
    assert sorted(model.prompts) == sorted(stretches)


# --- samples


@pytest.mark.parametrize("slots", [1, 2, 3, 8])
@pytest.mark.parametrize(("n", "max_tokens"), [(2, 9), (7, 6), (40, 1), (40, 3)])
def test_samples_of_a_prompt_share_it(slots, n, max_tokens):
    model = TableModel(context=60, seed=3)
    running = Engine(model, slots, chunk=4)
    config = GenerationConfig(n=n, max_tokens=max_tokens, temperature=1.0, seed=1, end_ids=(2,), logprobs=1)
    [before] = running.submit([3, 3], GenerationConfig(max_tokens=4))
    prompt = [1, 2, 3, 4, 0, 1, 2, 3, 4]
    generations = running.submit(prompt, config)
    [after] = running.submit([4, 4], GenerationConfig(max_tokens=4))
    run(running)
    assert is_idle(running)
    assert sum(model.prefilled) == 2 + 9 + 2
    assert max(model.rows, default=1) <= slots
    alone = TableModel(context=60, seed=3)
    assert [generation.tokens for generation in generations] == list(samples(prompt, config, alone))
    assert len({tuple(generation.tokens) for generation in generations}) > 1
    assert before.tokens == list(generate_tokens(alone, [3, 3], max_tokens=4))
    assert after.tokens == list(generate_tokens(alone, [4, 4], max_tokens=4))


def test_samples_that_are_closed_pass_the_prompt_on():
    model = TableModel(context=60, seed=3)
    running = Engine(model, slots=2, chunk=4)
    config = GenerationConfig(n=5, max_tokens=6, temperature=1.0)
    prompt = [1, 2, 3, 4, 0, 1, 2, 3, 4]
    generations = running.submit(prompt, config)
    running.step()
    generations[0].close()  # the prompt is half read
    generations[3].close()  # waiting
    running.step()
    running.step()
    running.step()
    generations[1].close()  # writing
    run(running)
    assert is_idle(running)
    assert sum(model.prefilled) == len(prompt)
    expected = list(samples(prompt, config, TableModel(context=60, seed=3)))
    for sample in (2, 4):
        assert generations[sample].tokens == expected[sample]
    assert [generation.finish_reason for generation in generations] == [*["closed"] * 2, "length", "closed", "length"]


def test_a_sample_that_is_closed_before_it_began_passes_the_prompt_on():
    model = TableModel(context=60, seed=3)
    running = Engine(model, slots=1)
    config = GenerationConfig(n=4, max_tokens=3, temperature=1.0)
    generations = running.submit([1, 2], config)
    running.step()
    for generation in generations[:2]:
        generation.close()
    run(running)
    assert is_idle(running)
    expected = list(samples([1, 2], config, TableModel(context=60, seed=3)))
    assert [generation.tokens for generation in generations] == [expected[0][:1], [], *expected[2:]]


def test_the_logits_of_a_prompt_are_kept_no_longer_than_they_are_needed():
    running = Engine(TableModel(context=60), slots=2)
    generations = running.submit([1], GenerationConfig(n=5, max_tokens=3, temperature=1.0))
    run(running)
    assert generations[0]._prompt.logits is None


# --- iterating, closing, failing


def test_iterators_serve_each_other():
    model = TableModel(context=40)
    running = Engine(model)
    [one] = running.submit([1, 2], GenerationConfig(max_tokens=6))
    [two] = running.submit([3], GenerationConfig(max_tokens=8))
    pairs = list(zip(one, two, strict=False))
    assert len(pairs) == 6
    assert model.rows == [2] * 5
    assert list(two) == two.tokens  # from the beginning, and on
    alone = list(generate_tokens(TableModel(context=40), [1, 2], max_tokens=6))
    assert [first for first, _ in pairs] == list(one) == alone


def test_leaving_the_loop_frees_the_slot():
    model = TableModel(context=40)
    running = Engine(model, slots=1)
    [one] = running.submit([1, 2])
    for _ in one:
        break
    assert one.finish_reason == "closed"
    assert len(one.tokens) == 1
    assert is_idle(running)
    one.close()
    assert len(running._free) == 1
    [two] = running.submit([3], GenerationConfig(max_tokens=2))
    assert len(list(two)) == 2


def test_closing_an_iterator_frees_the_slot():
    running = Engine(TableModel(context=40), slots=1)
    [one] = running.submit([1, 2])
    tokens = iter(one)
    next(tokens)
    tokens.close()
    assert is_idle(running)


def test_a_text_that_is_closed_leaves_nothing_to_the_collector():
    """Its engine may never step again, and holds the cache."""
    running = Engine(TableModel(context=40), slots=1)
    left = weakref.ref(running._cache)
    [one] = running.submit([1, 2])
    next(iter(one))
    one.close()
    gc.disable()
    try:
        del running
        assert left() is None
    finally:
        gc.enable()
    assert list(one) == one.tokens != []


@pytest.mark.parametrize(("tokens", "fix"), [([], "end token"), ([1.0], "whole numbers"), ("one", "whole numbers")])
def test_tokens_that_are_none(tokens, fix):
    with pytest.raises(ValueError, match=f"tokens must be one row of at least one token id; got .*{fix}"):
        Engine(TableModel(context=40)).submit(tokens)


def test_options_that_are_no_config():
    with pytest.raises(TypeError, match="config must be a GenerationConfig; got dict"):
        Engine(TableModel(context=40)).submit([1], {"max_tokens": 3})


@pytest.mark.parametrize("options", [{"slots": 2.0}, {"slots": True}, {"chunk": "8"}])
def test_slots_and_chunk_are_whole_numbers(options):
    with pytest.raises(TypeError, match=f"{next(iter(options))} must be a whole number; got .+; use one such as 1"):
        Engine(TableModel(), **options)


def test_a_waiting_request_can_be_closed():
    running = Engine(TableModel(context=40), slots=1)
    [one] = running.submit([1, 2], GenerationConfig(max_tokens=3))
    [two] = running.submit([1, 2])
    running.step()
    two.close()
    run(running)
    assert (len(one.tokens), two.tokens, two.finish_reason) == (3, [], "closed")


def test_what_is_wrong_with_one_request_does_not_end_the_others():
    model = TableModel(context=40)
    model.next_logits = lambda tokens: np.full(5, np.nan) if tokens[0] == 4 else TableModel.next_logits(model, tokens)
    running = Engine(model)
    [good] = running.submit([1, 2], GenerationConfig(max_tokens=4))
    [damaged] = running.submit([4], GenerationConfig(max_tokens=4))
    banned = GenerationConfig(logit_bias=dict.fromkeys(range(5), -np.inf))
    [silenced] = running.submit([1], banned)
    run(running)
    assert is_idle(running)
    assert good.tokens == list(generate_tokens(TableModel(context=40), [1, 2], max_tokens=4))
    assert [damaged.finish_reason, silenced.finish_reason] == ["error", "error"]
    with pytest.raises(FastllmError, match="damaged"):
        list(damaged)
    with pytest.raises(ValueError, match="must leave a token"):
        list(silenced)


@pytest.mark.parametrize(
    ("tokens", "config", "message"),
    [
        ([1] * 9, {}, "context of 8 tokens; got 9"),
        ([], {}, r"shape \(0,\)"),
        ([1.5], {}, "float64"),
        ([1, 5], {}, "from 0 to vocab_size - 1 = 4; got 5 at position 1"),
        ([-1], {}, "got -1 at position 0"),
        ([1], {"beams": 2}, "beams are searched by beam_search; got beams=2"),
        ([1], {"n": 2}, "n above 1 needs a temperature above 0, or beams; got n=2"),
    ],
)
def test_a_wrong_request_is_an_error_at_once(tokens, config, message):
    running = Engine(TableModel(context=8))
    with pytest.raises(ValueError, match=message):
        running.submit(tokens, GenerationConfig(**config))
    assert not running.busy


@pytest.mark.parametrize(("sizes", "message"), [((0,), "slots must"), ((33,), "slots must"), ((8, 0), "chunk must")])
def test_wrong_sizes(sizes, message):
    with pytest.raises(ValueError, match=message):
        Engine(TableModel(), *sizes)


def test_an_idle_engine_does_nothing():
    model = TableModel()
    assert Engine(model).step() == []
    assert not model.rows


# --- drafts


def by_definition(text, ngram, count):
    for length in range(min(ngram, len(text) - 1), 0, -1):
        for start in reversed(range(len(text) - length)):
            if text[start : start + length] == text[len(text) - length :]:
                text, grown = [*text], start + length
                for i in range(count):
                    text.append(text[grown + i])
                return text[-count:]
    return []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 8))
def test_drafts_are_what_followed_the_longest_and_latest_match(text, ngram, count):
    assert draft(np.array(text, np.int32), ngram, count) == by_definition(text, ngram, count)


def test_drafts_save_steps():
    script = [1, 2, 3, 4, 5, 6, 7] * 4
    plain, drafted = (ScriptedModel(script, vocab_size=8) for _ in range(2))
    config = {"max_tokens": 28}
    expected = list(generate_tokens(plain, [1, 2, 3], **config))
    assert list(generate_tokens(drafted, [1, 2, 3], speculate=6, **config)) == expected == script
    assert plain.decoded == 27
    # After 1 comes 2 3 1 ..., it says the prompt: 2 and 3 are right, and 4 is chosen. 5, 6, 7 and 1 are new. From
    # then on all is right: three tokens, the two that were and one more, then six; and 28 must not be exceeded.
    assert drafted.rows == [7, 1, 1, 1, 1, 4, 7, 7, 2]


def test_drafts_that_fail_become_short():
    model = ScriptedModel([1, 2, 1, 3, 1, 4, 1, 5, 1, 6, 1, 7] * 2, vocab_size=8, context=100)
    list(generate_tokens(model, [1] * 9, speculate=8, max_tokens=24))
    assert model.rows[0] == 9
    assert max(model.rows[1:8]) == 2


def test_drafts_end_with_the_text():
    script = [1, 2, 1, 2, 1, 2, 0, 1, 2, 1]
    model = ScriptedModel(script, vocab_size=8)
    assert list(generate_tokens(model, [1, 2], speculate=5, end_ids=[0])) == script[:6]
    model = ScriptedModel([1, 2] * 10, vocab_size=8, context=12)
    assert list(generate_tokens(model, [1, 2, 1, 2], speculate=9)) == [1, 2] * 4 + [1]  # the context is full
    assert max(model.cache.lengths, default=0) == 0  # and the cache never held more, or logits_of would have failed


def test_drafts_are_shared_out():
    model = TableModel(vocab_size=3, context=100, scale=0.0)  # always token 0
    running = Engine(model, slots=8)
    texts = [running.submit([0, 0], GenerationConfig(max_tokens=21, speculate=31))[0] for _ in range(8)]
    while running.busy:
        running.step()
        assert len({len(text.tokens) for text in texts}) == 1
    assert model.rows == [32] * 5  # 4 rows each, 20 tokens after the first


def test_samples_are_drawn_without_drafts():
    model = TableModel(vocab_size=3, context=100, scale=0.0)
    list(generate_tokens(model, [0, 0], max_tokens=9, speculate=5, temperature=1.0))
    assert model.rows == [1] * 8
