"""Laws the tokenizers keep for all texts, and the class of English texts that words restore exactly.

Regular texts, as `regular_texts` makes them, are items with single spaces between them. An item is a word or
a number, with marks behind it or none; a word may stand in brackets, a run of items in double quotes (").

    word      letters of any alphabet, and more of them joined by hyphens or apostrophes; after a part that
              ends with s an apostrophe joins only s, t, re, ve, ll, d and m
    plural    letters that end with s' before a word that begins with none of these: the dogs' tails
    number    12 or 12,345,678 or 3.14 or 10:30, perhaps with $ before or % behind; no number comes next,
              for "in 1990. 12 men" reads like 1990.12
    marks     . , ? ! ; : and repeated ones such as ?! and ...
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.tokenizers import ByteTokenizer, CharacterTokenizer, Tokenizer, WordTokenizer

OWN = (WordTokenizer, CharacterTokenizer, ByteTokenizer)
every_kind = pytest.mark.parametrize("kind", OWN, ids=[kind.name for kind in OWN])

any_text = st.text(st.characters(exclude_categories=["Cs"]))
# words, marks and white space in wild orders, which st.text seldom makes
wild_text = st.lists(
    st.sampled_from([*"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", " ", "\n", "a", "dogs", "s", "t", "5", "000", "水"])
).map("".join)
texts = any_text | wild_text

CONTRACTIONS = ["s", "t", "re", "ve", "ll", "d", "m"]
letters = st.text(st.characters(categories=["Lu", "Ll", "Lo"]), min_size=1, max_size=8)
digits = st.text("0123456789", min_size=1, max_size=4)
group = st.text("0123456789", min_size=3, max_size=3)
marks = st.sampled_from(["", "", "", "", ".", ",", "?", "!", ";", ":", "...", "?!", "!!"])


@st.composite
def words(draw: st.DrawFn) -> str:
    word = draw(letters)
    for part in draw(st.lists(letters, max_size=2)):
        if draw(st.booleans()):
            word += f"-{part}"
        elif word.lower().endswith("s"):
            word += f"'{draw(st.sampled_from(CONTRACTIONS))}"
        else:
            word += f"'{part}"
    return word


numbers = st.one_of(
    digits,
    st.builds("{}.{}".format, digits, digits),
    st.builds("{}:{}".format, digits, digits),
    st.builds(lambda first, rest: ",".join([first, *rest]), digits.map(lambda d: d[:3]), st.lists(group, max_size=3)),
)
priced = st.builds("{}{}".format, st.sampled_from(["", "$"]), numbers) | numbers.map("{}%".format)


@st.composite
def items(draw: st.DrawFn) -> str:
    """A word, perhaps with a number and a plural before it; it ends with a word, so that any may follow."""
    number = f"{draw(priced)}{draw(marks)} " if draw(st.booleans()) else ""
    plural = f"{draw(letters)}s' " if draw(st.booleans()) else ""
    word = draw(words())
    if re.split("[-']", word)[0].lower() in CONTRACTIONS:
        plural = ""
    left, right = draw(st.sampled_from([("", ""), ("", ""), ("(", ")"), ("[", "]"), ("{", "}")]))
    return f"{number}{plural}{left}{word}{right}{draw(marks)}"


@st.composite
def regular_texts(draw: st.DrawFn) -> str:
    runs = draw(st.lists(st.lists(items(), min_size=1, max_size=4).map(" ".join), min_size=1, max_size=4))
    text = " ".join(f'"{run}"' if draw(st.booleans()) else run for run in runs)
    return f"{text} {draw(priced)}{draw(marks)}" if draw(st.booleans()) else text


@given(regular_texts())
def test_words_restore_regular_english(text: str) -> None:
    tokenizer = WordTokenizer.build([text])
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(wild_text.filter(str.strip) | any_text.filter(str.strip))
def test_words_keep_the_tokens_of_every_known_text(text: str) -> None:
    tokenizer = WordTokenizer.build([text])
    ids = tokenizer.encode(text)
    np.testing.assert_array_equal(tokenizer.encode(tokenizer.decode(ids)), ids)


@given(texts.filter(str.strip))
def test_words_change_nothing_but_white_space(text: str) -> None:
    tokenizer = WordTokenizer.build([text])
    decoded = tokenizer.decode(tokenizer.encode(text))
    assert "".join(decoded.split()) == "".join(text.split())


@given(texts.filter(bool))
def test_characters_restore_every_known_text(text: str) -> None:
    tokenizer = CharacterTokenizer.build([text])
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text


@given(texts)
def test_bytes_restore_every_text(text: str) -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@every_kind
@given(known=texts.filter(str.strip), text=texts)
def test_any_text_encodes_without_control_tokens(kind: type[Tokenizer], known: str, text: str) -> None:
    tokenizer = kind.build([known])
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert not tokenizer.control_ids & set(ids.tolist())
    assert all(0 <= token_id < tokenizer.vocab_size for token_id in ids)


@given(known=texts.filter(str.strip), text=texts)
def test_no_word_or_character_is_dropped(known: str, text: str) -> None:
    everything = WordTokenizer.build([known + " " + text])
    assert len(WordTokenizer.build([known]).encode(text)) == len(everything.encode(text))
    assert len(CharacterTokenizer.build([known]).encode(text)) == len(text)


@every_kind
@given(data=st.data(), known=texts.filter(str.strip), skip_special=st.booleans())
def test_streams_equal_decode(kind: type[Tokenizer], data: st.DataObject, known: str, skip_special: bool) -> None:
    tokenizer = kind.build([known])
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    stream = tokenizer.stream(skip_special)
    pieces = [stream.push(token_id) for token_id in ids]
    text = tokenizer.decode(ids, skip_special)
    assert "".join(pieces) + stream.flush() == text
    if kind is not ByteTokenizer:  # whose decode ends with U+FFFD where a character is not yet whole
        for count, length in enumerate(np.cumsum([0, *map(len, pieces)])):
            assert tokenizer.decode(ids[:count], skip_special) == text[:length]


@given(st.lists(st.integers(0, 255)))
def test_any_bytes_decode_as_python_does(ids: list[int]) -> None:
    assert ByteTokenizer().decode(ids) == bytes(ids).decode("utf-8", "replace")


@given(texts)
def test_byte_streams_show_whole_characters_only(text: str) -> None:
    tokenizer = ByteTokenizer()
    stream = tokenizer.stream()
    shown = ""
    for token_id in tokenizer.encode(text):
        shown += stream.push(token_id)
        assert text.startswith(shown)
    assert shown == text


@every_kind
@given(some=st.lists(texts.filter(str.strip), min_size=1), max_size=st.integers(5, 20))
def test_vocabularies_are_sorted_and_repeatable(kind: type[Tokenizer], some: list[str], max_size: int) -> None:
    if kind is ByteTokenizer:
        max_size = 259
    tokenizer = kind.build(some)
    assert kind.build(iter(some)).tokens == tokenizer.tokens
    assert kind.build(some, max_size).tokens == tokenizer.tokens[:max_size]
    assert kind(tokenizer.tokens).tokens == tokenizer.tokens
    if kind is not ByteTokenizer:
        ids = np.concatenate([tokenizer.encode(text) for text in some])
        counts = np.bincount(ids, minlength=tokenizer.vocab_size)[4:]
        assert (counts > 0).all()
        assert (np.diff(counts) <= 0).all()
