"""Checks and parses tokenizer.json and tokenizer_config.json, and renames control tokens to what nobody can type."""

from __future__ import annotations

import base64
import math
import secrets
from collections.abc import Container, Mapping
from functools import partial
from typing import Any

from ..small_files import brief
from .base import check_text, distinct_ids
from .huggingface_decoder import BYTE_TOKEN

CONFIG = "tokenizer_config.json"
DEFAULT = "default"  # the name of the chat template to use, of several
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
OBJECTS = ("model_specific_special_tokens", "extra_special_tokens")
"""Objects of the model's own special tokens: name -> token. The second may be a list of tokens without names."""
SEQUENCES = ("normalizers", "pretokenizers", "decoders")
MOST_GROWTH = 3000
"""Limit of how many times longer steps may make a text. The bound for XLNet's is 2592."""
MOST_PREPENDED, MOST_STEPS, DEEPEST = 16, 64, 8
GROWTHS = {"NFC": 3.0, "NFD": 4.0, "NFKC": 18.0, "NFKD": 18.0, "Lowercase": 2.0, "BertNormalizer": 8.0,
           "ByteLevel": 5.0, "Metaspace": 2.0, None: 8.0}  # fmt: skip
"""Bounds of how many characters steps make of one; a step without a type may be BertNormalizer."""
MOST_IDS = 1 << 22
"""Ids must be smaller: far above any vocabulary, and low enough that a damaged file can't exhaust memory."""

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def added_token(token_id: int, text: str, special: bool) -> dict[str, Any]:
    """An entry of added_tokens."""
    return {"id": token_id, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": special}  # fmt: skip


def bpe_model(vocabulary: Mapping[str, int], merges: list[Any], **options: Any) -> dict[str, Any]:
    """A "model" of type BPE. options: those that differ from the usual ones."""
    usual = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}  # fmt: skip
    return {**usual, **options, "vocab": vocabulary, "merges": merges}


def vocabulary_of(document: Mapping[str, Any]) -> dict[str, int]:
    """Text -> id of the tokens in "model". Raises ValueError for invalid ones."""
    model = document.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, list):  # Unigram: [[text, score], ...]
        if not all(isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) for entry in vocab):
            raise ValueError('"vocab" must hold [text, score] pairs; got others; use another tokenizer.json')
        return distinct_ids([entry[0] for entry in vocab])
    if not isinstance(vocab, dict) or not vocab:
        raise ValueError(f'"vocab" must map tokens to ids; got {brief(vocab)}; use another tokenizer.json')
    for text, token_id in vocab.items():
        _check_id(token_id, text)
    return dict(vocab)


def _check_id(token_id: object, text: str) -> None:
    if type(token_id) is not int or not 0 <= token_id < MOST_IDS:
        raise ValueError(
            f"ids must be whole numbers in 0 .. {MOST_IDS - 1}; got {token_id!r:.40} for {brief(text)}; "
            "use another tokenizer.json"
        )


def tokens_by_id(vocabulary: Mapping[str, int]) -> list[str]:
    """The token of each id, "" for an id without one. Raises ValueError for an id with two."""
    tokens = [""] * (max(vocabulary.values(), default=-1) + 1)
    for text, token_id in vocabulary.items():
        check_text(text)
        if tokens[token_id]:
            raise ValueError(
                f"each id must have one token; got {brief(tokens[token_id])} and {brief(text)} for {token_id}; "
                "use another tokenizer.json"
            )
        tokens[token_id] = text
    return tokens


