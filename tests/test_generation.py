import doctest
import importlib
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from generation_fakes import ScriptedModel, TableModel, greedy_without_cache
from hypothesis import given
from hypothesis import strategies as st

from fastllm.errors import ConfigError, FastllmError
from fastllm.generation import (
    GenerationConfig,
    beam_search,
    completions,
    generate,
    generate_batch,
    generate_tokens,
    stream,
    stream_pieces,
)
from fastllm.generation.sampling import log_softmax
from fastllm.generation.stop import StopStrings
from fastllm.generation.text import Decoder, Reader
from fastllm.tokenizers import ByteTokenizer, CharacterTokenizer, WordTokenizer

CHARACTERS = CharacterTokenizer.build(["abcdefgh END"])
WORDS = WordTokenizer.build(["The sun is a star, and stars are far."])


def saying(tokenizer, *texts, end=True):
    scripts = [[*tokenizer.encode(text).tolist(), *([tokenizer.end_id] if end else [])] for text in texts]
    return ScriptedModel(*scripts, vocab_size=tokenizer.vocab_size)


# --- tokens


def test_an_unknown_option_names_the_closest():
    with pytest.raises(ConfigError, match=r"got 'temprature'; did you mean 'temperature'\?"):
        generate(TableModel(), CHARACTERS, "a", temprature=1)


def test_greedy_takes_the_most_probable_token():
    model = TableModel(vocab_size=7, context=20, seed=3)
    tokens = list(generate_tokens(model, [1, 2], max_tokens=12))
    assert tokens == greedy_without_cache(model, [1, 2], 12)
    assert len(set(tokens)) > 3


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"beams": 3}], ids=str)
def test_generation_ends_when_the_context_is_full(options):
    model = TableModel(context=8)
    for length in range(1, 9):
        assert len(list(generate_tokens(model, [1] * length, **options))) == 8 - length + 1
        assert len(list(generate_tokens(model, [1] * length, max_tokens=1, **options))) == 1


def test_no_token_is_decoded_in_vain():
    model = TableModel(context=8)
    list(generate_tokens(model, [1, 1], max_tokens=4))
    assert model.decoded == 3


@pytest.mark.parametrize(
    ("tokens", "got"),
    [([1] * 9, "got 9"), ([], r"shape \(0,\)"), ([[1]], r"shape \(1, 1\)"), ([0.5], "float64")],
)
def test_a_wrong_prompt_is_an_error_at_the_call(tokens, got):
    with pytest.raises(ValueError, match=f"must .*{got}"):
        generate_tokens(TableModel(context=8), tokens)


def test_end_tokens_end_and_are_not_yielded():
    model = ScriptedModel([3, 4, 2, 5], [3, 4, 2, 5], vocab_size=6)
    assert list(generate_tokens(model, [1], end_ids=[2, 5])) == [3, 4]
    assert list(generate_tokens(model, [1], end_ids=[5])) == [3, 4, 2]


# --- text


def test_the_text_ends_before_the_end_token():
    model = saying(CHARACTERS, "cab")
    assert generate(model, CHARACTERS, "ab") == "cab"
    assert model.prompts == [CHARACTERS.encode("ab").tolist()]


def test_an_empty_prompt_starts_from_the_end_token():
    model = saying(CHARACTERS, "cab")
    assert generate(model, CHARACTERS, "") == "cab"
    assert model.prompts == [[CHARACTERS.end_id]]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 4}, {"beams": 4}], ids=str)
def test_the_pieces_join_to_the_text(options):
    model = TableModel(CHARACTERS.vocab_size, context=30, seed=1)
    pieces = list(stream(model, CHARACTERS, "abc", **options))
    assert "".join(pieces) == generate(model, CHARACTERS, "abc", **options)
    assert len(pieces) > 5
    assert all(pieces)


def test_pieces_come_as_they_are_generated():
    model = saying(CHARACTERS, "abc")
    pieces = stream(model, CHARACTERS, "a")
    assert (next(pieces), model.decoded) == ("a", 0)
    assert (next(pieces), model.decoded) == ("b", 1)


