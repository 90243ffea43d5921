"""Files of records and of texts: what is read, and what is refused."""

import json

import numpy as np
import pytest
from small_dialogues import ANSWER, DIALOGUE, SYSTEM, USER, example

from fastllm.datasets import Examples, TokenStream, write_token_file
from fastllm.errors import DataError
from fastllm.records import holds_records, read_records, read_text
from fastllm.tokenizers import ByteTokenizer


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
        ("{", "must be a JSON object; got '{', wrong from column 2 on (Expecting property name"),
        ('{"text": "cut', "Unterminated string"),
        ("[" * 10**5, ""),
        ("[]", "got []; give it one of these shapes"),
        ({"instruction": "x"}, "got an object with instruction; give"),
        ({"output": "x", "input": "y"}, "got an object with output, input; give"),
        ({"instruction": 3, "output": "x"}, "instruction must be a text; got 3"),
        ({"instruction": "x", "output": None}, "output must be a text; got None"),
        ({"instruction": "x", "input": ["y"], "output": "z"}, "input must be a text; got ['y']"),
        ({"instruction": "", "input": "", "output": "z"}, "must say something; got neither"),
        ("3", "got 3; give"),
        ('{"text": 3}', 'a record\'s "text" must be a string; got 3'),
        ('{"messages": []}', "got an object with messages; give"),
        ('{"messages": {"role": "user"}}', "got an object with messages; give"),
        ({"messages": [USER]}, "must end with the assistant's answer; got a question last"),
        ({"messages": [ANSWER]}, 'message 1 must be {"role": "user"'),
        ({"messages": [USER, USER]}, 'message 2 must be {"role": "assistant"'),
        ({"messages": [USER, "hello"]}, "message 2 must be"),
        ({"messages": [USER, {"role": "assistant"}]}, "message 2 must be"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "message 2 must be"),
        ({"messages": [USER, ANSWER, {"role": "system", "content": "x" * 9999}]}, "message 3 must be"),
        ({"messages": [SYSTEM]}, "must end with the assistant's answer; got a system message alone"),
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


def test_a_system_text_and_a_history_are_in_the_dialogue(tmp_path):
    system, turn = {"role": "system", "content": "Be brief"}, [USER, ANSWER]
    question = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    cases = [
        ({"system": "Be brief", "instruction": "q", "output": "a"}, [system, *question]),
        ({"system": "", "instruction": "q", "output": "a", "history": []}, question),
        ({"instruction": "q", "output": "a", "history": [[USER["content"], ANSWER["content"]]]}, [*turn, *question]),
        ({"system": "Be brief", "messages": turn}, [system, *turn]),
        ({"system": "Be brief", "messages": [system, *turn]}, [system, *turn]),
        ({"system": "Be brief", "messages": [{**system, "content": ""}, *turn]}, [system, *turn]),
        ({"system": None, "instruction": "q", "output": "a", "history": None, "tools": "[]"}, question),
        ({"system": "", "instruction": "q", "output": "a", "history": "[]"}, question),
    ]
    for given, expected in cases:
        (record,) = read_records(write(tmp_path / "data.ndjson", given))
        assert record["messages"] == expected
    for given, message in (
        ({"system": "Another", "messages": [system, *turn]}, "has one system text"),
        ({"system": 3, "messages": turn}, "system must be a text; got 3"),
        ({"system": False, "messages": turn}, "system must be a text; got False"),
        ({"history": [["q", "a"]], "messages": turn}, "history goes with an instruction"),
        ({"instruction": "q", "output": "a", "history": ["x"]}, "history must be an array of"),
        ({"instruction": "q", "output": "a", "history": [["x", 1]]}, "history must hold texts; got 1"),
        ({"instruction": "q", "output": "a", "reasoning_content": "b"}, "got reasoning_content too"),
        ({"instruction": "q", "output": "a", "tools": [1]}, "got tools too"),
    ):
        with pytest.raises(DataError, match=message):
            read_records(write(tmp_path / "data.jsonl", given))


