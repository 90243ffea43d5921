"""Tokenizers in the metadata of GGUF files, under keys that begin with "tokenizer.".

    tokenizer.ggml.model          "gpt2": byte-level BPE; "llama": SentencePiece's BPE
    tokenizer.ggml.tokens         (V,) str
    tokenizer.ggml.token_type     (V,) int: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
    tokenizer.ggml.scores         (V,) float, for "llama"
    tokenizer.ggml.merges         (M,) str "a b", for "gpt2", by priority
    tokenizer.ggml.pre            name of the pre-tokenizer, which splits text before merging: see PRE_TOKENIZERS
    tokenizer.ggml.bos_token_id, eos_token_id, eot_token_id, eom_token_id, unknown_token_id, padding_token_id
    tokenizer.ggml.add_bos_token, add_space_prefix
    tokenizer.chat_template, tokenizer.chat_template.NAME
    tokenizer.chat_templates      names of further templates

The file doesn't say how a pre-tokenizer splits: the table below has llama.cpp's names with the splits in the models'
tokenizer.json. As in llama.cpp, text is not normalised, although tokenizer.json does so (to NFC) for some models, such
as Qwen2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import FormatError
from ..small_files import brief
from .base import END, Tokenizer
from .huggingface import ENDS_OF_TURN, HuggingFaceTokenizer
from .huggingface_decoder import SPACE
from .huggingface_document import (
    BYTE_LEVEL,
    DEFAULT,
    added_token,
    begin_processor,
    bpe_model,
    chat_template_setting,
)
from .sentencepiece import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, SentencePieceTokenizer

PREFIX = "tokenizer.ggml."
TEMPLATE, TEMPLATE_NAMES = "tokenizer.chat_template", "tokenizer.chat_templates"

# Tokens at which llama.cpp ends a text, among them the file marks of code models. END is ours alone.
ENDS = (ENDS_OF_TURN - {END}) | {"<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<reponame>"}

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*%s|\p{{N}}%s|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"


def _splits(*regexes: str) -> list[dict[str, Any]]:
    """Pre-tokenizer steps: split by each regular expression in turn, then map bytes to characters."""
    return [
        *({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False} for regex in regexes),
        {**BYTE_LEVEL, "use_regex": False},
    ]


DIGITS = {"type": "Digits", "individual_digits": True}
SPLITS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [BYTE_LEVEL],
    "smollm": [DIGITS, BYTE_LEVEL],
    "default": _splits(r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "llama-bpe": _splits(CL100K % "{1,3}"),
    "qwen2": _splits(CL100K % ""),
    "tekken": _splits(O200K % ("", "", "")),
    "gpt-4o": _splits(O200K % (CONTRACTION, CONTRACTION, "{1,3}")),
}
ALIKE = {
    "gpt-2": ("phi-2", "mpt", "olmo", "jais"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone"),
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "pixtral", "dbrx", "smaug-bpe"),
    "qwen2": ("stablelm2", "deepseek-r1-qwen", "megrez"),
    "gpt-4o": ("llama4",),
}
PRE_TOKENIZERS: dict[str, str] = {name: name for name in SPLITS} | {
    other: name for name, others in ALIKE.items() for other in others
}
"""Name in GGUF files -> key of SPLITS."""
WHOLE_WORDS = frozenset(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken"))
"""Pre-tokenizers of models that take a word that is a token as it is, whatever the merges (ignore_merges)."""
BEGINS = WHOLE_WORDS
"""Pre-tokenizers of models that expect the begin token before a text unless the file says otherwise."""


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describe.

    metadata  full key, such as "tokenizer.ggml.tokens" -> value, of Python or NumPy; strings may be bytes

    Raises FormatError for metadata that are missing, inconsistent or not supported; FastllmError if the package
    `tokenizers`, which "gpt2" needs, is missing.
    """
    fields = _Fields(metadata)
    kind = fields.text("model")
    try:
        if kind == "gpt2":
            return _byte_level(fields)
        if kind == "llama":
            return _sentencepiece(fields)
    except (TypeError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"a GGUF file's tokenizer must be whole; got an error: {error}") from error
    if kind == "none":
        raise FormatError(
            "the file must hold a tokenizer; got a model without one; use another file (fastllm convert and quantize "
            "read this one with --no-tokenizer)"
        )
    raise FormatError(f"{PREFIX}model must be one of gpt2, llama; got {kind!r:.60}; use a model with one of these")