def test_prompt_and_text_read_as_one():
    prompt, text = "The sun is", " a star, and stars are far."
    assert list(stream(saying(WORDS, text), WORDS, prompt)) == [
        *(" a", " star", ",", " and", " stars", " are", " far", ".")
    ]
    assert generate(saying(WORDS, ", and"), WORDS, prompt) == ", and"


def test_characters_of_several_bytes_stay_whole():
    tokenizer = ByteTokenizer()
    assert list(stream(saying(tokenizer, "aé→😀"), tokenizer, "é")) == ["a", "é", "→", "😀"]
    assert generate(saying(tokenizer, "a😀"), tokenizer, "é", max_tokens=3) == "a\ufffd"


def test_seeds():
    model = TableModel(CHARACTERS.vocab_size, context=40, seed=1, scale=0.3)

    def text(seed):
        return generate(model, CHARACTERS, "abc", temperature=1.0, seed=seed)

    assert text(1) == text(1) != text(2)
    assert text(None) != text(None)


def test_an_error_of_stream_comes_at_the_call():
    with pytest.raises(ValueError, match="top_p"):
        stream(TableModel(), CHARACTERS, "a", top_p=0)
    with pytest.raises(ValueError, match="context of 8 tokens; got 9"):
        stream(TableModel(context=8), CHARACTERS, "a" * 9)
    for beams in (1, 2):
        with pytest.raises(ConfigError, match=r"logit_bias must be of token ids below 5; got 5; "):
            generate_tokens(TableModel(), [1], logit_bias={5: 1.0}, beams=beams)


# --- stop strings


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("END", "abc "),
        ("E", "abc "),
        (("zzz", "ND", "bc "), "a"),
        (("EF", "ENN"), "abc END def"),  # a beginning of both, neither of them
        ("f", "abc END de"),
        ("abc", ""),
        ("def!", "abc END def"),  # still waiting when the text ends
    ],
)
def test_the_text_ends_before_a_stop_string(stop, text):
    assert generate(saying(CHARACTERS, "abc END def"), CHARACTERS, "a", stop=stop) == text


def test_a_stop_string_is_never_shown_in_part():
    pieces = stream(saying(CHARACTERS, "abEaENaEND"), CHARACTERS, "a", stop="END")
    assert list(pieces) == ["a", "b", "Ea", "ENa"]


def test_nothing_is_generated_after_a_stop_string():
    model = saying(CHARACTERS, "abEND" + "a" * 20)
    generate(model, CHARACTERS, "a", stop="END")
    assert model.decoded == 4


def test_a_stop_string_inside_a_token():
    assert generate(saying(WORDS, "a star, and stars"), WORDS, "The", stop="ar, a") == " a st"


short = st.text("ab", max_size=12)


@given(short, st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.sets(st.integers(0, 12)))
def test_the_borders_of_pieces_do_not_matter(text, stops, borders):
    ends = [(end, end - len(stop)) for end in range(len(text) + 1) for stop in stops if text[:end].endswith(stop)]
    expected = text[: min(ends)[1]] if ends else text

    watch = StopStrings(stops)
    shown = ""
    for start, end in pairwise([0, *sorted(borders), max(12, len(text))]):
        shown += watch.push(text[start:end])
        assert expected.startswith(shown)
        if watch.found:
            break
    assert shown + watch.flush() == expected
    assert watch.found == bool(ends)


# --- pieces


def test_pieces_carry_their_tokens():
    tokenizer = ByteTokenizer()
    model = saying(tokenizer, "aé!")
    pieces = list(stream_pieces(model, tokenizer, "", logprobs=1))
    assert [(piece.text, bytes(piece.tokens)) for piece in pieces] == [
        ("a", b"a"),
        ("é", "é".encode()),
        ("!", b"!"),
        ("", b""),
    ]
    assert [piece.finish_reason for piece in pieces] == [None, None, None, "end"]
    logprob = 1 - np.log(np.exp(1) + tokenizer.vocab_size - 1)
    for piece in pieces:
        for token, entry in zip(piece.tokens, piece.logprobs, strict=True):
            assert entry.token == token
            assert entry.logprob == pytest.approx(logprob)
            assert [id for id, _ in entry.top] == [token]