def test_an_array_that_is_called_lines(tmp_path):
    (tmp_path / "data.jsonl").write_text('[\n  {"text": "x"},\n  {"text": "y"}\n]', encoding="utf-8")
    with pytest.raises(DataError, match=r"line 1: must be an object; got an array; call the file \.json"):
        read_records(tmp_path / "data.jsonl")


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
        ('{"text": "x"}\n{"text": "y"}', "or call it .jsonl if it has one object per line"),
        ("[" * 10**5, "must be JSON; got an error"),
        ("{}", "must hold an array of records; got dict"),
        ("3", "must hold an array of records; got int"),
        ("[]", "must hold an array of at least one JSON object; got none"),
        ('[{"text": "x"}, {"text": 3}]', 'data.json, record 2: a record\'s "text" must be'),
        ('[{"text": "x"}, [], 3]', "data.json, record 2: a record must be"),
        ('[{"instruction": "x", "output": 3}]', "data.json, record 1: output must be a text"),
    ],
)
def test_wrong_arrays(tmp_path, content, message):
    (tmp_path / "data.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as raised:
        read_records(tmp_path / "data.json")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_texts_that_are_no_unicode_name_their_line(tmp_path):
    path = tmp_path / "lines.jsonl"
    good = '{"text": "fine"}\n'
    for bad in (
        r'{"text": "half \ud83d"}',
        r'{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "half \ud83d"}]}',
        r'{"instruction": "x", "output": "half \ud83d"}',
    ):
        path.write_text(good * 3 + bad + "\n" + good)
        with pytest.raises(DataError, match=r"lines.jsonl, line 4: .*lone surrogate U\+D83D at position 5"):
            read_records(path)


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
    (tmp_path / ".git").mkdir()
    write(tmp_path / ".git" / "a.txt", "hidden")
    for name, text in (("e.txt", "fifth"), ("b.txt", "second"), ("d.txt", "fourth"), ("a.MD", "first")):
        write(tmp_path / name, text)
    write(tmp_path / "c.text", "third")
    write(tmp_path / "sub" / "a.text", "sixth")
    (tmp_path / "picture.png").write_bytes(b"\xff\xfe")
    assert read_text(tmp_path) == "first\n\nsecond\n\nthird\n\nfourth\n\nfifth\n\nsixth"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"a folder must hold \.txt"):
        read_text(tmp_path / "empty")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Examples([]), DataError, "at least one text or dialogue of two tokens; got none"),
        (lambda: Examples([example(1)], 0), ValueError, "rows_per_update must be 1 or more; got 0"),
        (lambda: TokenStream(np.arange(1), 4), DataError, "at least two tokens; got 1"),
        (lambda: TokenStream(np.arange(0), 4), DataError, "at least two tokens; got 0"),
        (lambda: TokenStream(np.arange(9), 0), ValueError, "must be 1 or more; got 0 and 16"),
        (lambda: TokenStream(np.arange(9), 4, 0), ValueError, "must be 1 or more; got 4 and 0"),
    ],
)
def test_too_little(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("text", ["", "a"])
def test_a_text_of_one_token_writes_no_file(tmp_path, text):
    with pytest.raises(DataError, match=f"at least two tokens; got {len(text)}"):
        write_token_file(tmp_path / "text.npy", text, ByteTokenizer.build(["a"]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
        {"instruction": "x", "input": "", "output": "y"},
    ],
    ids=["messages", "instruction"],
)
def test_a_dialogue_that_is_laid_out_beside_itself(tmp_path, record):
    """Many data sets add a "text" of the dialogue, laid out for another model: the messages are used instead."""
    path = write(tmp_path / "lines.jsonl", {**record, "text": "### Human: x ### Assistant: y"}, record)
    first, second = read_records(path)
    assert first == second
    assert "text" not in first
    assert read_records(write(path, {"text": "fine", "messages": None, "instruction": "x"}))[0]["text"] == "fine"


def test_an_answer_that_is_not_to_be_learnt(tmp_path):
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0}]
    with pytest.raises(DataError, match="line 1: an answer must count once; got weight 0"):
        read_records(write(tmp_path / "lines.jsonl", {"messages": messages}))
    messages[1]["weight"] = 1
    assert read_records(write(tmp_path / "lines.jsonl", {"messages": messages, "weight": 0.5}))


@pytest.mark.parametrize("key", ["tool_calls", "reasoning_content"])
def test_what_a_message_says_beside_its_content_is_not_lost_without_a_word(tmp_path, key):
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", key: [{"name": "get"}]}]
    path = write(tmp_path / "lines.jsonl", {"text": "fine"}, {"messages": messages})
    with pytest.raises(DataError, match=f"line 2: a message must be a role and a content; got {key} too"):
        read_records(path)
    messages[1][key] = None
    assert read_records(write(path, {"messages": messages}))
    with pytest.raises(DataError, match="got tools too"):
        read_records(write(path, {"messages": messages, "tools": [{"name": "get"}]}))
