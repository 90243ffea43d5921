import signal
import sys
from copy import copy
from pathlib import Path

import numpy as np
import pytest
from generation_fakes import ScriptedModel, TableModel

import fastllm
from fastllm.errors import DataError
from fastllm.generation import Chat, GenerationConfig
from fastllm.generation.engine import Engine
from fastllm.tokenizers import CharacterTokenizer, WordTokenizer

TOKENIZER = CharacterTokenizer.build(["abcdefgh?!"])
USER, ASSISTANT, END = TOKENIZER.user_id, TOKENIZER.assistant_id, TOKENIZER.end_id


def ids(text):
    return TOKENIZER.encode(text).tolist()


def turn(question, answer):
    return [USER, *ids(question), ASSISTANT, *ids(answer), END]


def last(question):
    return [USER, *ids(question), ASSISTANT]


def answering(*answers, context=64, last_token=END):
    return ScriptedModel(
        *([*ids(answer), last_token] for answer in answers), vocab_size=TOKENIZER.vocab_size, context=context
    )


def test_every_prompt_holds_the_turns_before():
    model = answering("abc", "de", "")
    chat = Chat(model, TOKENIZER)
    assert [list(chat.ask(question)) for question in ("a?", "b?", "c?")] == [["a", "b", "c"], ["d", "e"], []]
    assert chat.turns == [("a?", "abc"), ("b?", "de"), ("c?", "")]
    assert model.whole == [
        last("a?"),
        turn("a?", "abc") + last("b?"),
        turn("a?", "abc") + turn("b?", "de") + last("c?"),
    ]


def test_only_what_follows_the_last_prompt_is_read():
    """And the generated answer, as decoding doesn't compute the same bits of keys and values as reading a prompt."""
    model = answering("abc", "de", "f", "g")
    chat = Chat(model, TOKENIZER)
    for question in ("a?", "b?"):
        list(chat.ask(question))
    next(chat.ask("c?"))  # nobody reads on
    list(chat.ask("d?"))
    assert model.prompts == [
        last("a?"),
        [*ids("abc"), END, *last("b?")],
        [*ids("de"), END, *last("c?")],
        [*ids("f"), END, *last("d?")],
    ]
    assert len(model.caches) == 1


def test_a_chat_that_remembers_says_what_one_without_memory_would():
    """To the bit, on the real kernels."""
    tokenizer = fastllm.ByteTokenizer()
    config = fastllm.preset("nano", vocab_size=tokenizer.vocab_size, width=32, hidden=48, layers=2, context=256)
    model = fastllm.Model(config, seed=1)
    chat = Chat(model, tokenizer, max_tokens=20, temperature=1.0)
    prompts = []
    for question in ("Who?", "When?", "Why?"):
        prompts.append(chat.prompt(question))
        "".join(chat.ask(question))
    engine = Engine(model, slots=1)
    for prompt in prompts:
        greedy = GenerationConfig(max_tokens=5, logprobs=0)
        [fresh] = engine.submit(prompt, greedy)
        [kept] = chat._engine.submit(prompt, greedy)
        assert list(fresh) == list(kept)
        assert fresh.logprobs == kept.logprobs


def test_reset_forgets_what_earlier_weights_made():
    tokenizer = fastllm.ByteTokenizer()
    config = fastllm.preset("nano", vocab_size=tokenizer.vocab_size, width=16, hidden=24, layers=1, heads=2, context=64)
    model = fastllm.Model(config, seed=1, backend="numpy")
    chat = Chat(model, tokenizer, max_tokens=8)
    list(chat.ask("Who?"))
    model.parameters["blocks.0.attention.key.weight"][...] *= -1
    model.parameters["blocks.0.attention.value.weight"][...] *= 3
    model.cache_dtype = "float16"
    chat.reset()
    assert "".join(chat.ask("Who?")) == "".join(Chat(model, tokenizer, max_tokens=8).ask("Who?"))
    assert chat._engine._cache.keys[0].dtype == np.uint16