def test_log_probabilities_are_of_the_logits_as_they_are():
    options = {"temperature": 2.0, "top_k": 3, "repetition_penalty": 2.0, "logit_bias": {3: 1.0}, "max_tokens": 5}
    model = TableModel(CHARACTERS.vocab_size, context=30, seed=1)
    text = CHARACTERS.encode("abc").tolist()
    tokens = 0
    for piece in stream_pieces(model, CHARACTERS, "abc", logprobs=2, **options):
        for entry in piece.logprobs:
            logs = log_softmax(model.next_logits(text))
            assert entry.logprob == pytest.approx(logs[entry.token])
            assert [id for id, _ in entry.top] == np.argsort(-logs)[:2].tolist()
            text.append(entry.token)
            tokens += 1
    assert tokens == 5


@pytest.mark.parametrize("options", [{"stop": "END"}, {"stop": "zzz"}, {"max_tokens": 6}, {"beams": 2}, {}], ids=str)
def test_pieces_join_to_the_completion(options):
    def model():
        if "beams" in options:
            return TableModel(CHARACTERS.vocab_size, context=20)
        return saying(CHARACTERS, "abcENaEND def")

    pieces = list(stream_pieces(model(), CHARACTERS, "a", **options))
    [whole] = generate_batch(model(), CHARACTERS, ["a"], **options)
    assert "".join(piece.text for piece in pieces) == whole.text == str(whole)
    assert [token for piece in pieces for token in piece.tokens] == whole.tokens
    assert pieces[-1].finish_reason == whole.finish_reason
    assert all(piece.finish_reason is None and piece.text for piece in pieces[:-1])


def test_closing_a_stream_frees_its_slot():
    model = saying(CHARACTERS, "abcdef")
    pieces = stream(model, CHARACTERS, "a")
    assert next(pieces) == "a"
    assert model.cache.used == {0}
    pieces.close()
    assert model.cache.used == set()


def test_what_goes_wrong_after_a_stop_string_does_not_matter():
    """Several tokens may come in one step, the stop string's end and an error among them."""
    tokens = CHARACTERS.encode("abENDab").tolist()

    def reader(count):
        generation = SimpleNamespace(
            tokens=tokens[:count], logprobs=None, finish_reason="error", error=FastllmError("damaged"), close=list,
            config=GenerationConfig(stop="END"),
        )  # fmt: skip
        return Reader(generation, CHARACTERS, [])

    assert reader(6).read() == ("ab", tokens[:5], None, "stop")
    with pytest.raises(FastllmError, match="damaged"):
        reader(4).read()


# --- batches


def test_a_batch_gives_each_prompt_its_text():
    def model():
        return TableModel(CHARACTERS.vocab_size, context=30, seed=1)

    prompts = ["abc", "", "defgh abc", "a", "abc"]
    for options in ({"max_tokens": 9}, {"temperature": 1.0, "seed": 3}, {"stop": ("a", "ED")}, {"beams": 2}):
        expected = [generate(model(), CHARACTERS, prompt, **options) for prompt in prompts]
        for slots in (1, 2, 8):
            found = generate_batch(model(), CHARACTERS, prompts, slots=slots, **options)
            assert [completion.text for completion in found] == expected
            assert [completion.prompt_tokens for completion in found] == [3, 1, 9, 1, 3]
            assert [completion.prompt for completion in found] == [0, 1, 2, 3, 4]
    assert generate_batch(model(), CHARACTERS, []) == []


def test_why_a_text_ends():
    model = saying(CHARACTERS, "ab", "abcdef", "abENDabc", "aEN", "E" * 100)
    model.config.context = 20
    found = generate_batch(model, CHARACTERS, ["a", "b", "c", "d", "e"], stop="END", slots=1, max_tokens=18)
    assert [(completion.text, completion.finish_reason) for completion in found] == [
        ("ab", "end"),
        ("abcdef", "end"),
        ("ab", "stop"),
        ("aEN", "end"),  # what waited for the rest of a stop string is shown
        ("E" * 18, "length"),
    ]
    assert CHARACTERS.decode(found[2].tokens) == "abEND"
    assert found[0].logprobs is None
    assert model.decoded == 2 + 6 + 4 + 3 + 17


