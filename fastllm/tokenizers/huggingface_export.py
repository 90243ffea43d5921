"""Converts any tokenizer to Hugging Face's tokenizer.json, with the same ids, for transformers and `tokenizers`.

Bytes become byte-level BPE without merges; characters and words a WordLevel vocabulary, with text split as in
tokenizers/character.py and word.py; for SentencePiece see sentencepiece_json.py. Words are decoded with a space between
any two, as tokenizer.json can't express the rules for English.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base import ASSISTANT, END, UNKNOWN, USER, Tokenizer
from .byte import BYTES, ByteTokenizer
from .character import CharacterTokenizer
from .huggingface import HuggingFaceTokenizer
from .huggingface_decoder import byte_characters
from .huggingface_document import BYTE_LEVEL, added_token, bpe_model
from .sentencepiece import SentencePieceTokenizer
from .sentencepiece_json import sentencepiece_to_huggingface
from .word import ASCII_PUNCTUATION, WordTokenizer

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != ['user', 'assistant'][loop.index0 % 2] %}"
    "{{ raise_exception('user and assistant must take turns, and the user begins') }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    f"{{{{ '{USER}' + message['content'] + '{ASSISTANT}' }}}}"
    f"{{% else %}}{{{{ message['content'] + '{END}' }}}}{{% endif %}}{{% endfor %}}"
)
"""Chat template of dialogues in the format of dialogue.py."""

# White space as in Python; \s in the regular expressions of `tokenizers` lacks U+001C to U+001F.
WHITE_SPACE = "".join(chr(point) for point in range(0x3001) if chr(point).isspace())


def to_huggingface(tokenizer: Tokenizer) -> HuggingFaceTokenizer:
    """The tokenizer as a HuggingFaceTokenizer with the same ids; itself if it is one already.

    Raises ValueError where no tokenizer.json gives the same ids, FastllmError without the package `tokenizers`.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer
    if isinstance(tokenizer, SentencePieceTokenizer):
        return sentencepiece_to_huggingface(tokenizer)
    if isinstance(tokenizer, ByteTokenizer):
        model, splitter, decoder = _bytes()
    elif isinstance(tokenizer, CharacterTokenizer):
        model, splitter, decoder = _looked_up(tokenizer), _split(r"[\s\S]", "Isolated"), {"type": "Fuse"}
    elif isinstance(tokenizer, WordTokenizer):
        steps = [_split(f"[{WHITE_SPACE}]+", "Removed"), _split(f"[{ASCII_PUNCTUATION}]", "Isolated")]
        model, splitter, decoder = _looked_up(tokenizer), {"type": "Sequence", "pretokenizers": steps}, None
    else:
        raise ValueError(
            f"a tokenizer.json can't express every tokenizer; got one of kind {tokenizer.name!r}; "
            "keep it in fastllm's own format"
        )
    document, settings, ends = document_and_settings(model, splitter, decoder)
    settings["clean_up_tokenization_spaces"] = isinstance(tokenizer, WordTokenizer)
    return HuggingFaceTokenizer(document, settings, end_ids=ends)


def document_and_settings(
    model: Mapping[str, Any], splitter: Mapping[str, Any], decoder: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any], list[int]]:
    """Contents of tokenizer.json and tokenizer_config.json, and more end ids, for a "model" with our control tokens."""
    vocabulary = model["vocab"]
    controls = [token for token in (END, USER, ASSISTANT) if token in vocabulary]
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(vocabulary[token], token, special=True) for token in controls],
        "normalizer": None,
        "pre_tokenizer": splitter,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }
    settings: dict[str, Any] = {"eos_token": END, "clean_up_tokenization_spaces": False}
    if {USER, ASSISTANT}.issubset(controls):
        settings["chat_template"] = TEMPLATE
    ends = [vocabulary[USER]] if USER in controls else []  # an answer ends where the user's turn begins
    return document, settings, ends


def _bytes() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    controls = {token: BYTES + i for i, token in enumerate((END, USER, ASSISTANT))}
    return bpe_model(byte_characters() | controls, []), {**BYTE_LEVEL, "use_regex": False}, BYTE_LEVEL


def _looked_up(tokenizer: Tokenizer) -> dict[str, Any]:
    return {"type": "WordLevel", "vocab": {token: i for i, token in enumerate(tokenizer.tokens)}, "unk_token": UNKNOWN}


def _split(regex: str, behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": False}
