"""From files to batches: what is read, what is refused, what becomes a target."""

import json
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastllm
from fastllm.datasets import (
    Example,
    Examples,
    TokenStream,
    holds_records,
    join,
    make_examples,
    pack,
    read_records,
    read_text,
    record_texts,
    write_token_file,
)
from fastllm.dialogue import prompt_tokens
from fastllm.errors import DataError
from fastllm.tokenizers import ByteTokenizer, CharacterTokenizer

DIALOGUE = [
    {"role": "user", "content": "ab"},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": "d"},
    {"role": "assistant", "content": "ef"},
]
USER, ANSWER = DIALOGUE[:2]
SYSTEM = {"role": "system", "content": "g"}


@pytest.fixture(scope="module")
def letters():
    """Ids: end 1, user 2, assistant 3, a 4, b 5, ..."""
    return CharacterTokenizer.build(["abcdefghij"])


def example(*tokens):
    return Example(np.array(tokens, np.int32), np.array(tokens, np.int32) + 1)


def shown(example):
    return example.tokens.tolist(), example.targets.tolist()


# Examples


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
    """What goes, what stays and what is a target."""
    expected = make_examples([{"messages": messages}], letters, context)
    found = make_examples([{"messages": messages}], templated(OURS), context)
    assert [shown(example) for example in found] == [shown(example) for example in expected]


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


def test_exact_answers_by_template(templated, monkeypatch):
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


# Packing


def test_packing():
    batch = pack([example(1, 2, 3), example(7), example(4, 5)])
    assert batch.tokens.tolist() == [1, 2, 3, 7, 4, 5]
    assert batch.targets.tolist() == [2, 3, 4, 8, 5, 6]
    assert batch.starts.tolist() == [0, 3, 4, 6]
    assert batch.tokens.dtype == batch.targets.dtype == batch.starts.dtype == np.int32


@given(
    st.lists(st.lists(st.sampled_from([-1, 0, 5]), min_size=1, max_size=4), min_size=1, max_size=9),
    st.integers(1, 12),
)
def test_parts_of_a_batch_sum_up_to_it(targets, parts):
    batch = pack([Example(np.arange(len(t), dtype=np.int32), np.array(t, np.int32)) for t in targets])
    pieces = list(batch.split(parts))
    assert len(pieces) <= parts
    assert sum(piece.target_count for piece in pieces) == batch.target_count
    kept = [piece.targets.tolist() for piece in pieces]
    assert [t for piece in kept for t in piece if t >= 0] == [t for t in batch.targets.tolist() if t >= 0]
    for piece in pieces:
        assert piece.starts[0] == 0
        assert piece.starts[-1] == len(piece.tokens) == len(piece.targets)
        assert (piece.tokens[piece.starts[:-1]] == 0).all()  # whole sequences, which begin with 0 here


def test_joined_examples_follow_one_another(letters):
    """As turns of one dialogue do: each <end> is read, and what follows it is not guessed."""
    records = [{"messages": DIALOGUE[:2]}, {"messages": DIALOGUE[2:]}, {"text": "gh"}]
    examples = make_examples(records, letters, 80)
    (one,) = join(examples, 80)
    (dialogue,) = make_examples([{"messages": DIALOGUE}], letters, 80)
    assert one.tokens.tolist() == [*dialogue.tokens.tolist(), letters.end_id, 10, 11]
    assert one.targets.tolist() == [*dialogue.targets.tolist(), -1, 11, letters.end_id]


@pytest.mark.parametrize(("length", "sizes"), [(0, [3, 3, 2]), (6, [3, 6]), (7, [7, 2]), (9, [7, 2]), (10, [10])])
def test_joined_examples_keep_to_a_length_and_lose_nothing(length, sizes):
    examples = [example(1, 2, 3), example(4, 5, 6), example(7, 8)]
    joined = join(examples, length)
    assert [len(e.tokens) for e in joined] == sizes
    targets = np.concatenate([e.targets for e in joined])
    assert targets[targets >= 0].tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    dataset = Examples(examples, 3, seed=1, join=length)
    assert dataset.batch(0).target_count == 8


# Order


def tokens_of(dataset, steps):
    return [dataset.batch(step).tokens.tolist() for step in steps]