def test_a_stop_string_frees_the_slot_at_once():
    model = saying(CHARACTERS, "ab END" + "c" * 30, "d" * 20, "e" * 20)
    generate_batch(model, CHARACTERS, ["a", "b", "c"], stop="END", slots=2)
    assert model.rows[:8] == [2, 2, 2, 2, 2, 1, 2, 2]  # one row while the third prompt is read
    assert model.cache.used == set()


def test_several_samples_of_each_prompt():
    model = TableModel(CHARACTERS.vocab_size, context=30, seed=1)
    options = {"temperature": 1.0, "seed": 3, "max_tokens": 8, "end_ids": ()}
    found = generate_batch(model, CHARACTERS, ["abc", "d"], n=3, slots=2, **options)
    assert len(found) == 6
    assert found[0].text == generate(model, CHARACTERS, "abc", **options)
    assert found[3].text == generate(model, CHARACTERS, "d", **options)
    assert len({completion.text for completion in found}) == 6
    assert found == generate_batch(model, CHARACTERS, ["abc", "d"], n=3, slots=8, **options)


def test_the_best_hypotheses_of_each_prompt():
    model = TableModel(CHARACTERS.vocab_size, context=12, seed=2)
    options = {"beams": 4, "max_tokens": 6}
    found = generate_batch(model, CHARACTERS, ["abc", "d"], n=2, **options)
    for prompt, pair in zip(("abc", "d"), (found[:2], found[2:]), strict=True):
        best = beam_search(model, CHARACTERS, prompt, **options)[:2]
        assert [(completion.text, completion.score) for completion in pair] == best
        assert all(completion.finish_reason in ("end", "length") for completion in pair)


def test_completions_come_in_order_and_as_soon_as_they_are_there():
    model = saying(CHARACTERS, "abcd", "e", "fgh")
    found = completions(model, CHARACTERS, ["a", "b", "c"], slots=2)
    assert next(found).text == "abcd"
    steps = model.decoded
    assert next(found).text == "e"
    assert model.decoded == steps
    assert [completion.text for completion in found] == ["fgh"]


@pytest.mark.parametrize(
    ("prompts", "options", "error", "message"),
    [
        (["a", None], {}, TypeError, r"prompts\[1\]: text must be a str"),
        (["a", "b" * 9], {}, ValueError, r"prompts\[1\]: a prompt must fit into .* context of 8 tokens; got 9"),
        (["a", "b" * 9], {"beams": 2}, ValueError, r"prompts\[1\]: a prompt must fit"),
        (["a", "\ud800"], {}, ValueError, r"prompts\[1\]: text must be valid Unicode"),
        ("abc", {}, TypeError, "several strings; got the string 'abc'"),
        (["a"], {"n": 2}, ConfigError, "^n above 1 needs a temperature above 0"),
        (["a"], {"slots": 0}, ValueError, "slots must be from 1 to 32"),
        (["a"], {"logit_bias": {99: 1.0}}, ConfigError, "^logit_bias must be of token ids below"),
        (["a"], {"topk": 3}, ConfigError, "did you mean 'top_k'"),
    ],
)
def test_errors_of_a_batch_come_before_it_begins(prompts, options, error, message):
    model = TableModel(CHARACTERS.vocab_size, context=8)
    with pytest.raises(error, match=message):
        completions(model, CHARACTERS, prompts, **options)
    assert not model.prompts


@pytest.mark.parametrize("function", [generate, stream, stream_pieces])
def test_where_one_text_is_generated_n_is_one(function):
    with pytest.raises(ConfigError, match=r"one text is generated here; got n=2; use generate_batch"):
        function(TableModel(CHARACTERS.vocab_size), CHARACTERS, "a", n=2, temperature=1.0)
    with pytest.raises(ConfigError, match=r"one text is generated here; got n=2"):
        generate_tokens(TableModel(), [1], n=2, temperature=1.0)