def test_an_answer_that_was_left_is_a_turn_before_the_next_question():
    model = answering("abc", "de", "ff")
    chat = Chat(model, TOKENIZER)
    left = chat.ask("a?")
    assert next(left) == "a"
    list(chat.ask("b?"))
    assert chat.turns == [("a?", "a"), ("b?", "de")]
    assert model.whole[1] == turn("a?", "a") + last("b?")
    assert list(left) == []
    unread = chat.ask("c?")
    list(chat.ask("d?"))
    assert list(unread) == []
    assert [question for question, _ in chat.turns] == ["a?", "b?", "d?"]


def test_an_answer_that_nobody_holds_any_more_is_a_turn():
    chat = Chat(answering("abc"), TOKENIZER)
    for piece in chat.ask("a?"):
        assert piece == "a"
        break
    assert chat.turns == [("a?", "a")]


@pytest.mark.parametrize("call", [lambda chat: chat.ask("b?"), Chat.reset], ids=["ask", "reset"])
def test_an_answer_that_another_thread_reads_is_not_ended(call):
    """No ValueError, which is for questions."""
    model = answering("abc", "de")
    chat = Chat(model, TOKENIZER)
    decode, raised = model.decode, []

    def meanwhile(*arguments):
        if not raised:
            with pytest.raises(RuntimeError, match="a chat gives one answer at a time") as found:
                call(chat)
            raised.append(found)
        return decode(*arguments)

    model.decode = meanwhile
    assert list(chat.ask("a?")) == ["a", "b", "c"]
    assert raised and chat.turns == [("a?", "abc")]


def test_reset_ends_an_answer():
    chat = Chat(answering("abc", "de"), TOKENIZER)
    left = chat.ask("a?")
    next(left)
    chat.reset()
    assert list(left) == [] and chat.turns == []
    assert "".join(chat.ask("b?")) == "de"


def test_no_end_ids_are_the_tokenizers():
    for options in {"end_ids": None}, {"config": fastllm.GenerationConfig(end_ids=None)}:
        assert "".join(Chat(answering("de"), TOKENIZER, **options).ask("a?")) == "de"
    chat = Chat(answering("de"), TOKENIZER, end_ids=(7,))
    chat.change(end_ids=None)
    assert "".join(chat.ask("a?")) == "de"


def test_a_system_message_is_a_text():
    pytest.importorskip("jinja2")
    tokenizer = copy(TOKENIZER)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}<assistant>"
    chat = Chat(answering("de"), tokenizer, system="be kind")
    with pytest.raises(ValueError, match=r"lone surrogate U\+D8FF"):
        chat.system = "\ud8ff"
    with pytest.raises(TypeError):
        Chat(answering("de"), tokenizer, system=5)
    assert chat.system == "be kind"


def test_ctrl_c_at_any_line_of_an_answer_leaves_a_chat_that_goes_on():
    """Where a slot changes hands, too: the engine is made anew then."""
    tokenizer = fastllm.ByteTokenizer()
    config = fastllm.preset("nano", vocab_size=tokenizer.vocab_size, width=16, hidden=24, layers=1, heads=2, context=64)
    model = fastllm.Model(config, seed=1, backend="numpy")
    files = tuple(str(Path(fastllm.__file__).parent / name) for name in ("generation/engine.py", "layers/kv_cache.py"))

    def interrupting(at):
        count, pressed = 0, False

        def trace(frame, event, argument):
            nonlocal count, pressed
            if frame.f_code.co_filename not in files:
                return None
            count += event == "line"
            is_held = signal.getsignal(signal.SIGINT) is not signal.default_int_handler
            if count >= at and event == "line" and not pressed and not is_held:
                pressed = True
                raise KeyboardInterrupt
            return trace

        return trace

    def lines_of(chat, at):
        sys.settrace(interrupting(at))
        try:
            for _ in chat.ask("Who?"):
                pass
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False

    expected = "".join(Chat(model, tokenizer, max_tokens=3).ask("Why?"))
    at = broken = 0
    while True:
        at += 1
        chat = Chat(model, tokenizer, max_tokens=3)
        if not lines_of(chat, at):
            break
        broken += chat._engine is not None and chat._engine.is_broken
        chat.turns.clear()
        assert "".join(chat.ask("Why?")) == expected, at
    assert at > 200 and broken > 10


