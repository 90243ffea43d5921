"""Tokenizers by example: vocabularies, special tokens, spaces, streams, files, bad input."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from fastllm.errors import DataError, FastllmError, FormatError
from fastllm.tokenizers import (
    ByteTokenizer,
    CharacterTokenizer,
    Tokenizer,
    WordTokenizer,
    load_tokenizer,
)

SPECIAL = ["<unk>", "<end>", "<user>", "<assistant>"]
TEXT = "The sun isn't a planet, is it? No: it's a star!"
LONE_SURROGATE = "half \ud83d of a smile"

OWN = (WordTokenizer, CharacterTokenizer, ByteTokenizer)
every_kind = pytest.mark.parametrize("kind", OWN, ids=[kind.name for kind in OWN])
counted_kinds = pytest.mark.parametrize("kind", [WordTokenizer, CharacterTokenizer])


def round_trip(text: str) -> str:
    tokenizer = WordTokenizer.build([text])
    return tokenizer.decode(tokenizer.encode(text))


def assert_one_line(error: BaseException, *parts: str) -> None:
    """An error message is one line of rule, received and fix, and names each of parts."""
    message = str(error)
    assert "\n" not in message
    assert message.count(";") >= 2
    for part in parts:
        assert part in message


@pytest.mark.parametrize("module", ["word", "character", "byte"])
def test_examples_in_docstrings(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"fastllm.tokenizers.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


# encoding


@every_kind
def test_encode_gives_int32_ids(kind: type[Tokenizer]) -> None:
    tokenizer = kind.build([TEXT])
    ids = tokenizer.encode(TEXT)
    assert ids.dtype == np.int32
    assert ids.ndim == 1
    assert ids.flags.c_contiguous
    assert ids.flags.writeable
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.decode(ids.tolist()) == TEXT
    assert tokenizer.decode(iter(ids)) == TEXT


@every_kind
def test_empty_text(kind: type[Tokenizer]) -> None:
    tokenizer = kind.build([TEXT])
    ids = tokenizer.encode("")
    assert ids.shape == (0,)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == tokenizer.decode([]) == ""


def test_words_split_at_unicode_white_space_and_ascii_punctuation() -> None:
    text = "don't\u00a0stop\u3000now\t(well-known)\n“quoted” 3.5%"
    tokenizer = WordTokenizer.build([text])
    assert tokenizer.tokens[4:] == [
        *("don", "'", "t", "stop", "now", "(", "well", "-", "known", ")", "“quoted”", "3", ".", "5", "%")
    ]


def test_every_ascii_punctuation_mark_stands_apart() -> None:
    marks = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
    tokenizer = WordTokenizer.build(["a".join(marks)])
    assert sorted(tokenizer.tokens[4:]) == sorted([*marks, "a"])


def test_unknown_words_and_characters_are_kept_as_unknown() -> None:
    words = WordTokenizer.build(["the sun"])
    assert words.encode("the red sun").tolist() == [words.id_of("the"), words.unknown_id, words.id_of("sun")]
    assert words.decode(words.encode("the red, sun")) == "the <unk> <unk> sun"
    characters = CharacterTokenizer.build(["ab"])
    points = [*range(1000), 0x10FFFF]
    ids = characters.encode("".join(map(chr, points)))
    assert ids.tolist() == [{"a": 4, "b": 5}.get(chr(point), 0) for point in points]


def test_bytes_know_every_text() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.unknown_id is None
    assert tokenizer.encode("aé水").tolist() == [*"aé水".encode()]
    assert tokenizer.decode(tokenizer.encode("\x00 aé水🙂\n")) == "\x00 aé水🙂\n"


# vocabulary


@every_kind
def test_special_tokens(kind: type[Tokenizer]) -> None:
    tokenizer = kind.build([TEXT])
    first = 256 if kind is ByteTokenizer else 1
    assert (tokenizer.end_id, tokenizer.user_id, tokenizer.assistant_id) == (first, first + 1, first + 2)
    assert tokenizer.tokens[first : first + 3] == SPECIAL[1:]
    assert tokenizer.id_of("<end>") == tokenizer.end_id
    assert tokenizer.vocab_size == len(tokenizer.tokens)


@every_kind
@pytest.mark.parametrize("literal", ["<end>", "</s>", "<user>", "<assistant>", "<unk>"])
def test_text_never_becomes_a_special_token(kind: type[Tokenizer], literal: str) -> None:
    text = f"say {literal} twice{literal}"
    tokenizer = kind.build([text])
    special = {*tokenizer.control_ids, tokenizer.unknown_id}
    assert not special & set(tokenizer.encode(text).tolist())
    assert [token for token in tokenizer.tokens if token in SPECIAL] == SPECIAL[-len(special - {None}) :]
    assert "</s>" not in tokenizer.tokens


def test_special_text_is_split_like_any_other() -> None:
    tokenizer = WordTokenizer.build(["<end>"])
    assert tokenizer.tokens == [*SPECIAL, "<", "end", ">"]


def test_vocabulary_order_and_limits() -> None:
    texts = ["b a", "c a b", "a d"]
    assert WordTokenizer.build(texts).tokens == [*SPECIAL, "a", "b", "c", "d"]
    assert WordTokenizer.build(iter(texts), max_size=6).tokens == [*SPECIAL, "a", "b"]
    assert WordTokenizer.build(texts, minimum_count=3).tokens == [*SPECIAL, "a"]
    assert CharacterTokenizer.build(["ab", "b\n"]).tokens == [*SPECIAL, "b", "a", "\n"]
    assert ByteTokenizer.build(texts, max_size=259).vocab_size == 259


def test_control_tokens_are_hidden_unless_asked_for() -> None:
    for kind in OWN:
        tokenizer = kind.build(["hi you"])
        hi, you = tokenizer.encode("hi"), tokenizer.encode("you")
        ids = [tokenizer.user_id, *hi, tokenizer.end_id, *you]
        space = " " if kind is WordTokenizer else ""
        assert tokenizer.decode(ids) == f"hi{space}you"
        assert tokenizer.decode(ids, skip_special=False) == space.join(("<user>", "hi", "<end>", "you"))


# spaces between words


@pytest.mark.parametrize(
    "text",
    [
        "Don't worry, it's the dog's ball; they're fine: I'd say we've won!",
        "The dogs' tails and James's hat, at six o'clock, by O'Brien.",
        "'Twas a well-known, state-of-the-art, two-year-old idea; 'tis cold now: -5 or less.",
        "In 1969, 500 men and 1,500 women.",
        'She said, "I am here." Then "you" left ("at last").',
        "Pi is 3.14, a day has 86,400 seconds, and 1,000,000 is 10:30 of nothing.",
        "In 1969, 1970 and 1971; 5, 6, 7 of them cost $5, 5% more (or [so]) at #1.",
        "Wait... what?! Yes and/or no: me@home.",
        "2 + 2 = 4 & more * < less >",
        "海水里有很多盐，所以是咸的。 “Curly” quotes—and dashes…",
    ],
)
def test_spaces_come_back(text: str) -> None:
    assert round_trip(text) == text


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("  much \n\n space\t", "much space"),
        ("the word 'angry' is", "the word'angry'is"),
        ("a dash - like this", "a dash-like this"),
        ("minus -5", "minus-5"),
        ("100, 200", "100,200"),
        ("e.g. this", "e. g. this"),
        ("in 1990. 12 years", "in 1990.12 years"),
        ("f(x)", "f (x)"),
    ],
)
def test_where_spaces_differ_the_tokens_stay(text: str, decoded: str) -> None:
    tokenizer = WordTokenizer.build([text])
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == decoded
    np.testing.assert_array_equal(tokenizer.encode(decoded), ids)


# streams


def test_word_stream_gives_each_word_at_once() -> None:
    tokenizer = WordTokenizer.build([TEXT])
    stream = tokenizer.stream()
    assert [stream.push(token_id) for token_id in tokenizer.encode("No: it's a star!")] == [
        *("No", ":", " it", "'", "s", " a", " star", "!")
    ]
    assert stream.flush() == ""


def test_byte_stream_never_shows_half_a_character() -> None:
    tokenizer = ByteTokenizer()
    stream = tokenizer.stream()
    assert [stream.push(token_id) for token_id in tokenizer.encode("é🙂")] == ["", "é", "", "", "", "🙂"]
    assert stream.flush() == ""


def test_bytes_that_are_no_utf8_become_replacement_characters() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode([0x61, 0xFF, 0x62]) == "a\ufffdb"
    assert tokenizer.decode([0x61, 0xC3]) == "a\ufffd"
    assert tokenizer.decode([0xC3, tokenizer.end_id, 0xA9]) == "\ufffd\ufffd"
    assert tokenizer.decode([0xC3, tokenizer.end_id, 0x61], skip_special=False) == "\ufffd<end>a"


# bad input


@every_kind
@pytest.mark.parametrize("text", [None, b"bytes", 5, ["text"], np.zeros((3, 3, 3))])
def test_text_must_be_a_string(kind: type[Tokenizer], text: object) -> None:
    with pytest.raises(TypeError) as caught:
        kind.build([TEXT]).encode(text)  # type: ignore[arg-type]
    assert_one_line(caught.value, "text must be a str", type(text).__name__)


@every_kind
def test_text_must_be_whole_unicode(kind: type[Tokenizer]) -> None:
    with pytest.raises(DataError) as caught:
        kind.build([TEXT]).encode(LONE_SURROGATE)
    assert_one_line(caught.value, "U+D83D", "position 5")
    fixed = LONE_SURROGATE.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert fixed == "half \ufffd of a smile"  # the fix the message names


@every_kind
@pytest.mark.parametrize("wrong", [-1, 10**9, 2**70])
def test_ids_must_be_in_range(kind: type[Tokenizer], wrong: int) -> None:
    tokenizer = kind.build([TEXT])
    with pytest.raises(ValueError, match="token ids") as caught:
        tokenizer.decode([0, 1, wrong])
    assert_one_line(caught.value, f"0 .. {tokenizer.vocab_size - 1}", f"got {wrong} at position 2")
    tokenizer.decode([tokenizer.vocab_size - 1])
    with pytest.raises(ValueError, match=f"got {tokenizer.vocab_size}"):
        tokenizer.decode([tokenizer.vocab_size])


@every_kind
@pytest.mark.parametrize("wrong", [1.0, "1", None, [1, 2], np.float32(1)])
def test_ids_must_be_integers(kind: type[Tokenizer], wrong: object) -> None:
    with pytest.raises(TypeError) as caught:
        kind.build([TEXT]).decode([0, wrong])  # type: ignore[list-item]
    assert_one_line(caught.value, type(wrong).__name__, "position 1")


@every_kind
def test_ids_of_many_texts_are_refused(kind: type[Tokenizer]) -> None:
    with pytest.raises(TypeError, match="ndarray at position 0"):
        kind.build([TEXT]).decode(np.zeros((2, 3), np.int32))  # type: ignore[arg-type]


@counted_kinds
@pytest.mark.parametrize("texts", [[], [""], iter(())])
def test_build_needs_a_text(kind: type[Tokenizer], texts: object) -> None:
    with pytest.raises(DataError) as caught:
        kind.build(texts)  # type: ignore[arg-type]
    assert_one_line(caught.value, "at least one text")


@counted_kinds
def test_build_checks_its_arguments(kind: type[Tokenizer]) -> None:
    with pytest.raises(TypeError) as caught:
        kind.build(TEXT)
    assert_one_line(caught.value, "pass [text]")
    with pytest.raises(TypeError, match="got NoneType"):
        kind.build([TEXT, None])  # type: ignore[list-item]
    with pytest.raises(DataError, match="surrogate"):
        kind.build([TEXT, LONE_SURROGATE])
    with pytest.raises(ValueError, match="max_size") as limit:
        kind.build([TEXT], max_size=4)
    assert_one_line(limit.value, "got 4")
    with pytest.raises(ValueError, match="minimum_count") as count:
        kind.build([TEXT], minimum_count=0)
    assert_one_line(count.value, "got 0")
    with pytest.raises(DataError, match="99 or more times"):
        kind.build([TEXT], minimum_count=99)


def test_bytes_need_their_room() -> None:
    with pytest.raises(ValueError, match="max_size") as caught:
        ByteTokenizer.build(max_size=258)
    assert_one_line(caught.value, "259", "got 258")


@every_kind
def test_unknown_token_name(kind: type[Tokenizer]) -> None:
    with pytest.raises(ValueError, match="vocabulary") as caught:
        kind.build([TEXT]).id_of("no such token")
    assert_one_line(caught.value, "no such token")


# files


@every_kind
def test_save_and_load(kind: type[Tokenizer], tmp_path: Path) -> None:
    tokenizer = kind.build(['é水🙂 \u2028 \x00 " \\ \ufeff'])
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    loaded = load_tokenizer(os.fspath(path))
    assert type(loaded) is kind
    assert loaded.tokens == tokenizer.tokens
    assert os.listdir(tmp_path) == ["tokenizer.json"]
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document == {
        "format": "fastllm-tokenizer",
        "version": 1,
        "type": kind.name,
        "tokens": tokenizer.tokens,
    }


def test_file_is_readable(tmp_path: Path) -> None:
    WordTokenizer.build(["水"]).save(tmp_path / "t.json")
    assert ' "水"\n' in (tmp_path / "t.json").read_text(encoding="utf-8")


def test_save_replaces_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokenizer.json"
    WordTokenizer.build(["old"]).save(path)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        WordTokenizer.build(["new"]).save(path)
    assert load_tokenizer(path).tokens[4:] == ["old"]
    assert os.listdir(tmp_path) == ["tokenizer.json"]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load_tokenizer(tmp_path / "none.json")
    assert_one_line(caught.value, str(tmp_path / "none.json"))


def document(**changes: object) -> str:
    return json.dumps(
        {"format": "fastllm-tokenizer", "version": 1, "type": "word", "tokens": [*SPECIAL, "a"]} | changes
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "JSON in UTF-8"),
        (document()[:-20], "JSON in UTF-8"),
        ("[" * 200_000, "JSON in UTF-8"),
        (b"\xff\xfe\xfa", "JSON in UTF-8"),
        (b"\x93NUMPY\x01\x00", "JSON in UTF-8"),
        ("[1, 2]", "JSON object"),
        ('{"version": "1.0", "model": {"type": "BPE"}}', '"format"'),
        (document(version=2), "got 2"),
        (document(type="bpe"), "got 'bpe'"),
        (document(type=["word"]), "got ['word']"),
        (document(tokens={"a": 1}), "must be a list"),
        (document(tokens=[]), "must begin with"),
        (document(tokens=["a", *SPECIAL]), "must begin with"),
        (document(tokens=[*SPECIAL, 5]), "got int at position 4"),
        (document(tokens=[*SPECIAL, ["a"]]), "got list at position 4"),
        (document(tokens=[*SPECIAL, "a", "b", "a"]), "'a' at positions 4 and 6"),
        (document(tokens=[*SPECIAL, "<end>"]), "'<end>' at positions 1 and 4"),
        (document(tokens=[*SPECIAL, "two words"]), "'two words' at position 4"),
        (document(tokens=[*SPECIAL, "</s>"]), "'</s>' at position 4"),
        (document(tokens=[*SPECIAL, ""]), "'' at position 4"),
        (document(tokens=[*SPECIAL, "\ud83d"]), "U+D83D"),
        (document(type="character", tokens=[*SPECIAL, "ab"]), "'ab' at position 4"),
        (document(type="byte"), "the 256 bytes"),
    ],
)
def test_foreign_and_damaged_files(content: str | bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FormatError) as caught:
        load_tokenizer(path)
    assert isinstance(caught.value, FastllmError)
    assert isinstance(caught.value, ValueError)
    assert_one_line(caught.value, str(path), said)


def test_every_cut_of_a_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    WordTokenizer.build(["a b"]).save(path)
    content = path.read_bytes()
    for size in range(len(content) - 1):  # the last byte is a line feed
        path.write_bytes(content[:size])
        with pytest.raises(FormatError):
            load_tokenizer(path)


# speed


@pytest.mark.parametrize(("kind", "seconds"), [(WordTokenizer, 1.0), (CharacterTokenizer, 0.5), (ByteTokenizer, 0.5)])
def test_a_megabyte_is_encoded_quickly(kind: type[Tokenizer], seconds: float) -> None:
    text = (TEXT + " ") * (1_000_000 // len(TEXT))
    tokenizer = kind.build([text])
    start = time.process_time()
    tokenizer.encode(text)
    assert time.process_time() - start < seconds  # ten times what it takes, for slow machines