class _Fields:
    """Metadata whose values are checked when they are read."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata

    def _wrong(self, name: str, rule: str, got: object) -> FormatError:
        return FormatError(f"{PREFIX}{name} must be {rule}; got {brief(got)}; copy the GGUF file again")

    def get(self, name: str) -> Any:
        return self._metadata.get(PREFIX + name)

    def text(self, name: str, default: str | None = None) -> str:
        value = self.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, (str, bytes)):
            raise self._wrong(name, "a text", value)
        return self._decoded(name, value)

    def _decoded(self, name: str, value: str | bytes) -> str:
        try:
            return value if isinstance(value, str) else value.decode()
        except UnicodeDecodeError:
            raise self._wrong(name, "UTF-8", value) from None

    def texts(self, name: str) -> list[str]:
        values = self.get(name)
        if not isinstance(values, (list, tuple, np.ndarray)):
            raise self._wrong(name, "a list of texts", values)
        wrong = next((value for value in values if not isinstance(value, (str, bytes))), None)
        if wrong is not None:
            raise self._wrong(name, "a list of texts", wrong)
        return [self._decoded(name, value) for value in values]

    def numbers(self, name: str, count: int, kinds: str, default: float | None = None) -> list[Any]:
        """A number for each of `count` tokens. kinds: allowed NumPy dtype kinds, such as "iu"."""
        value = self.get(name)
        if value is None and default is not None:
            return [default] * count
        try:
            array = np.asarray(value)
        except (ValueError, OverflowError):  # lists in a list
            array = np.empty(0, object)
        if array.shape != (count,) or (array.dtype.kind not in kinds and count):
            raise self._wrong(name, f"a list of {count} numbers, one for each token", value)
        return array.tolist()

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, (bool, np.bool_)):
            raise self._wrong(name, "true or false", value)
        return bool(value)

    def token_id(self, name: str, count: int) -> int | None:
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
            raise self._wrong(name, f"a token id in 0 .. {count - 1}", value)
        if value in (0xFFFFFFFF, -1):  # some writers' "none"
            return None
        if not 0 <= value < count:
            raise self._wrong(name, f"a token id in 0 .. {count - 1}", value)
        return int(value)

    def templates(self) -> tuple[str | None, dict[str, str]]:
        """The chat template; and all by their names if the file has others too, else {}."""
        found: dict[str, str] = {}
        for key, value in self._metadata.items():
            if key != TEMPLATE and not key.startswith(f"{TEMPLATE}."):
                continue
            if not isinstance(value, (str, bytes)):
                raise FormatError(f"{key} must be a text; got {brief(value)}; copy the GGUF file again")
            if value:  # as in llama.cpp, "" is none
                found[key[len(TEMPLATE) + 1 :] or DEFAULT] = self._decoded(key.removeprefix("tokenizer."), value)
        return found.get(DEFAULT), {} if found.keys() <= {DEFAULT} else found

    def special(self, tokens: list[str]) -> dict[str, int]:
        """Name in chat templates, such as "bos_token" -> id."""
        names = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
                 "pad_token": "padding_token_id"}  # fmt: skip
        ids = {name: self.token_id(key, len(tokens)) for name, key in names.items()}
        return {name: token_id for name, token_id in ids.items() if token_id is not None}

    def ends(self, tokens: list[str]) -> list[int]:
        """Ids besides eos_token_id that end an answer, by key or by text: control tokens, whatever their type."""
        named = (self.token_id(name, len(tokens)) for name in ("eot_token_id", "eom_token_id"))
        called_so = (i for i, token in enumerate(tokens) if token in ENDS)
        return list(dict.fromkeys(i for i in (*named, *called_so) if i is not None))


def _byte_level(fields: _Fields) -> Tokenizer:
    name = fields.text("pre", "default")
    if name not in PRE_TOKENIZERS:
        raise FormatError(
            f"{PREFIX}pre must be one of {', '.join(sorted(PRE_TOKENIZERS))}; got {name!r:.60}; "
            "load the model from its Hugging Face folder, whose tokenizer.json says how to split"
        )
    tokens = fields.texts("tokens")
    types = fields.numbers("token_type", len(tokens), "iu", NORMAL)
    merges = fields.texts("merges")
    special = fields.special(tokens)
    ends = fields.ends(tokens)
    controls = {*special.values(), *ends}
    merged = {part for merge in merges for part in merge.split(" ")}
    vocabulary: dict[str, int] = {}
    added = []
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if not token or (kind == UNUSED and token not in merged):
            continue  # a row of the embedding without a token
        if vocabulary.setdefault(token, i) != i:
            raise ValueError(f"tokens must be distinct; got {brief(token)} at {vocabulary[token]} and {i}; use another")
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) or i in controls:
            added.append(added_token(i, token, kind != USER_DEFINED or i in controls))
    begin = special.get("bos_token") if fields.flag("add_bos_token", name in BEGINS) else None
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": _sequence(SPLITS[PRE_TOKENIZERS[name]]),
        "post_processor": None if begin is None else begin_processor(tokens[begin], begin),
        "decoder": BYTE_LEVEL,
        "model": bpe_model(vocabulary, merges, ignore_merges=name in WHOLE_WORDS),
    }
    settings: dict[str, Any] = {key: tokens[token_id] for key, token_id in special.items() if tokens[token_id]}
    settings["clean_up_tokenization_spaces"] = False
    if (template := chat_template_setting(*fields.templates())) is not None:
        settings["chat_template"] = template
    return HuggingFaceTokenizer(document, settings, end_ids=ends)


def _sequence(steps: list[dict[str, Any]]) -> dict[str, Any]:
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}


def _sentencepiece(fields: _Fields) -> Tokenizer:
    tokens = fields.texts("tokens")
    scores = fields.numbers("scores", len(tokens), "fiu")
    types = fields.numbers("token_type", len(tokens), "iu", NORMAL)
    special = fields.special(tokens)
    if "eos_token" not in special:
        raise FormatError(f"{PREFIX}eos_token_id must be the id that ends a text; got none; use another file")
    template, templates = fields.templates()
    begins = fields.flag("add_bos_token", True)
    ends = fields.ends(tokens)
    for i in ends:
        types[i] = CONTROL
    return SentencePieceTokenizer(
        tokens,
        scores,
        types,
        end_id=special["eos_token"],
        begin_id=special.get("bos_token") if begins else None,
        unknown_id=special.get("unk_token"),
        add_space_prefix=fields.flag("add_space_prefix", True),
        chat_template=template,
        chat_templates=templates,
        special_tokens={name: tokens[token_id] for name, token_id in special.items()},
        end_ids=ends,
    )


def tokenizer_to_gguf(tokenizer: Tokenizer) -> dict[str, Any]:
    """The metadata that describe a tokenizer in a GGUF file, for tokenizer_from_gguf and llama.cpp.

    Raises ValueError for a tokenizer that GGUF can't express: words, characters, bytes, and byte-level BPE with splits
    that are not in SPLITS, or with options that GGUF lacks.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        metadata = _sentencepiece_metadata(tokenizer)
    elif isinstance(tokenizer, HuggingFaceTokenizer):
        metadata = _byte_level_metadata(tokenizer)
    else:
        raise ValueError(
            "a GGUF file must hold a byte-level BPE or SentencePiece tokenizer; "
            f"got one of kind {tokenizer.name!r}; save the model in another format"
        )
    if tokenizer.chat_template is not None:
        metadata[TEMPLATE] = tokenizer.chat_template
    others = {name: text for name, text in tokenizer.chat_templates.items() if name != DEFAULT}
    if others:
        metadata[TEMPLATE_NAMES] = list(others)
        metadata |= {f"{TEMPLATE}.{name}": text for name, text in others.items()}
    return metadata