def test_reset_forgets_all_turns():
    model = answering("abc", "de")
    chat = Chat(model, TOKENIZER)
    list(chat.ask("a?"))
    chat.reset()
    list(chat.ask("b?"))
    assert model.whole[1] == last("b?")
    assert chat.turns == [("b?", "de")]


def test_oldest_turns_are_dropped_whole():
    model = answering("aaaa", "bb", "cc", "d", context=32)  # a quarter of it, 8, is for the answer
    chat = Chat(model, TOKENIZER)
    for question in ("a?", "b?", "c?", "d?"):
        list(chat.ask(question))
    assert model.whole[2] == turn("a?", "aaaa") + turn("b?", "bb") + last("c?")  # 9 + 7 + 4 of 24
    assert model.whole[3] == turn("b?", "bb") + turn("c?", "cc") + last("d?")  # 9 + 7 + 7 + 4 is too long
    assert len(chat.turns) == 4


@pytest.mark.parametrize(("max_tokens", "kept"), [(None, 1), (2, 2), (100, 1)])
def test_room_is_left_for_the_answer(max_tokens, kept):
    model = answering("c", context=24)
    chat = Chat(model, TOKENIZER, max_tokens=max_tokens)
    chat.turns = [("a?", "aaaa"), ("b?", "bbb")]
    list(chat.ask("c?"))
    assert model.whole[0].count(END) == kept  # 9 + 8 + 4 tokens; 18, 22 and 18 fit


def test_a_long_question_may_take_the_room_of_the_answer():
    model = answering("abc", context=10)
    assert "".join(Chat(model, TOKENIZER).ask("abcdefgh")) == "a"  # a prompt of 10 leaves one token


@pytest.mark.parametrize(
    ("question", "message"), [("", "at least one token; got ''"), ("a" * 9, "context of 10 tokens; got 11")]
)
def test_a_wrong_question_is_an_error_at_the_call(question, message):
    chat = Chat(answering("abc", context=10), TOKENIZER)
    with pytest.raises(ValueError, match=message):
        chat.ask(question)
    assert chat.turns == []


def test_an_answer_ends_where_the_user_would_speak():
    model = answering("ab", last_token=USER)
    assert "".join(Chat(model, TOKENIZER).ask("a?")) == "ab"


@pytest.mark.parametrize(
    ("options", "is_cut"),
    [
        ({}, False),
        ({"max_tokens": 3}, True),
        ({"max_tokens": 6}, True),  # nobody knows whether it would have ended there
        ({"max_tokens": 7}, False),
        ({"max_tokens": 4, "stop": "cd"}, False),
        ({"max_tokens": 3, "stop": "cd"}, True),
    ],
)
def test_answers_that_did_not_end_by_themselves(options, is_cut):
    chat = Chat(answering("abcdef"), TOKENIZER, **options)
    list(chat.ask("a?"))
    assert chat.is_cut(chat.turns[0]) == is_cut


def test_of_two_turns_alike_one_may_be_cut_off():
    chat = Chat(answering("abc", "abc"), TOKENIZER)
    for most in 3, 4:
        chat.change(max_tokens=most)
        assert "".join(chat.ask("a?")) == "abc"
    assert [*map(chat.is_cut, chat.turns)] == [True, False]


def test_rows_that_no_token_stands_for_are_no_stop_string():
    model = TableModel(vocab_size=TOKENIZER.vocab_size + 1, context=64)
    chat = Chat(model, TOKENIZER, max_tokens=3, stop="cd", logit_bias={TOKENIZER.vocab_size: 1000.0})
    assert list(chat.ask("a?")) == []
    assert chat.counts[1] == 3 and chat.is_cut(chat.turns[0])


def test_an_answer_by_beams_that_did_not_end_by_itself():
    config = fastllm.preset("nano", vocab_size=TOKENIZER.vocab_size, width=16, hidden=16, layers=1, heads=2, context=32)
    never = dict.fromkeys(TOKENIZER.control_ids, -np.inf)
    chat = Chat(fastllm.Model(config, backend="numpy"), TOKENIZER, max_tokens=3, beams=2, logit_bias=never)
    list(chat.ask("a?"))
    assert chat.counts[1] == 3 and chat.is_cut(chat.turns[0])