@pytest.mark.parametrize("rows", [1, 3, 7, 8, 100])
def test_an_epoch_sees_every_example_once(rows):
    dataset = Examples([example(i) for i in range(7)], rows, seed=5)
    assert dataset.steps_per_epoch == -(-7 // rows)
    for epoch in range(3):
        steps = range(epoch * dataset.steps_per_epoch, (epoch + 1) * dataset.steps_per_epoch)
        assert sorted(chain.from_iterable(tokens_of(dataset, steps))) == list(range(7))


def test_order_follows_from_seed_and_step():
    examples = [example(i) for i in range(20)]
    forward = tokens_of(Examples(examples, 3, seed=1), range(21))
    assert tokens_of(Examples(examples, 3, seed=1), range(20, -1, -1)) == forward[::-1]
    assert forward[:7] != forward[7:14] != forward[14:]
    assert tokens_of(Examples(examples, 3, seed=2), range(21)) != forward


def test_in_order_gives_everything_once():
    examples = [example(i) for i in range(150)]
    tokens = [batch.tokens for batch in Examples(examples, 3, seed=1).in_order()]
    np.testing.assert_array_equal(np.concatenate(tokens), np.arange(150))


# A stream of tokens


@pytest.mark.parametrize(("size", "length"), [(2, 1), (2, 5), (3, 1), (10, 4), (10, 9), (100, 7)])
def test_windows_of_a_stream(size, length):
    """Each target is the token after; every token that has a follower is reached."""
    dataset = TokenStream(np.arange(size, dtype=np.uint16), length, rows_per_update=4, seed=3)
    assert dataset.length == min(length, size - 1)
    seen = set()
    for step in range(200):
        batch = dataset.batch(step)
        np.testing.assert_array_equal(batch.targets, batch.tokens + 1)
        np.testing.assert_array_equal(np.diff(batch.starts), [dataset.length] * 4)
        assert batch.tokens.dtype == batch.targets.dtype == batch.starts.dtype == np.int32
        seen |= set(batch.tokens.tolist())
    assert seen == set(range(size - 1))


def test_a_stream_follows_from_seed_and_step():
    tokens = np.arange(1000, dtype=np.uint16)
    forward = tokens_of(TokenStream(tokens, 8, 2, seed=1), range(10))
    assert tokens_of(TokenStream(tokens, 8, 2, seed=1), range(9, -1, -1)) == forward[::-1]
    assert tokens_of(TokenStream(tokens, 8, 2, seed=2), range(10)) != forward


@pytest.mark.parametrize(("size", "length"), [(2, 1), (9, 4), (10, 4), (1000, 3)])
def test_validation_windows_stand_side_by_side(size, length):
    tokens = np.concatenate([b.tokens for b in TokenStream(np.arange(size), length).in_order()])
    np.testing.assert_array_equal(tokens, np.arange(len(tokens)))
    assert len(tokens) == size - 1


def test_a_token_file_holds_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr("fastllm.datasets.PIECE", 5)  # so that there are several
    text = "one\ntwo three\n\nfour and a long line without an end\nüñ水"
    tokenizer = ByteTokenizer.build([text])
    tokens = write_token_file(tmp_path / "text.npy", text, tokenizer)
    assert isinstance(tokens, np.memmap)
    assert tokens.dtype == np.uint16
    assert tokenizer.decode(tokens) == text


# Files


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_records(tmp_path):
    records = [{"text": "x"}, {"messages": DIALOGUE}, {"text": "\u2028 is not a line's end", "source": "kept"}]
    path = write(tmp_path / "data.jsonl", records[0], "", records[1], "   ", json.dumps(records[2], ensure_ascii=False))
    assert read_records(path) == records
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))  # as Windows' editors write it
    assert read_records(path) == records


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Expecting property name"),
        ('{"text": "cut', "Unterminated string"),
        ("[" * 10**5, ""),
        ("[]", "got neither"),
        ({"instruction": "x"}, "got neither"),
        ({"output": "x", "input": "y"}, "got neither"),
        ({"instruction": 3, "output": "x"}, "instruction must be a text; got 3"),
        ({"instruction": "x", "output": None}, "output must be a text; got None"),
        ({"instruction": "x", "input": ["y"], "output": "z"}, "input must be a text; got ['y']"),
        ({"instruction": "", "input": "", "output": "z"}, "must say something; got neither"),
        ("3", "got neither"),
        ('{"text": 3}', "got neither"),
        ('{"messages": []}', "got neither"),
        ('{"messages": {"role": "user"}}', "got neither"),
        ({"messages": [USER]}, "must end with the assistant's answer"),
        ({"messages": [ANSWER]}, 'message 1 must be {"role": "user"'),
        ({"messages": [USER, USER]}, 'message 2 must be {"role": "assistant"'),
        ({"messages": [USER, "hello"]}, "message 2 must be"),
        ({"messages": [USER, {"role": "assistant"}]}, "message 2 must be"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "message 2 must be"),
        ({"messages": [USER, ANSWER, {"role": "system", "content": "x" * 9999}]}, "message 3 must be"),
        ({"messages": [SYSTEM]}, "must end with the assistant's answer"),
        ({"messages": [SYSTEM, ANSWER]}, 'message 2 must be {"role": "user"'),
        ({"messages": [{"role": "system"}, USER, ANSWER]}, 'message 1 must be {"role": "system"'),
    ],
)
def test_wrong_records_name_their_line(tmp_path, line, message):
    path = write(tmp_path / "data.jsonl", {"text": "x"}, "", line)
    with pytest.raises(DataError) as raised:
        read_records(path)
    assert str(raised.value).startswith(f"{path}, line 3: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400 + len(str(path))


def test_instructions_are_dialogues(tmp_path):
    records = [
        {"instruction": "Translate.", "input": "mountain", "output": "montagne"},
        {"instruction": "Say hello.", "input": "", "output": "Hello."},
        {"instruction": "Say nothing.", "output": "", "category": "odd"},
        {"instruction": "", "input": "Only this.", "output": "Yes."},
        {"instruction": "Say it.", "input": None, "output": "It."},
        {"text": "a text"},
        {"messages": [SYSTEM, USER, ANSWER]},
        {"messages": DIALOGUE, "instruction": "x", "output": "y"},
    ]
    turns = [("Translate.\n\nmountain", "montagne"), ("Say hello.", "Hello."), ("Say nothing.", ""),
             ("Only this.", "Yes."), ("Say it.", "It.")]  # fmt: skip
    expected = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in turns
    ] + records[5:]
    assert read_records(write(tmp_path / "data.jsonl", *records)) == expected
    for name in ("data.json", "DATA.JSON"):
        (tmp_path / name).write_text("\ufeff" + json.dumps(records, indent=2), encoding="utf-8")
        assert read_records(tmp_path / name) == expected
        assert holds_records(tmp_path / name)
    assert not holds_records(tmp_path / "data.txt")


