"""Converts SentencePiece's byte-pair encoding to Hugging Face's tokenizer.json, and back.

SentencePiece joins the pair whose union has the highest score, tokenizer.json the pair that comes first in its merges.
So each way to split a piece into two pieces becomes a merge: pieces by falling score, for one piece those with the
longer left part first. In the other direction, a piece's score is minus the index of the first merge that gives it. The
rest is as in Llama 2's tokenizer.json:

    normalizer  puts "▁" before the text and in place of spaces
    model       BPE with byte fallback
    decoder     spaces in place of "▁", bytes to characters, the first space removed

User-defined pieces become added tokens, which are found before the text around them is normalised.

tokenizer.json can't express equal scores, where the position in the text decides, and pieces with a character that is
no piece itself. So each conversion encodes difficult texts with both tokenizers and fails if ids differ. If they differ
only around control tokens and user-defined pieces, it warns: tokenizer.json may put "▁" before the whole text only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..small_files import brief
from .base import Tokenizer
from .huggingface import HuggingFaceTokenizer
from .huggingface_decoder import BYTE_TOKEN, SPACE
from .huggingface_document import added_token, begin_processor, bpe_model, chat_template_setting
from .sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePieceTokenizer,
)

REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREPEND = {"type": "Prepend", "prepend": SPACE}
DECODER = [
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}

HARD_TEXTS = (
    *("The cat sat on the mat, and it's 12345 o'clock! I'LL don'T", "a  b   c    d        e\tf\n\n\ng\r\n", "x" * 13),
    *("====----####////....!!!!", "Über café, naïve façade", "cafe\u0301 ſ ﬁ Å", "你好，世界。日本語", "Привет"),
    *("مرحبا بالعالم ١٢٣ नमस्ते ภาษาไทย", "👨‍👩‍👧‍👦 👍🏽 🏳️‍🌈", "def f(x):\n    return {x: [x ** 2, -1e-5]}  # ok"),
    *("<s> </s> <unk> <0x0A> <|im_start|>", "\x00\x01\x7f\u00a0\u2028\u200b\ufeff\ufffd\U0010ffff", "１２ ² Ⅷ ½ ∑ €"),
    *("http://www.example.com/a_b-c?d=e&f=%20g", "wwwwwwxxxxxyyyyzzz ababababab abcabcabc"),
)
Encode = Callable[[str], NDArray[np.int32]]
TOKENS_CHECKED = 4000
MARKS_CHECKED = 100


def sentencepiece_to_huggingface(tokenizer: SentencePieceTokenizer) -> HuggingFaceTokenizer:
    """The tokenizer as a HuggingFaceTokenizer with the same ids.

    For one from llama2.c, a "▁" in the text then counts as a space, and decoding always removes the first space.

    Raises ValueError where no tokenizer.json gives the same ids, FastllmError without the package `tokenizers`.
    """
    space = tokenizer.space
    as_they_are = tokenizer.control_ids | {i for i, kind in enumerate(tokenizer.types) if kind == USER_DEFINED}
    texts = [token if i in as_they_are else token.replace(space, SPACE) for i, token in enumerate(tokenizer.tokens)]
    vocabulary = {text: i for i, text in enumerate(texts) if text}
    if len(vocabulary) != sum(map(bool, texts)):
        raise ValueError("tokens must be distinct with ▁ for spaces; got two alike; use another tokenizer")
    plain = {text: i for text, i in vocabulary.items() if i not in tokenizer.control_ids}
    joined = {text: i for text, i in plain.items() if tokenizer.types[i] in (NORMAL, USER_DEFINED) and " " not in text}
    defined = [text for text, i in plain.items() if tokenizer.types[i] == USER_DEFINED]
    named = {tokenizer.id_of(text) for text in tokenizer.special_tokens.values()}
    named |= {i for i in (tokenizer.begin_id, tokenizer.end_id, tokenizer.unknown_id) if i is not None}
    special = sorted(tokenizer.control_ids | named)
    begin = None if tokenizer.begin_id is None else texts[tokenizer.begin_id]
    unknown = None if tokenizer.unknown_id is None else texts[tokenizer.unknown_id]
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            *(added_token(i, texts[i], special=True) for i in special if texts[i]),
            *(added_token(vocabulary[text], text, special=False) for text in defined),
        ],
        "normalizer": {"type": "Sequence", "normalizers": [PREPEND] * tokenizer.add_space_prefix + [REPLACE]},
        "pre_tokenizer": None,
        "post_processor": None if begin is None else begin_processor(begin, vocabulary[begin], before_each=True),
        "decoder": {"type": "Sequence", "decoders": DECODER + [STRIP] * tokenizer.add_space_prefix},
        "model": bpe_model(vocabulary, _merges(joined, tokenizer.scores), unk_token=unknown, byte_fallback=True),
    }
    given = {"bos_token": begin, "eos_token": texts[tokenizer.end_id], "unk_token": unknown}
    settings: dict[str, Any] = {**tokenizer.special_tokens, **{name: text for name, text in given.items() if text}}
    settings["clean_up_tokenization_spaces"] = False
    template = chat_template_setting(tokenizer.chat_template, tokenizer.chat_templates)
    if template is not None:
        settings["chat_template"] = template
    made = HuggingFaceTokenizer(document, settings, end_ids=tokenizer.end_ids - {tokenizer.end_id})
    _check(tokenizer, made, [texts[i] for i in joined.values()], typed_marks=space == SPACE)
    _compare_around(tokenizer, made, {*special, *(vocabulary[text] for text in defined)})
    return made


def sentencepiece_from_huggingface(tokenizer: HuggingFaceTokenizer) -> SentencePieceTokenizer:
    """The tokenizer as a SentencePieceTokenizer with the same ids, for GGUF's "llama".

    Warns if the original puts no "▁" before a text that begins with a space: the result does.

    Raises ValueError for a tokenizer of another kind, or if ids differ.
    """
    document = tokenizer.document
    model = document["model"]
    prefixes = _prefixes(document)
    is_plain = not any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"))
    if model.get("type", "BPE") != "BPE" or prefixes is None or not is_plain:
        raise ValueError(
            "a tokenizer like SentencePiece's must be BPE with ▁ for spaces; got a normalizer "
            f"{brief(document.get('normalizer'))} and a pre-tokenizer {brief(document.get('pre_tokenizer'))}"
        )
    texts = tokenizer.tokens
    types = [NORMAL if text else UNUSED for text in texts]
    for i, text in enumerate(texts):
        if model.get("byte_fallback") and BYTE_TOKEN.fullmatch(text):
            types[i] = BYTE
    for token in document["added_tokens"]:
        if types[token["id"]] != BYTE:
            types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    if model.get("unk_token") is not None:
        types[tokenizer.id_of(model["unk_token"])] = UNKNOWN
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        ranks.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), rank)
    last = len(model["merges"])
    scores = [float(-ranks.get(text, last + i) if types[i] == NORMAL else 0) for i, text in enumerate(texts)]
    made = SentencePieceTokenizer(
        texts,
        scores,
        types,
        end_id=tokenizer.end_id,
        begin_id=tokenizer.begin_id,
        unknown_id=None if model.get("unk_token") is None else tokenizer.id_of(model["unk_token"]),
        add_space_prefix=prefixes,
        chat_template=tokenizer.chat_template,
        chat_templates=tokenizer.chat_templates,
        special_tokens=tokenizer.special_tokens,
        end_ids=tokenizer.end_ids,
    )
    _check(tokenizer, made, [text for i, text in enumerate(texts) if types[i] == NORMAL], typed_marks=True)
    _compare_leading(tokenizer, made)
    _compare_around(tokenizer, made, {token["id"] for token in document["added_tokens"]})
    return made


def _merges(pieces: Mapping[str, int], scores: list[float]) -> list[str]:
    """The merges "left right": each way to split a piece into two, by falling score of the piece."""
    merges: list[str] = []
    for text in sorted(pieces, key=lambda text: -scores[pieces[text]]):
        for cut in range(len(text) - 1, 0, -1):
            if text[:cut] in pieces and text[cut:] in pieces:
                merges.append(f"{text[:cut]} {text[cut:]}")
    return merges


def _prefixes(document: Mapping[str, Any]) -> bool | None:
    """Whether "▁" is put before a text; None if the document treats spaces in another way than SentencePiece."""
    normalizer, splitter = document.get("normalizer"), document.get("pre_tokenizer")
    steps = _steps(normalizer)
    if splitter is None and steps and steps[-1] == REPLACE:
        return None if steps[:-1] not in ([], [PREPEND]) else len(steps) == 2
    if (
        not steps
        and isinstance(splitter, dict)
        and splitter.get("type") == "Metaspace"
        and splitter.get("replacement", SPACE) == SPACE
        and splitter.get("split", True) is False
    ):
        return splitter.get("prepend_scheme", "always") != "never"
    return None


def _steps(normalizer: object) -> list[object]:
    if not isinstance(normalizer, dict):
        return []
    steps = normalizer.get("normalizers")
    return steps if normalizer.get("type") == "Sequence" and isinstance(steps, list) else [normalizer]


def _check(one: Tokenizer, other: Tokenizer, pieces: list[str], typed_marks: bool) -> None:
    """Raise ValueError unless both tokenizers give the same ids for all _texts."""
    for text in _texts(pieces, typed_marks):
        if both := _difference(one.encode, other.encode, text):
            raise ValueError(
                f"a tokenizer must give the same ids in both forms; got {brief(both[0])} and {brief(both[1])} for "
                f"{brief(text)} (equal scores, or a character in a piece that is no piece?); use another tokenizer"
            )


def _compare_around(one: Tokenizer, other: Tokenizer, marks: Iterable[int]) -> None:
    """Warn if ids differ around control tokens or user-defined pieces, given by id."""
    for i in sorted(marks)[:MARKS_CHECKED]:
        mark = one.tokens[i]
        for text in (mark, f"{mark}a", f"a{mark}\n{mark}"):
            if both := _difference(one.encode_template, other.encode_template, text):
                warnings.warn(
                    f"around {brief(mark)} the converted tokenizer puts spaces elsewhere, so that chat prompts get "
                    f"other ids: {brief(both[0])} become {brief(both[1])}",
                    stacklevel=3,
                )
                return


def _compare_leading(one: Tokenizer, other: Tokenizer) -> None:
    """Warn if ids differ for texts that begin with a space."""
    if both := _difference(one.encode, other.encode, " a"):
        warnings.warn(
            "the converted tokenizer puts one more space before a text that begins with a space: for ' a', "
            f"{brief(both[0])} become {brief(both[1])}",
            stacklevel=3,
        )


def _difference(one: Encode, other: Encode, text: str) -> tuple[list[int], list[int]] | None:
    """The ids that two encoders give for a text if they differ; None if they agree, or if one can't encode it."""
    try:
        ids, others = one(text).tolist(), other(text).tolist()
    except ValueError:
        return None
    return None if ids == others else (ids, others)


def _texts(pieces: list[str], typed_marks: bool) -> Iterator[str]:
    """Difficult texts, and pieces joined in many random orders."""
    yield from HARD_TEXTS
    if typed_marks:
        yield "a▁b▁▁c ▁d▁"
    rng = np.random.default_rng(0)
    rounds = max(1, TOKENS_CHECKED // max(1, len(pieces)))
    for _ in range(rounds if pieces else 0):
        chosen = [pieces[i].replace(SPACE, " ") for i in rng.permutation(len(pieces))[:TOKENS_CHECKED]]
        for begin in range(0, len(chosen), 50):
            yield "x" + "".join(chosen[begin : begin + 50])