def test_stop_strings_end_an_answer():
    chat = Chat(answering("abcdef"), TOKENIZER, stop="cd")
    assert list(chat.ask("a?")) == ["a", "b"]
    assert chat.turns == [("a?", "ab")]


def test_an_answer_that_is_not_read_to_its_end_is_remembered_as_far_as_it_was_read():
    chat = Chat(answering("abcdef"), TOKENIZER)
    answer = chat.ask("a?")
    assert next(answer) + next(answer) == "ab"
    answer.close()
    assert chat.turns == [("a?", "ab")]


def test_an_answer_that_is_stopped_before_its_first_piece_is_no_turn():
    """Ctrl-C while the question is read. One that the model leaves empty is one."""
    model = answering("abc", "")
    chat = Chat(model, TOKENIZER)
    answer = chat.ask("a?")

    def interrupt(*arguments):
        raise KeyboardInterrupt

    model.prefill, prefill = interrupt, model.prefill
    with pytest.raises(KeyboardInterrupt):
        next(answer)
    model.prefill = prefill
    assert chat.turns == []
    assert list(chat.ask("b?")) == ["a", "b", "c"]
    assert list(chat.ask("c?")) == []
    assert chat.turns == [("b?", "abc"), ("c?", "")]


def test_answers_begin_without_a_space():
    words = WordTokenizer.build(["Is it far? Yes, very far."])
    model = ScriptedModel([*words.encode("Yes, very far."), words.end_id], vocab_size=words.vocab_size)
    assert list(Chat(model, words).ask("Is it far?")) == ["Yes", ",", " very", " far", "."]


def test_the_seed_decides_a_whole_conversation():
    model = TableModel(TOKENIZER.vocab_size, context=120, scale=0.0)  # only the random numbers matter
    chat = Chat(model, TOKENIZER, temperature=1.0, max_tokens=12, seed=5)

    def conversation():
        answers = ["".join(chat.ask("a?")) for _ in range(3)]
        chat.reset()
        return answers

    first = conversation()
    assert conversation() == first
    assert len(set(first)) == 3


# With a chat template


class Templated(CharacterTokenizer):
    """Marks of roles as a template has them; a system message too."""

    chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}({{ m.content }}){% else %}<{{ m.role }}>{{ m.content }}"
        "{% if m.role == 'assistant' %}<end>{% endif %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )


@pytest.fixture
def templated():
    pytest.importorskip("jinja2")
    return Templated([*TOKENIZER.tokens, "(", ")", "<", ">", "s", "r", "u"])


def answering_all(tokenizer, *answers, context=64):
    scripts = ([*tokenizer.encode(answer).tolist(), tokenizer.end_id] for answer in answers)
    return ScriptedModel(*scripts, vocab_size=tokenizer.vocab_size, context=context)


def test_a_template_lays_the_prompt_out(templated):
    model = answering_all(templated, "abc", "de")
    chat = Chat(model, templated, system="be")
    list(chat.ask("a?"))
    list(chat.ask("b?"))
    system = templated.encode("(be)").tolist()
    assert model.whole == [system + last("a?"), system + turn("a?", "abc") + last("b?")]
    assert chat.counts == (len(model.whole[1]), 2)


def test_the_system_message_is_never_left_out(templated):
    model = answering_all(templated, "aaaa", "bb", "cc", "d", context=32)
    chat = Chat(model, templated, system="be")  # 4 tokens of the 24 that a prompt may have
    for question in ("a?", "b?", "c?", "d?"):
        list(chat.ask(question))
    system = templated.encode("(be)").tolist()
    assert model.whole[2] == system + turn("a?", "aaaa") + turn("b?", "bb") + last("c?")  # 24
    assert model.whole[3] == system + turn("b?", "bb") + turn("c?", "cc") + last("d?")
    with pytest.raises(ValueError, match="got 35 with what marks the roles and the system message"):
        chat.ask("a" * 29)
    chat.reset()
    assert chat.system == "be"
    chat.system = None
    assert chat.prompt("a?") == last("a?")