def added_tokens(
    document: Mapping[str, Any], settings: Mapping[str, Any], vocabulary: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """Text -> {id, content, special, ...}: tokens of the document, then those of the settings, as in transformers.

    Special tokens of the settings without an id get the next free ones. Raises ValueError or TypeError.
    """
    given = document.get("added_tokens") or []
    more = settings.get("added_tokens_decoder") or {}
    if not isinstance(given, list) or not isinstance(more, dict):
        raise TypeError("added tokens must be a list, in tokenizer_config.json an object; got others; copy it again")
    added: dict[str, dict[str, Any]] = {}

    def add(entry: object, token_id: object) -> None:
        text = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(text, str) or not text:
            raise ValueError(f'an added token must have a text as "content"; got {brief(entry)}; copy it again')
        _check_id(token_id, text)
        if vocabulary.get(text, token_id) != token_id or (text in added and added[text]["id"] != token_id):
            raise ValueError(
                f"a token must have one id; got {vocabulary.get(text, added.get(text, {}).get('id'))} and {token_id} "
                f"for {brief(text)}; use files of one tokenizer"
            )
        flags = {
            flag: bool(entry.get(flag, False))  # type: ignore[attr-defined]
            for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")
        }
        added[text] = {"id": token_id, "content": text, **flags}

    for entry in given:
        add(entry, entry.get("id") if isinstance(entry, dict) else None)
    for key, entry in more.items():
        add(entry, int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 10 else None)
    following = max([*vocabulary.values(), *(token["id"] for token in added.values())], default=-1) + 1
    for text in special_texts(settings):
        if text not in added:
            token_id = vocabulary.get(text, following)
            add({"content": text, "special": True}, token_id)
            following = max(following, token_id + 1)
        added[text]["special"] = True
    return added


def special_texts(settings: Mapping[str, Any]) -> list[str]:
    """The special tokens that the settings name."""
    extra = [settings.get(key) for key in ("additional_special_tokens", "extra_special_tokens")]
    named = [*(settings.get(name) for name in NAMED), *more_special_tokens(settings).values()]
    values = (*named, *(token for tokens in extra if isinstance(tokens, list) for token in tokens))
    return [text for value in values if (text := text_of(value, "a special token")) is not None]


def more_special_tokens(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The model's own named special tokens: name in its chat template -> token.

    As in transformers 5, they have keys of their own that end in "_token", or are in objects.
    """
    named = {
        name: value for name, value in settings.items()
        if name.endswith("_token") and name not in NAMED and isinstance(value, (str, dict))
    }  # fmt: skip
    for key in OBJECTS:
        if isinstance(extra := settings.get(key), dict):
            named |= {name: value for name, value in extra.items() if isinstance(name, str)}
    return named


def text_of(value: object, name: str) -> str | None:
    """The text of a special token in settings, given as a str or {"content": str}; None for neither or ""."""
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be a text; got {brief(value)}; copy {CONFIG} again")
    return value or None


def chat_templates_of(value: object) -> tuple[str | None, dict[str, str]]:
    """The chat template in settings, of several the one named "default"; and all by their names, {} for a single one.

    An empty template counts as none, as in llama.cpp.
    """
    named: dict[str, str] = {}
    if isinstance(value, list):
        entries = [(entry.get("name"), entry.get("template")) for entry in value if isinstance(entry, dict)]
        for name, _ in entries:
            if not isinstance(name, str):
                raise TypeError(f"a chat template must have a text as its name; got {brief(name)}; copy {CONFIG} again")
        value = dict(entries)
    texts = [*value, *value.values()] if isinstance(value, dict) else [value]
    if isinstance(value, dict):
        named = {str(name): text for name, text in value.items() if isinstance(text, str)}
        value = value.get(DEFAULT)
    if value is not None and not isinstance(value, str):
        raise TypeError(f"chat_template must be a text; got {type(value).__name__}; copy {CONFIG} again")
    try:
        "".join(text for text in texts if isinstance(text, str)).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"chat_template must be valid Unicode; got {error}; copy {CONFIG} again") from None
    return value or None, named


def chat_template_setting(template: str | None, named: Mapping[str, str]) -> str | list[dict[str, str]] | None:
    """The setting from which chat_templates_of gets these."""
    if named.keys() <= {DEFAULT}:
        return template
    return [{"name": name, "template": text} for name, text in named.items()]


def without_prefix(document: Mapping[str, Any]) -> dict[str, Any]:
    """A SentencePiece-like document, without the steps that put "▁" before a text and remove a space from its start."""

    def cut(part: object, unwanted: str) -> object:
        if not isinstance(part, dict):
            return part
        if part.get("type") == unwanted:
            return None
        if part.get("type") == "Metaspace":
            return {**part, "prepend_scheme": "never", "add_prefix_space": False}
        steps = {name: value for name, value in part.items() if name in SEQUENCES and isinstance(value, list)}
        left = {name: [step for step in map(partial(cut, unwanted=unwanted), value) if step is not None]
                for name, value in steps.items()}  # fmt: skip
        return {**part, **left}

    parts = (("normalizer", "Prepend"), ("pre_tokenizer", ""), ("decoder", "Strip"))
    return {**document, **{name: cut(document.get(name), unwanted) for name, unwanted in parts}}


def prefix_of(processor: object) -> list[int]:
    """Ids that a post-processor puts before a text. Raises ValueError for a special token without ids."""
    if not isinstance(processor, dict):
        return []
    match processor.get("type"):
        case "Sequence" if isinstance(processor.get("processors"), list):
            prefixes = [
                prefix_of(inner) for inner in processor["processors"]
                if not (isinstance(inner, dict) and inner.get("type") == "Sequence")  # nested ones don't occur
            ]  # fmt: skip
            return [token_id for prefix in reversed(prefixes) for token_id in prefix]
        case "BertProcessing" | "RobertaProcessing" if isinstance(processor.get("cls"), list):
            return [token_id for token_id in processor["cls"][1:2] if isinstance(token_id, int)]
        case "TemplateProcessing" if isinstance(processor.get("single"), list):
            return _template_prefix(processor["single"], processor.get("special_tokens"))
    return []


def _template_prefix(pieces: list[object], known: object) -> list[int]:
    ids: list[int] = []
    for piece in pieces:
        special = piece.get("SpecialToken") if isinstance(piece, dict) else None
        if not isinstance(special, dict):
            break  # the text itself
        name = special.get("id")
        entry = known.get(name) if isinstance(known, dict) and isinstance(name, str) else None
        given = entry.get("ids") if isinstance(entry, dict) else None
        if not isinstance(given, list) or any(type(token_id) is not int for token_id in given):
            raise ValueError(
                f"a post-processor must know the ids of its special tokens, whole numbers; got {brief(given)} for "
                f"{brief(name)}; use another tokenizer.json"
            )
        ids += given
    return ids


def begin_processor(text: str, token_id: int | None, before_each: bool = False) -> dict[str, Any]:
    """A post-processor that puts a begin token before a text; before_each: before the second text of a pair too."""
    first, second = ([{"Sequence": {"id": name, "type_id": type_id}}] for name, type_id in (("A", 0), ("B", 1)))
    begin, again = ([{"SpecialToken": {"id": text, "type_id": type_id}}] for type_id in (0, 1))
    return {
        "type": "TemplateProcessing",
        "single": begin + first,
        "pair": begin + first + (again if before_each else []) + second,
        "special_tokens": {text: {"id": text, "ids": [token_id], "tokens": [text]}},
    }


def check_growth(*steps: object) -> None:
    """Raise ValueError for consecutive steps that could make a text more than MOST_GROWTH times longer."""
    if math.prod(_growth(step, 0) for step in steps if step is not None) > MOST_GROWTH:
        raise ValueError(
            f"steps of normalizer, pre_tokenizer and decoder must be objects, at most {MOST_STEPS} in a sequence and "
            f"{DEEPEST} sequences inside one another, that make a text at most {MOST_GROWTH} times as long and put at "
            f"most {MOST_PREPENDED} characters before it; got others; use another tokenizer.json"
        )


def _growth(step: object, depth: int) -> float:
    """A bound of how many times longer a step makes a text.

    Judged by a step's keys rather than its type, as `tokenizers` also accepts steps without a type.
    """
    if not isinstance(step, dict) or depth > DEEPEST:  # `tokenizers` also accepts a step as a list of values
        return math.inf
    kind, sequences = step.get("type"), [step[name] for name in SEQUENCES if isinstance(step.get(name), list)]
    inner = [each for sequence in sequences for each in sequence]
    if not (kind is None or isinstance(kind, str)) or len(inner) > MOST_STEPS:
        return math.inf
    growth = math.prod((_growth(each, depth + 1) for each in inner), start=GROWTHS.get(kind, 1.0))
    before, content, pattern = step.get("prepend"), step.get("content"), step.get("pattern")
    if isinstance(before, str):
        growth *= 1 + len(before) if len(before) <= MOST_PREPENDED else math.inf
    if pattern is not None and isinstance(content, str):
        found = pattern.get("String") if isinstance(pattern, dict) else None
        # a regular expression may match the empty text at each character
        growth *= max(1.0, len(content) / len(found)) if isinstance(found, str) and found else 1.0 + len(content)
    if "precompiled_charsmap" in step:
        growth *= _longest_replacement(step["precompiled_charsmap"])
    return growth


def _longest_replacement(charsmap: object) -> int:
    """Length of the longest replacement in SentencePiece's table: a uint32 size, a trie of that size, then texts.

    Each of the texts, which are the replacements, ends with a zero byte.
    """
    try:
        table = base64.b64decode(charsmap)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(
            f"precompiled_charsmap must be in base64; got {brief(charsmap)}; use another tokenizer.json"
        ) from None
    texts = table[4 + int.from_bytes(table[:4], "little") :].decode("utf-8", "replace").split("\0")
    return max(1, max(map(len, texts)))


# Names that nobody can type


def private_names(special: Mapping[str, int]) -> dict[int, str]:
    """Id -> private name of each special token (text -> id)."""
    secret = secrets.token_hex(8)
    # A byte token keeps its name, by which `tokenizers` recognises it.
    return {
        token_id: text if BYTE_TOKEN.fullmatch(text) else f"\ue000{secret}x{token_id}\ue001"
        for text, token_id in special.items()
    }


def renamed(document: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    """The document for encoding plain text: control tokens under private names; no truncation, padding, begin token."""
    added = [{**token, "content": names.get(token["id"], token["content"])} for token in document["added_tokens"]]
    hidden = {token["content"]: names[token["id"]] for token in document["added_tokens"] if token["id"] in names}
    model = dict(document["model"])
    if isinstance(model["vocab"], list):
        model["vocab"] = [[hidden.get(entry[0], entry[0]), entry[1]] for entry in model["vocab"]]
    else:
        model["vocab"] = {hidden.get(text, text): token_id for text, token_id in model["vocab"].items()}
        # so that they get the file's ids; otherwise `tokenizers` would number them itself
        model["vocab"] |= {token["content"]: token["id"] for token in added}
    unknown, prefix = (_option(model, name) for name in ("unk_token", "continuing_subword_prefix"))
    if unknown is not None:
        model["unk_token"] = hidden.get(unknown, unknown)
    if isinstance(model.get("merges"), list):
        model["merges"] = _merges_without(hidden, model["merges"], prefix or "")
    if "dropout" in model:
        model["dropout"] = None
    for token in added:
        if token["special"]:
            token["single_word"] = False  # split_control takes care of that
    return {
        **document, "added_tokens": added, "model": model, "truncation": None, "padding": None, "post_processor": None
    }  # fmt: skip


def _option(model: Mapping[str, Any], name: str) -> str | None:
    """An option of a model that is a text or None. Raises ValueError for another value."""
    value = model.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} must be a text or null; got {brief(value)}; use another tokenizer.json")
    return value


def _merges_without(hidden: Container[str], merges: list[Any], prefix: str) -> list[Any]:
    """The merges, "a b" or ["a", "b"], without those that involve or give a hidden token. Raises ValueError."""
    kept = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not (isinstance(pair[0], str) and isinstance(pair[1], str)):
            raise ValueError(f"a merge must join two tokens; got {brief(merge)}; use another tokenizer.json")
        first, second = pair
        if prefix and not second.startswith(prefix):  # `tokenizers` might cut it within a character
            raise ValueError(
                f"a merge's second token must begin with {brief(prefix)}; got {brief(second)}; use another "
                "tokenizer.json"
            )
        if not (first in hidden or second in hidden or first + second.removeprefix(prefix) in hidden):
            kept.append(merge)
    return kept