def _ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """Ids of special tokens under their GGUF keys."""
    keys = {"bos_token": "bos_token_id", "unk_token": "unknown_token_id", "pad_token": "padding_token_id"}
    ids = {PREFIX + key: tokenizer.id_of(text) for name, key in keys.items()
           if (text := tokenizer.special_tokens.get(name)) is not None}  # fmt: skip
    ids[PREFIX + "eos_token_id"] = tokenizer.end_id
    if tokenizer.begin_id is not None:
        ids[PREFIX + "bos_token_id"] = tokenizer.begin_id
    return ids | {PREFIX + "add_bos_token": tokenizer.begin_id is not None}


def _sentencepiece_metadata(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    return {
        PREFIX + "model": "llama",
        PREFIX + "pre": "default",
        PREFIX + "tokens": [
            token if i in tokenizer.control_ids or tokenizer.types[i] == USER_DEFINED else token.replace(" ", SPACE)
            for i, token in enumerate(tokenizer.tokens)
        ],
        PREFIX + "scores": np.array(tokenizer.scores, np.float32),
        PREFIX + "token_type": np.array(tokenizer.types, np.int32),
        PREFIX + "add_space_prefix": tokenizer.add_space_prefix,
        **({} if tokenizer.unknown_id is None else {PREFIX + "unknown_token_id": tokenizer.unknown_id}),
        **_ids(tokenizer),
    }


def pre_tokenizer_name(tokenizer: HuggingFaceTokenizer) -> str:
    """The name in GGUF files (PRE_TOKENIZERS) of how a byte-level BPE splits text.

    Raises ValueError for another kind of model, a split that is not in SPLITS, and what GGUF lacks.
    """
    document, model = tokenizer.document, tokenizer.document["model"]
    pre = document.get("pre_tokenizer")
    steps = pre.get("pretokenizers", [pre]) if isinstance(pre, dict) else []
    whole_words = bool(model.get("ignore_merges"))
    name = next(
        (name for name, known in PRE_TOKENIZERS.items()
         if [*map(_essence, SPLITS[known])] == [*map(_essence, steps)] and whole_words == (name in WHOLE_WORDS)),
        None,
    )  # fmt: skip
    if model.get("type", "BPE") != "BPE" or name is None or (document.get("decoder") or {}).get("type") != "ByteLevel":
        raise ValueError(
            f"a GGUF file must hold byte-level BPE with a split of {', '.join(SPLITS)}; got {brief(pre)} in a "
            f"{model.get('type', 'BPE')} model; save the model in another format"
        )
    if lost := _unsayable(document):
        raise ValueError(f"a GGUF file can't express {lost}; got a tokenizer with it; save the model in another format")
    return name


def _byte_level_metadata(tokenizer: HuggingFaceTokenizer) -> dict[str, Any]:
    name, document = pre_tokenizer_name(tokenizer), tokenizer.document
    merges = document["model"]["merges"]
    types = [NORMAL if token else UNUSED for token in tokenizer.tokens]
    for token in document["added_tokens"]:
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    return {
        PREFIX + "model": "gpt2",
        PREFIX + "pre": name,
        PREFIX + "tokens": [token or f"[PAD{i}]" for i, token in enumerate(tokenizer.tokens)],
        PREFIX + "token_type": np.array(types, np.int32),
        PREFIX + "merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
        **_ids(tokenizer),
    }


def _unsayable(document: Mapping[str, Any]) -> str | None:
    """Something in a tokenizer.json that GGUF lacks and that changes ids; None if there is nothing."""
    normalizer, model = document.get("normalizer"), document["model"]
    if normalizer and normalizer.get("type") != "NFC":  # NFC is left out, as readers do; most texts are NFC
        return f"the normalizer {brief(normalizer)}"
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            return f"{key} = {brief(model[key])}"
    for token in document["added_tokens"]:
        for flag in ("lstrip", "rstrip", "single_word"):
            if token[flag]:
                return f"{flag} of the added token {brief(token['content'])}"
    return None


def _essence(step: object) -> tuple[object, ...]:
    """The fields of a pre-tokenizer step that decide how it splits."""
    if not isinstance(step, dict):
        return (step,)
    pattern = step.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    return (
        step.get("type"),
        regex,
        step.get("behavior"),
        bool(step.get("invert")),
        bool(step.get("individual_digits")),
        bool(step.get("add_prefix_space")),
        step.get("use_regex", True) if step.get("type") == "ByteLevel" else None,
    )