# --- the model's defaults


def test_what_is_not_asked_for_is_the_models_own():
    model = TableModel(CHARACTERS.vocab_size, context=30, seed=1)
    options = {"temperature": 0.9, "top_k": 5, "end_ids": tuple(CHARACTERS.encode("ab")), "seed": 7}
    expected = generate(model, CHARACTERS, "abc", **options)
    greedy = generate(model, CHARACTERS, "abc")
    tokens = CHARACTERS.encode("abc")
    expected_tokens = list(generate_tokens(model, tokens, **options))
    model.generation_options = options
    assert generate(model, CHARACTERS, "abc") == expected != greedy
    assert generate_batch(model, CHARACTERS, ["abc"], GenerationConfig())[0].text == expected
    assert list(generate_tokens(model, tokens)) == expected_tokens
    assert generate(model, CHARACTERS, "abc", GenerationConfig(temperature=0.0, end_ids=None)) == greedy
    assert generate(model, CHARACTERS, "abc", beams=2) == generate(
        TableModel(CHARACTERS.vocab_size, context=30, seed=1), CHARACTERS, "abc", beams=2, end_ids=options["end_ids"]
    )


# --- beams


def test_beam_search_gives_texts_with_scores():
    model = TableModel(CHARACTERS.vocab_size, context=12, seed=2)
    found = beam_search(model, CHARACTERS, "abc", beams=4, max_tokens=6)
    assert len(found) == 4
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    assert generate(model, CHARACTERS, "abc", beams=4, max_tokens=6) == found[0][0]


@pytest.mark.parametrize("options", [{"temperature": 0.8}, {"stop": "b"}, {"logprobs": 0}])
@pytest.mark.parametrize("beams", [1, 2])
def test_what_goes_with_no_beam_search_is_refused(options, beams):
    model = TableModel(CHARACTERS.vocab_size, context=12)
    [name] = options
    with pytest.raises(ConfigError, match=f"a beam search must go without {name}; got"):
        beam_search(model, CHARACTERS, "abc", GenerationConfig(**options), beams=beams)
    model.generation_options = {"temperature": 0.8}  # a default gives way
    assert len(beam_search(model, CHARACTERS, "abc", beams=beams, n=5, max_tokens=3)) == beams


def test_a_better_beam_may_begin_with_a_less_probable_token():
    model = TableModel(vocab_size=CHARACTERS.vocab_size, context=4, scale=0.0)
    a, b, c, d = CHARACTERS.encode("abcd")
    model.table[0, a, [b, c]] = 5.0, 4.9
    model.table[1, c, d] = 20.0
    assert generate(model, CHARACTERS, "a", max_tokens=2).startswith("b")
    assert generate(model, CHARACTERS, "a", max_tokens=2, beams=2) == "cd"


@pytest.mark.parametrize("module", ["config", "sampling", "stop", "generate", "chat"])
def test_examples(module):
    results = doctest.testmod(importlib.import_module(f"fastllm.generation.{module}"))
    assert results.attempted
    assert not results.failed


def test_what_the_last_token_leaves_incomplete_follows_what_was_held_back():
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("a E\u00e9").tolist()[:-1]  # half of a character, after what might begin a stop string
    for stop, expected in (("END", "a E\ufffd"), ("E\ufffd", "a ")):
        decoder = Decoder(tokenizer, [], [stop])
        assert "".join(map(decoder.push, ids)) + decoder.flush() == expected
        assert decoder.found == (stop != "END")


def test_nothing_follows_a_stop_string_in_the_last_token():
    """Not even a character that this token leaves incomplete."""
    given = SimpleNamespace(push=lambda token: "a END", flush=lambda: "\ufffd")
    tokenizer = SimpleNamespace(vocab_size=1, stream=lambda: given)
    generation = SimpleNamespace(
        tokens=[0], logprobs=None, error=None, finish_reason="length", config=GenerationConfig(stop=["END"]),
        close=lambda: None,
    )  # fmt: skip
    piece = Reader(generation, tokenizer, []).read()
    assert (piece.text, piece.finish_reason) == ("a ", "stop")
