"""llama2.c's tokenizer: the tokens of the definition, the same text back, and no file that breaks it."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal

from fastllm import FormatError
from fastllm.tokenizers import Llama2cTokenizer, load_tokenizer
from fastllm.tokenizers.llama2c import FIRST_BYTE, FIRST_PIECE, FIXED_TOKENS

PIECES = {
    " ": -20.0, "a": -21.0, "b": -22.0, "c": -23.0, "é": -24.0, "<": -25.0, ">": -26.0, "/": -27.0,
    "s": -28.0, "ab": -1.0, "bc": -2.0, "abc": -3.0, " a": -4.0, " ab": -2.0, "aa": -5.0, "aaa": -6.0,
    "cc": -2.0, "éa": 0.0, "<0xA5>a": 0.0, "<s": -1.0, "</": -1.0, "</s": -1.0, "0x61>": 0.0,
}  # fmt: skip
TOKENIZER = Llama2cTokenizer([*FIXED_TOKENS, *PIECES], [0.0] * FIRST_PIECE + list(PIECES.values()))

# Letters that join in many ways, some that are no pieces, and what looks like special tokens.
TEXTS = st.text(st.sampled_from("aaabbcc é<>/s0x61日\n")) | st.text()


def tokenizer_file(entries, longest=None):
    """The bytes of a tokenizer.bin with these (token as bytes, score)."""
    longest = max((len(token) for token, _ in entries), default=0) if longest is None else longest
    return struct.pack("<i", longest) + b"".join(
        struct.pack("<fi", score, len(token)) + token for token, score in entries
    )


ENTRIES = [
    # as llama2.c exports them: <s> and </s> in newlines
    ({"<s>": "\n<s>\n", "</s>": "\n</s>\n"}.get(token, token).encode(), score)
    for token, score in zip(TOKENIZER.tokens, TOKENIZER.scores, strict=True)
]
FILE = tokenizer_file(ENTRIES)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("llama2c") / "tokenizer.bin"


def encode_by_definition(text):
    """Look at all pairs of neighbours, join the best, and again: what the docstring of the module says."""
    ids = []
    for character in " " + text if text else "":
        if character in PIECES:
            ids.append(TOKENIZER.id_of(character))
        else:
            ids += [FIRST_BYTE + byte for byte in character.encode()]
    while True:
        best, at = -math.inf, None
        for i in range(len(ids) - 1):
            if min(ids[i : i + 2]) >= FIRST_PIECE:
                score = PIECES.get(TOKENIZER.tokens[ids[i]] + TOKENIZER.tokens[ids[i + 1]], -math.inf)
                if score > best:
                    best, at = score, i
        if at is None:
            return ids
        ids[at : at + 2] = [TOKENIZER.id_of(TOKENIZER.tokens[ids[at]] + TOKENIZER.tokens[ids[at + 1]])]


@given(text=TEXTS)
def test_encode_is_what_the_definition_says(text):
    assert TOKENIZER.encode(text).tolist() == encode_by_definition(text)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        ("abc", [" ab", "c"]),  # " ab" by way of "ab", which joins first; "abc" comes too late
        ("babc", [" ", "b", "abc"]),
        ("aaaa", [" a", "aaa"]),  # " a" first; then of "aa" and "aa" the left one
        ("é日", [" ", "é", "<0xE6>", "<0x97>", "<0xA5>"]),
        ("日a", [" ", "<0xE6>", "<0x97>", "<0xA5>", "a"]),  # a byte is not the text that names it
        ("<s>", [" ", "<s", ">"]),
        ("</s>", [" ", "</s", ">"]),
    ],
)
def test_encode(text, tokens):
    assert [TOKENIZER.tokens[i] for i in TOKENIZER.encode(text)] == tokens


@given(text=TEXTS)
def test_a_text_with_its_beginning_comes_back(text):
    ids = TOKENIZER.encode(text)
    assert ids.dtype == np.int32
    assert TOKENIZER.decode([TOKENIZER.begin_id, *ids]) == text
    assert TOKENIZER.decode(ids) == (" " + text if text else "")
    assert not TOKENIZER.control_ids.intersection(ids.tolist())


@given(ids=st.lists(st.integers(0, TOKENIZER.vocab_size - 1)), skip_special=st.booleans())
def test_any_ids_stream_as_they_decode(ids, skip_special):
    stream = TOKENIZER.stream(skip_special)
    text = "".join([stream.push(i) for i in ids]) + stream.flush()
    assert text == TOKENIZER.decode(np.array(ids, dtype=np.int32), skip_special)


def test_decode_of_special_and_damaged_tokens():
    a = TOKENIZER.id_of(" a")
    assert TOKENIZER.decode([1, a, a, 2, a]) == "a a a"
    assert TOKENIZER.decode([1, a, 2], skip_special=False) == "<s>a</s>"
    assert TOKENIZER.decode([0]) == "<unk>"
    assert TOKENIZER.decode([FIRST_BYTE + 0xE6, a]) == "\ufffd a"


def test_a_model_without_roles_has_no_user():
    with pytest.raises(ValueError, match="'<user>'"):
        _ = TOKENIZER.user_id
    with pytest.raises(NotImplementedError):
        Llama2cTokenizer.build(["a text"])


def test_save_and_load(tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert isinstance(loaded, Llama2cTokenizer)
    assert (loaded.tokens, loaded.scores) == (TOKENIZER.tokens, TOKENIZER.scores)


def test_read(path):
    path.write_bytes(FILE)
    read = Llama2cTokenizer.read(path)
    assert (read.tokens, read.scores) == (TOKENIZER.tokens, TOKENIZER.scores)
    assert (read.unknown_id, read.begin_id, read.end_id) == (0, 1, 2)


@pytest.mark.parametrize(
    ("data", "received"),
    [
        (b"", "got 0"),
        (FILE[:3], "got 3"),
        (FILE[:4], "got []"),
        (FILE[:-1], "got 5"),  # the last token has 5 bytes, of which 4 are left
        (FILE + b"\0\0", "got 2 bytes"),
        (tokenizer_file(ENTRIES, longest=5), "got 6"),
        (tokenizer_file(ENTRIES[1:]), "'<s>'"),
        (tokenizer_file([*ENTRIES, (b"", 0.0)]), "got 0"),
        (tokenizer_file([*ENTRIES, (b"\xff", 0.0)]), "0xff"),
        (tokenizer_file([*ENTRIES, (b"new", math.nan)]), "got 283 scores, 282 of them"),
        (tokenizer_file([*ENTRIES, ENTRIES[-1]]), "0x61>"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(path, data, received):
    path.write_bytes(data)
    assert received in refusal(path, Llama2cTokenizer.read)


@given(length=st.integers(0, len(FILE) - 1))
def test_no_truncation_breaks_the_reader(path, length):
    """A file cut between two tokens is a smaller tokenizer; any other is refused."""
    path.write_bytes(FILE[:length])
    try:
        tokens = Llama2cTokenizer.read(path).tokens
    except FormatError:
        return
    assert tokens == TOKENIZER.tokens[: len(tokens)]


@given(at=st.integers(0, len(FILE) - 1), data=st.binary(min_size=1, max_size=8))
def test_no_damage_breaks_the_reader(path, at, data):
    path.write_bytes(FILE[:at] + data + FILE[at + len(data) :])
    try:
        tokenizer = Llama2cTokenizer.read(path)
    except FormatError:
        return
    assert tokenizer.decode([tokenizer.begin_id, *tokenizer.encode("abc é")]) == "abc é"


@given(data=st.binary(max_size=100))
def test_no_foreign_file_breaks_the_reader(path, data):
    path.write_bytes(data)
    with pytest.raises(FormatError):
        Llama2cTokenizer.read(path)


@pytest.mark.parametrize("scores", [None, [], ["0"] * TOKENIZER.vocab_size, [10**400] * TOKENIZER.vocab_size])
def test_damaged_scores_in_json(tmp_path, scores):
    damaged = Llama2cTokenizer(TOKENIZER.tokens, TOKENIZER.scores)
    damaged.scores = scores
    damaged.save(tmp_path / "tokenizer.json")
    with pytest.raises(FormatError, match="scores"):
        load_tokenizer(tmp_path / "tokenizer.json")