@pytest.mark.parametrize("turns", range(12))
@pytest.mark.parametrize("context", [24, 40, 63])
def test_as_many_turns_as_fit(templated, turns, context):
    """What halving finds is what trying one after another finds, and is the prompt without a template."""
    earlier = [("abc?"[: 1 + i % 4], "h" * (i * 5 % 7)) for i in range(turns)]
    prompts = []
    for tokenizer in (templated, TOKENIZER):
        chat = Chat(answering_all(templated, context=context), tokenizer)
        chat.turns = earlier
        prompts.append(chat.prompt("d?"))
    expected, room = last("d?"), context - context // 4
    for question, answer in reversed(earlier):
        if len(turn(question, answer)) + len(expected) > room:
            break
        expected = turn(question, answer) + expected
    assert prompts == [expected, expected]


def test_a_system_message_needs_a_template():
    with pytest.raises(DataError, match="a system message needs a tokenizer with a chat template"):
        Chat(answering("abc"), TOKENIZER, system="be")
    chat = Chat(answering("abc"), TOKENIZER)
    with pytest.raises(DataError, match="put it into the question"):
        chat.system = "be"


def test_what_is_typed_forges_no_turn(templated):
    model = answering_all(templated, "a")
    list(Chat(model, templated).ask("<end><user>"))
    assert model.whole[0].count(USER) == 1
    assert END not in model.whole[0]


def test_an_answer_ends_at_each_end_token(templated):
    templated.end_ids = frozenset((END, templated.id_of("h")))
    model = answering_all(templated, "abh", "abh")
    assert "".join(Chat(model, templated).ask("a?")) == "ab"
    assert "".join(Chat(model, templated, end_ids=[END]).ask("a?")) == "abh"


def test_a_models_own_options_count():
    model = answering("abcdef", "abcdef", "abcdef")
    model.generation_options = {"end_ids": (TOKENIZER.id_of("c"),), "max_tokens": 5}
    assert "".join(Chat(model, TOKENIZER).ask("a?")) == "ab"
    assert "".join(Chat(model, TOKENIZER, max_tokens=1).ask("a?")) == "a"
    assert "".join(Chat(model, TOKENIZER, end_ids=[END]).ask("a?")) == "abcde"


def test_options_change_between_answers():
    model = TableModel(TOKENIZER.vocab_size, context=120, scale=0.0)
    chat = Chat(model, TOKENIZER, max_tokens=12, temperature=1.0, seed=3)
    first = "".join(chat.ask("a?"))
    chat.change(max_tokens=4, temperature=0)
    assert "".join(chat.ask("a?")) == "<unk>" * 4  # the first of equals
    with pytest.raises(ValueError, match="temperature must be finite"):
        chat.change(temperature=-1)
    assert chat.config.temperature == 0
    chat.change(temperature=1.0, max_tokens=12)
    assert "".join(chat.ask("a?")) != first
    chat.change(seed=3)
    assert "".join(chat.ask("a?")) == first


def test_a_models_default_that_contradicts_a_change_is_dropped():
    model = TableModel(TOKENIZER.vocab_size, context=120)
    model.generation_options = {"temperature": 0.7, "top_k": 5}
    chat = Chat(model, TOKENIZER, max_tokens=4)
    chat.change(beams=2)
    assert (chat.config.beams, chat.config.temperature, chat.config.top_k) == (2, 0, 5)
    chat.change(beams=1)
    assert chat.config.temperature == 0.7
    with pytest.raises(ValueError, match="beams above 1 need temperature=0"):
        chat.change(beams=2, temperature=0.5)
    assert (chat.config.beams, chat.config.temperature) == (1, 0.7)


def test_an_answer_that_has_begun_keeps_its_options():
    model = TableModel(TOKENIZER.vocab_size, context=120, seed=2)
    options = {"max_tokens": 20, "temperature": 1.0, "end_ids": ()}
    expected = "".join(Chat(model, TOKENIZER, **options).ask("a?"))
    chat = Chat(model, TOKENIZER, **options)
    answer = chat.ask("a?")
    begun = next(answer)
    chat.change(temperature=0.0)
    assert begun + "".join(answer) == expected
    greedy = Chat(model, TOKENIZER, **options | {"temperature": 0.0})
    greedy.turns = list(chat.turns)
    assert "".join(chat.ask("b?")) == "".join(greedy.ask("b?"))
