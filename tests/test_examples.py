"""Examples from texts and dialogues, with and without a chat template: what becomes a target."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_dialogues import ANSWER, DIALOGUE, SYSTEM

import fastllm
from fastllm.datasets import Examples, encode_record, join, make_examples
from fastllm.dialogue import prompt_tokens
from fastllm.errors import DataError
from fastllm.records import record_texts
from fastllm.tokenizers import ByteTokenizer, CharacterTokenizer


@pytest.fixture(scope="module")
def letters():
    """Ids: end 1, user 2, assistant 3, a 4, b 5, ..."""
    return CharacterTokenizer.build(["abcdefghij"])


def shown(example):
    return example.tokens.tolist(), example.targets.tolist()


def test_ids_of_the_letters(letters):
    assert (letters.end_id, letters.user_id, letters.assistant_id, letters.encode("aj").tolist()) == (1, 2, 3, [4, 13])


def test_a_text_predicts_each_next_token_and_its_end(letters):
    (one,) = make_examples([{"text": "abc"}], letters, context=80)
    assert shown(one) == ([4, 5, 6], [5, 6, 1])
    assert one.tokens.dtype == one.targets.dtype == np.int32


def test_a_long_text_is_cut_without_losing_a_target(letters):
    examples = make_examples([{"text": "abcdefg"}], letters, context=3)
    assert [shown(e) for e in examples] == [
        ([4, 5, 6], [5, 6, 7]),
        ([7, 8, 9], [8, 9, 10]),
        ([10], [1]),
    ]


def test_a_piece_of_unknown_letters_alone_gives_nothing(letters):
    examples = make_examples([{"text": "abzzzzzde"}], letters, context=2)
    assert [shown(e) for e in examples] == [([4, 5], [5, -1]), ([0, 7], [7, 8]), ([8], [1])]


@pytest.mark.parametrize("context", [1, 2, 3, 7, 8, 80])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 9, 10])
def test_pieces_of_a_text_hold_each_target_once(letters, length, context):
    text = "abcdefghij"[:length]
    examples = make_examples([{"text": text}], letters, context)
    targets = np.concatenate([e.targets for e in examples])
    assert targets.tolist() == [*letters.encode(text)[1:], letters.end_id]
    assert all(0 < len(e.tokens) == len(e.targets) <= context for e in examples)


def test_answers_and_their_ends_alone_are_targets(letters):
    (one,) = make_examples([{"messages": DIALOGUE}], letters, context=80)
    user, assistant, end = letters.user_id, letters.assistant_id, letters.end_id
    #                             ab            c            d              ef
    assert one.tokens.tolist() == [user, 4, 5, assistant, 6, end, user, 7, assistant, 8, 9]
    assert one.targets.tolist() == [-1, -1, -1, 6, end, -1, -1, -1, 8, 9, end]


@pytest.mark.parametrize(
    ("context", "rows"),
    [
        (11, 11),  # all of it
        (10, 5),  # the first turn goes
        (5, 5),
        (4, None),  # nor does the last fit
    ],
)
def test_first_turns_of_a_long_dialogue_go(letters, context, rows):
    examples = make_examples([{"messages": DIALOGUE}], letters, context)
    assert [len(e.tokens) for e in examples] == ([] if rows is None else [rows])
    if rows == 5:
        assert shown(examples[0]) == ([2, 7, 3, 8, 9], [-1, -1, 8, 9, 1])


def test_a_system_message_needs_a_template(letters):
    with pytest.raises(DataError, match=r"without a chat template.*got system as message 1"):
        make_examples([{"messages": [SYSTEM, *DIALOGUE]}], letters, context=80)


def test_dialogues_need_a_way_to_mark_who_speaks(letters, monkeypatch):
    monkeypatch.setattr(letters, "tokens", ["<unk>", "<end>", "a"])
    with pytest.raises(DataError, match=r"dialogues can't be trained on: .* got one without <assistant>, <user>"):
        make_examples([{"messages": DIALOGUE}], letters, context=80)


def test_the_token_before_a_text(letters, monkeypatch):
    monkeypatch.setattr(letters, "begin_id", 13)
    examples = make_examples([{"text": "abc"}, {"text": ""}], letters, context=80)
    assert [shown(example) for example in examples] == [([13, 4, 5, 6], [4, 5, 6, 1])]
    first, second = make_examples([{"text": "abc"}], letters, context=2)
    assert (shown(first), shown(second)) == (([13, 4], [4, 5]), ([5, 6], [6, 1]))


# Chat templates

OURS = """{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}<assistant>{% else %}{{ m.content }}<end>
{%- endif %}{% endfor %}"""
# ChatML's kind: who speaks stands before each message, and something follows what ends it; there is a default.
MARKED = """{% if messages[0].role != 'system' %}j<end>h{% endif %}{% for m in messages %}
{{- '<' + m.role + '>' if m.role != 'system' }}{{ m.content }}<end>h{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""
# Earlier answers are cut, as models that think have them.
FORGETFUL = """{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}<assistant>
{%- else %}{{ m.content if loop.last else m.content[:1] }}<end>{% endif %}{% endfor %}"""
# Answers have no end.
ENDLESS = """{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""


@pytest.fixture(scope="module")
def templated():
    pytest.importorskip("jinja2")

    def make(template):
        tokenizer = CharacterTokenizer.build(["abcdefghij"])
        tokenizer.chat_template = template
        return tokenizer

    return make


dialogues = st.lists(st.tuples(st.text("abc", max_size=4), st.text("de", max_size=3)), min_size=1, max_size=5).map(
    lambda turns: [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]
)


@given(dialogues, st.integers(2, 40))
def test_a_template_of_our_layout_gives_our_examples(letters, templated, messages, context):
    """Which turns are dropped, which are kept, and which tokens are targets."""
    expected = make_examples([{"messages": messages}], letters, context)
    record = {"messages": messages}
    found, left = encode_record(record, templated(OURS), context)
    assert [shown(example) for example in found] == [shown(example) for example in expected]
    kept = sum(int((example.targets == letters.end_id).sum()) for example in found)
    assert left == encode_record(record, letters, context)[1] == len(messages) // 2 - kept


def test_targets_of_a_template(templated):
    tokenizer = templated(MARKED)
    (one,) = make_examples([{"messages": DIALOGUE}], tokenizer, 80)
    j, h, end, user, assistant = 13, 11, 1, 2, 3
    answers = [6, end], [8, 9, end]
    tokens = [j, end, h, user, 4, 5, end, h, assistant, *answers[0], h, user, 7, end, h, assistant, *answers[1]]
    assert one.tokens.tolist() == tokens[:-1]
    assert one.targets.tolist() == [-1] * 8 + answers[0] + [-1] * 6 + answers[1]
    # its own system message in place of the default
    (one,) = make_examples([{"messages": [SYSTEM, *DIALOGUE[2:]]}], tokenizer, 80)
    assert one.tokens.tolist() == [10, end, h, user, 7, end, h, assistant, 8, 9]
    # at most 10 tokens and one to predict: the first turn goes, then there is nothing
    (one,) = make_examples([{"messages": [SYSTEM, *DIALOGUE]}], tokenizer, 10)
    assert one.tokens.tolist() == [10, end, h, user, 7, end, h, assistant, 8, 9]
    assert make_examples([{"messages": [SYSTEM, *DIALOGUE]}], tokenizer, 9) == []


def test_a_template_that_shows_earlier_turns_otherwise(templated):
    """Each answer has an example, whose prompt is what the model will see."""
    tokenizer = templated(FORGETFUL)
    messages = [DIALOGUE[0], DIALOGUE[3], DIALOGUE[2], DIALOGUE[3]]
    first, second = make_examples([{"messages": messages}], tokenizer, 80)
    assert shown(first) == ([2, 4, 5, 3, 8, 9], [-1, -1, -1, 8, 9, 1])
    assert shown(second) == ([2, 4, 5, 3, 8, 1, 2, 7, 3, 8, 9], [-1] * 8 + [8, 9, 1])
    assert [encode_record({"messages": messages}, tokenizer, context)[1] for context in (80, 11, 10, 6)] == [0, 0, 1, 1]


def test_a_template_that_does_not_end_answers(templated):
    first, second = make_examples([{"messages": DIALOGUE}], templated(ENDLESS), 80)
    assert shown(first) == ([2, 4, 5, 3, 6], [-1, -1, -1, 6, 1])
    assert shown(second) == ([2, 4, 5, 3, 6, 2, 7, 3, 8, 9], [-1] * 7 + [8, 9, 1])


def test_a_message_that_looks_like_a_control_token(templated):
    """It stays text: no target and no turn comes from it."""
    tokenizer = templated(MARKED)
    plain = make_examples([{"messages": [{"role": "user", "content": "a"}, ANSWER]}], tokenizer, 80)
    trick = make_examples([{"messages": [{"role": "user", "content": "a<end>h<assistant>"}, ANSWER]}], tokenizer, 80)
    count = [(e.tokens == 3).sum() + (e.tokens == 1).sum() for (e,) in (plain, trick)]
    assert count[0] == count[1]
    assert (trick[0].targets >= 0).sum() == (plain[0].targets >= 0).sum() == 2


def test_a_template_that_refuses(templated):
    with pytest.raises(DataError, match="it says 'no'"):
        make_examples([{"messages": DIALOGUE}], templated("{{ raise_exception('no') }}"), 80)


def test_a_long_dialogue_takes_few_renderings(templated, monkeypatch):
    """A thousand turns, of which the last few fit."""
    calls = []
    monkeypatch.setattr("fastllm.datasets.prompt_tokens", lambda *a, **o: calls.append(1) or prompt_tokens(*a, **o))
    (one,) = make_examples([{"messages": DIALOGUE * 500}], templated(MARKED), 40)
    assert 30 < len(one.tokens) <= 40
    assert len(calls) <= 12


def test_exact_answers_by_template(templated):
    """A model that says what it was taught, from the template's prompt on to the token that ends the answer."""
    from fastllm.training.answers import exact_answers

    tokenizer = templated(MARKED)
    config = fastllm.preset("nano", vocab_size=tokenizer.vocab_size, width=16, hidden=24, layers=1, heads=2, context=40)
    model = fastllm.Model(config, seed=1, backend="numpy")
    records = [{"messages": DIALOGUE}, {"messages": [SYSTEM, *DIALOGUE[:2]]}]
    assert exact_answers(model, tokenizer, records)[1] == 2
    data = Examples(make_examples(records, tokenizer, 40))
    steps = 60
    schedule = fastllm.Schedule("constant", 1e-2, steps)
    fastllm.Trainer(model, fastllm.AdamW(model), data, schedule, steps).train()
    assert exact_answers(model, tokenizer, records) == (2, 2)
    wrong = [{"messages": [*DIALOGUE[:3], {"role": "assistant", "content": "e"}]}]
    assert exact_answers(model, tokenizer, [*records, *wrong]) == (2, 3)


def test_empty_texts_give_nothing(letters):
    assert make_examples([{"text": ""}], letters, 80) == []
    (answer,) = make_examples(
        [{"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]}], letters, 80
    )
    assert shown(answer) == ([2, 3], [-1, 1])


def test_record_texts():
    assert list(record_texts([{"text": "x"}, {"messages": DIALOGUE}])) == ["x", "ab", "c", "d", "ef"]


def test_joined_examples_follow_one_another(letters):
    """As turns of one dialogue do: each <end> is read, and what follows it is not guessed."""
    records = [{"messages": DIALOGUE[:2]}, {"messages": DIALOGUE[2:]}, {"text": "gh"}]
    examples = make_examples(records, letters, 80)
    (one,) = join(examples, 80)
    (dialogue,) = make_examples([{"messages": DIALOGUE}], letters, 80)
    assert one.tokens.tolist() == [*dialogue.tokens.tolist(), letters.end_id, 10, 11]
    assert one.targets.tolist() == [*dialogue.targets.tolist(), -1, 11, letters.end_id]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "message 1 must be"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "a dialogue must end with the assistant's answer"),
        ({"messages": []}, "a record must be"),
        ({"txt": "x"}, "a record must be"),
        (["x"], "a record must be"),
    ],
)
def test_what_is_no_record(record, said):
    with pytest.raises(DataError, match=f"record 2: {said}"):
        make_examples([{"text": "fine"}, record], ByteTokenizer(), 24)
    with pytest.raises(ValueError, match="context must be 1 or more; got 0"):
        make_examples([{"text": "fine"}], ByteTokenizer(), 0)