def test_published_instructions(shared_data):
    records = read_records(shared_data / "instruction-data.json")
    given = json.loads((shared_data / "instruction-data.json").read_text())
    assert len(records) == len(given) == 1100
    for record, source in zip(records, given, strict=True):
        question, answer = (message["content"] for message in record["messages"])
        assert answer == source["output"]
        assert question.startswith(source["instruction"]) and question.endswith(source["input"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "must be JSON; got an error: Expecting value"),
        ('{"text": "x"}\n{"text": "y"}', "or call it .jsonl if it has an object a line"),
        ("[" * 10**5, "must be JSON; got an error"),
        ("{}", "must hold an array of records; got dict"),
        ("3", "must hold an array of records; got int"),
        ("[]", "must hold at least one"),
        ('[{"text": "x"}, {"text": 3}]', "data.json, record 2: a line must be"),
        ('[{"text": "x"}, [], 3]', "data.json, record 2: a line must be"),
        ('[{"instruction": "x", "output": 3}]', "data.json, record 1: output must be a text"),
    ],
)
def test_wrong_arrays(tmp_path, content, message):
    (tmp_path / "data.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as raised:
        read_records(tmp_path / "data.json")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_records(tmp_path):
    with pytest.raises(DataError, match="at least one JSON object a line; got none"):
        read_records(write(tmp_path / "data.jsonl", "", " "))


def test_texts(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert read_text(path) == "one\ntwo"
    path.write_bytes(b"ok \xff")
    with pytest.raises(DataError, match=r"must be UTF-8 text; got byte 0xff at position 3; convert it"):
        read_text(path)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "missing.txt")


def test_a_folder_of_texts(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "b.txt", "second")
    write(tmp_path / "a.MD", "first")
    write(tmp_path / "sub" / "c.text", "third")
    (tmp_path / "picture.png").write_bytes(b"\xff\xfe")
    assert read_text(tmp_path) == "first\n\nsecond\n\nthird"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"a folder must hold \.txt"):
        read_text(tmp_path / "empty")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Examples([]), DataError, "at least one text or dialogue of two tokens; got none"),
        (lambda: Examples([example(1)], 0), ValueError, "rows_per_update must be 1 or more; got 0"),
        (lambda: TokenStream(np.arange(1), 4), DataError, "at least two tokens to train on; got 1"),
        (lambda: TokenStream(np.arange(0), 4), DataError, "at least two tokens to train on; got 0"),
        (lambda: TokenStream(np.arange(9), 0), ValueError, "must be 1 or more; got 0 and 16"),
        (lambda: TokenStream(np.arange(9), 4, 0), ValueError, "must be 1 or more; got 4 and 0"),
    ],
)
def test_too_little(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("text", ["", "a"])
def test_a_text_of_one_token_writes_no_file(tmp_path, text):
    with pytest.raises(DataError, match=f"at least two tokens to train on; got {len(text)}"):
        write_token_file(tmp_path / "text.npy", text, ByteTokenizer.build(["a"]))
    assert not list(tmp_path.iterdir())
