"""Tokenizers of published models: Hugging Face's tokenizer.json, encoded by the package `tokenizers`.

The files of a tokenizer in a model's folder:

    tokenizer.json           vocabulary, merges, added tokens, steps that normalise, split and decode
    tokenizer_config.json    which tokens begin and end a text, more added tokens, the chat template
    special_tokens_map.json  the same tokens again, in older folders; if they differ, these count there
    added_tokens.json        ids of tokens added to the vocabulary, in older folders
    chat_template.jinja      the chat template, in newer folders; further ones in additional_chat_templates
    generation_config.json   the tokens that end an answer, if there are several
    vocab.json, merges.txt   GPT-2's vocabulary and merges, in folders without tokenizer.json

Special tokens are in `added_tokens`, and `tokenizers` recognises them in any text. Here no text may become one, so in
memory they get names that nobody can type: a private-use character, a random number, the id. Control tokens are encoded
by these names, and "<|im_end|>" is ordinary text. Ids, splitting, normalisation and decoding are those of the file. Ids
may have gaps, and a model may have more rows than the tokenizer has tokens: an id without a token decodes to "".
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..atomic import write_json, write_text
from ..errors import DataError, FormatError
from ..small_files import MAX_JSON, brief, read_json, read_small
from .base import END, FILE_NAME, TextStream, Tokenizer, check_text
from .huggingface_decoder import HuggingFaceStream, steps_of
from .huggingface_document import (
    BYTE_LEVEL,
    CONFIG,
    DEFAULT,
    NAMED,
    OBJECTS,
    added_tokens,
    begin_processor,
    chat_template_setting,
    chat_templates_of,
    check_growth,
    more_special_tokens,
    prefix_of,
    private_names,
    renamed,
    special_texts,
    text_of,
    tokens_by_id,
    vocabulary_of,
    without_prefix,
)
from .optional import require

ADDED, TEMPLATES = "added_tokens.json", "additional_chat_templates"
SPECIAL_MAP, GENERATION, MODEL_CONFIG = "special_tokens_map.json", "generation_config.json", "config.json"
TEMPLATE, TEMPLATE_JSON = "chat_template.jinja", "chat_template.json"
SENTENCEPIECE = "tokenizer.model"
AGAIN = "copy the file again"
MAX_TOKENIZER = 64 << 20  # bytes of tokenizer.json; Gemma 3's has 33 million
MAX_TEMPLATE = 4 << 16  # bytes: four for each of the MOST_SOURCE characters in chat_template.py
GPT2_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
GPT2_CLASSES, GPT2_WORD = ("GPT2Tokenizer", "GPT2TokenizerFast"), "<|endoftext|>"

ENDS_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", END)
ENDS_OF_TURN = frozenset(
    (
        *ENDS_OF_TEXT,
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|end_of_turn|>",
        "<end_of_turn>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|return|>",
        "<｜end▁of▁sentence｜>",
    )
)
"""Texts of tokens that end an answer. Configurations often name only one of a model's."""

MAKE_THEIR_SPLITTER = (*GPT2_CLASSES, "Qwen2Tokenizer", "Qwen2TokenizerFast")
MAKE_THEIR_STEPS = ("LlamaTokenizer", "LlamaTokenizerFast")
"""Classes of transformers that take from tokenizer_config.json, not tokenizer.json, whether a space goes before a text.
In version 5 some build all steps anew, so that ids differ from those of the file, also by the architecture."""
PAD_LEFT = ("LlamaTokenizer", "CodeLlamaTokenizer", "CohereTokenizer", "GemmaTokenizer")
"""Classes of transformers that pad on the left unless tokenizer_config.json says otherwise."""
OF_THE_FILE = "PreTrainedTokenizerFast"
"""The class of transformers that uses tokenizer.json as it is."""


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json together with the files beside it. Needs the extra `hf`.

    `encode` gives the ids of plain text, without begin or end token; `encode_template` recognises control tokens, as
    transformers does in the output of a chat template. A character that the vocabulary can't express is left out or
    becomes "<unk>", as the file says; byte-level vocabularies with all bytes express every character.

    control_ids  the added tokens marked as special in the files, perhaps "<unk>" among them; decode leaves them out
    """

    name = "huggingface"

    def __init__(
        self,
        document: Mapping[str, Any],
        settings: Mapping[str, Any] | None = None,
        *,
        end_ids: Iterable[int] = (),
    ) -> None:
        """
        document  content of tokenizer.json
        settings  content of tokenizer_config.json: eos_token, bos_token, added_tokens_decoder, chat_template and so on
        end_ids   ids that end an answer, besides eos_token and those in ENDS_OF_TURN

        Raises ValueError or TypeError for invalid or inconsistent content, FastllmError without the package.
        """
        rust = require("tokenizers", "a tokenizer.json, to be opened or written,")
        # auto_map names a Python module.
        self._settings = {key: value for key, value in (settings or {}).items() if key != "auto_map"}
        check_growth(document.get("normalizer"), document.get("pre_tokenizer"))
        check_growth(document.get("decoder"))
        vocabulary = vocabulary_of(document)
        self._added = added_tokens(document, self._settings, vocabulary)
        vocabulary |= {text: entry["id"] for text, entry in self._added.items()}
        tokens = tokens_by_id(vocabulary)
        self._special = {text: token["id"] for text, token in self._added.items() if token["special"]}
        self.end_token = self._end_token()
        super().__init__(tokens, vocabulary)
        self.control_ids = frozenset(self._special.values())
        named = {name: self._settings.get(name) for name in NAMED} | more_special_tokens(self._settings)
        self.special_tokens = {
            name: text for name, value in named.items() if (text := text_of(value, name)) is not None
        }
        unknown = self.special_tokens.get("unk_token")
        self.unknown_id = None if unknown is None else vocabulary.get(unknown)
        self.begin_id = self._begin_id(document)
        self._given_ends = frozenset(end for end in end_ids if end in self.control_ids)
        self.end_ids |= self._given_ends | {i for text, i in self._special.items() if text in ENDS_OF_TURN}
        self.chat_template, self.chat_templates = chat_templates_of(self._settings.get("chat_template"))
        maker, prefix = self._settings.get("tokenizer_class"), self._settings.get("add_prefix_space")
        if maker in MAKE_THEIR_STEPS and prefix is False:
            document = without_prefix(document)
        self.decoder: Mapping[str, Any] | None = document.get("decoder")
        steps_of(self.decoder)  # raises

        effective = {**document, "added_tokens": sorted(self._added.values(), key=lambda token: token["id"])}
        splitter, makes_it = document.get("pre_tokenizer"), maker in MAKE_THEIR_SPLITTER and isinstance(prefix, bool)
        if makes_it and isinstance(splitter, dict) and splitter.get("type") == "ByteLevel":
            effective["pre_tokenizer"] = {**splitter, "add_prefix_space": prefix}
        self._json = json.dumps(effective, ensure_ascii=False)
        self._names = private_names(self._special)
        private = json.dumps(renamed(effective, self._names), ensure_ascii=False)
        with _one_error("a tokenizer.json must be one that `tokenizers` opens", ValueError):
            self._rust = rust.Tokenizer.from_str(private)
            wrong = [
                token for text, token in self._added.items()
                if self._rust.token_to_id(self._names.get(token["id"], text)) != token["id"]
            ]  # fmt: skip
        if wrong:
            raise ValueError(
                f"added tokens must have the ids that follow the vocabulary's; got {brief(wrong[0])}; "
                "use another tokenizer.json"
            )

        # Id -> text that the decoder gets for an added token that the normalizer changes, as in `tokenizers` from 0.23.
        self._normalized = {
            token["id"]: self._rust.id_to_token(token["id"]) for token in self._added.values()
            if token["normalized"] and not token["special"]
        }  # fmt: skip

    @classmethod
    def read(cls, path: str | os.PathLike[str], document: Mapping[str, Any] | None = None) -> Self:
        """Open a model's folder, or the tokenizer.json in one.

        document  content of the file at path, if it has been read already

        Raises FormatError for files that are damaged or of another format, FileNotFoundError, FastllmError without the
        package `tokenizers`.
        """
        path = Path(path)
        folder = path if path.is_dir() else path.parent
        settings = _read_settings(folder)
        file = folder / FILE_NAME if path == folder else path
        if path == folder and not file.is_file():
            document, settings = _read_gpt2(folder, settings)
        else:
            document = document or _read_object(file, MAX_TOKENIZER)
            settings = {**_gpt2_defaults(folder, settings, document), **settings}
        more = _read_object(folder / ADDED) if (folder / ADDED).is_file() else {}
        end_ids = _read_end_ids(folder)
        try:
            if more and "added_tokens_decoder" not in settings:
                document = _with_added(document, more, settings)
            return cls(document, settings, end_ids=end_ids)
        except (TypeError, ValueError) as error:
            raise FormatError(f"{path} is no tokenizer that fastllm can open: {error}") from error

    @classmethod
    def build(cls, texts: Iterable[str], max_size: int | None = None, minimum_count: int = 1) -> Self:
        """Not possible: the vocabulary comes with a model. Raises NotImplementedError."""
        raise NotImplementedError("tokenizers of Hugging Face come with their models; use load_tokenizer(path)")

    def _end_token(self) -> str:
        """The token that ends a text: eos_token of the settings, else the first of ENDS_OF_TEXT that is there."""
        given = text_of(self._settings.get("eos_token"), "eos_token")
        for text in ENDS_OF_TEXT if given is None else (given,):
            if text in self._special:
                return text
        raise ValueError(
            f"a tokenizer must have a token that ends a text; got none among {brief(sorted(self._special))}; "
            f'name it as "eos_token" in {CONFIG}'
        )

    def _begin_id(self, document: Mapping[str, Any]) -> int | None:
        """The id that the post-processor puts before every text, as in transformers; None if it puts none."""
        prefix = prefix_of(document.get("post_processor"))
        if len(prefix) > 1 or not self.control_ids.issuperset(prefix):
            raise ValueError(
                f"a post-processor must put one special token before a text or none; got {prefix!r:.60}; "
                "use another tokenizer.json"
            )
        return prefix[0] if prefix else None

    def _encode(self, text: str) -> NDArray[np.int32]:
        with _one_error("a text must be one that the tokenizer can encode", DataError):
            # `encode` also computes the offset of each token and takes 1.6 times as long. (This one starts threads,
            # which sleep while idle.)
            (encoding,) = self._rust.encode_batch_fast([text], add_special_tokens=False)
            return np.array(encoding.ids, dtype=np.int32)

    def encode_parts(self, parts: Iterable[str | int]) -> NDArray[np.int32]:
        """As Tokenizer.encode_parts, in a single call of _encode if that finds the same control tokens."""
        texts: list[str] = []
        given: list[str | int] = []
        for part in parts:
            if isinstance(part, str):
                check_text(part)
            texts.append(self._names[self._control(part)] if isinstance(part, int) else part)
            given.append(part)
        ids = self._encode("".join(texts))
        controls = [part for part in given if isinstance(part, int)]
        known = set(controls)
        if [token for token in ids.tolist() if token in known] == controls:
            return ids
        return super().encode_parts(given)  # a normalizer changed the private names, which weren't found

    def split_control(self, text: str) -> list[str | int]:
        """As Tokenizer.split_control; added tokens that aren't special stay text."""
        parts = [
            self.tokens[part] if isinstance(part, int) and part not in self.control_ids else part
            for part in super().split_control(text)
        ]
        whole: list[str | int] = []
        for is_text, group in groupby(parts, lambda part: isinstance(part, str)):
            if is_text:
                whole.append("".join(map(str, group)))
            else:
                whole.extend(group)
        return whole

    @cached_property
    def _control_texts(self) -> dict[str, int]:
        return {text: token["id"] for text, token in self._added.items()}

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        def pattern(text: str) -> str:
            return rf"(?<!\w){re.escape(text)}(?!\w)" if self._added[text]["single_word"] else re.escape(text)

        # Added tokens that aren't special count too: `tokenizers` prefers the longer match.
        texts = [t for t, token in self._added.items() if token["special"] or not token["normalized"]]
        return re.compile("|".join(map(pattern, sorted(texts, key=len, reverse=True))) or r"(?!)")

    def stream(self, skip_special: bool = True) -> TextStream:
        return HuggingFaceStream(self, skip_special, steps_of(self.decoder), self._normalized)

    @property
    def document(self) -> dict[str, Any]:
        """The content of tokenizer.json, with all added tokens, as a new dict."""
        return json.loads(self._json)

    def limited(self, size: int) -> HuggingFaceTokenizer:
        """The tokenizer without the added tokens from id `size` on, for a model with `size` rows.

        Raises ValueError or TypeError if it doesn't work without one, such as the end token.
        """
        dropped = {text for text, token in self._added.items() if token["id"] >= size}
        document, settings = self.document, dict(self._settings)
        document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] not in dropped]
        settings.pop("added_tokens_decoder", None)  # the document has them all
        for name, value in self._settings.items():
            if name.endswith("_token") and isinstance(value, (str, dict)) and text_of(value, name) in dropped:
                del settings[name]
        for name in ("additional_special_tokens", *OBJECTS):
            given = settings.get(name)
            if isinstance(given, list):
                settings[name] = [value for value in given if text_of(value, name) not in dropped]
            elif isinstance(given, dict):
                settings[name] = {key: value for key, value in given.items() if text_of(value, name) not in dropped}
        return HuggingFaceTokenizer(document, settings, end_ids=self._given_ends)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write tokenizer.json alone, without begin and end token and chat template. Raises OSError."""
        write_text(path, self._json)

    def save_into(self, folder: str | os.PathLike[str]) -> None:
        """Write tokenizer.json and tokenizer_config.json, for transformers.AutoTokenizer too. Raises OSError."""
        settings = {**self._settings, "tokenizer_class": OF_THE_FILE, "eos_token": self.end_token}
        if str(self._settings.get("tokenizer_class")).removesuffix("Fast") in PAD_LEFT:
            settings.setdefault("padding_side", "left")
        for place in ("name_or_path", "fast_tokenizer_files"):  # the second: other versions of tokenizer.json
            settings.pop(place, None)
        if self._given_ends:
            settings["end_ids"] = sorted(self._given_ends)
        if self.chat_template is not None and not self.chat_templates:  # else the settings have them all
            settings["chat_template"] = self.chat_template
        self.save(Path(folder) / FILE_NAME)
        write_json(Path(folder) / CONFIG, settings, indent=2)


def is_tokenizer_json(document: object) -> bool:
    """Whether a JSON document is Hugging Face's tokenizer.json."""
    model = document.get("model") if isinstance(document, dict) else None
    return isinstance(model, dict) and "vocab" in model


@contextmanager
def _one_error(rule: str, kind: type[Exception]) -> Iterator[None]:
    """Turn any error of `tokenizers` into one of `kind`, even its panics, which aren't Exceptions."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, (kind, MemoryError)) or not (
            isinstance(error, Exception) or type(error).__name__ == "PanicException"
        ):
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        raise kind(f"{rule}; got the error {said!r:.200}; use another file or text") from None


# Files


def _read_object(path: Path, most: int = MAX_JSON) -> dict[str, Any]:
    """The JSON object in a file of at most `most` bytes. Raises FileNotFoundError, FormatError."""
    try:
        return read_json(path, AGAIN, most)
    except FileNotFoundError:
        raise FileNotFoundError(f"a tokenizer must be an existing file; got {path}, which is missing; "
                                "check the path") from None  # fmt: skip


def _read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json with the special tokens and chat templates in the files beside it."""
    settings: dict[str, Any] = _read_object(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if (folder / SPECIAL_MAP).is_file():
        wins = "added_tokens_decoder" not in settings  # as in transformers
        for name, value in _read_object(folder / SPECIAL_MAP).items():
            if settings.get(name) is None or (wins and value and name.endswith("_token")):
                settings[name] = value
    default = folder / TEMPLATE
    if default.is_file() or ("chat_template" not in settings and (folder / TEMPLATES).is_dir()):
        files = {path.stem: path for path in sorted((folder / TEMPLATES).glob("*.jinja"))}
        if default.is_file():
            files[DEFAULT] = default
        named = {name: _read_text(path) for name, path in files.items()}
        settings["chat_template"] = chat_template_setting(named.get(DEFAULT), named)
    if settings.get("chat_template") is None and (folder / TEMPLATE_JSON).is_file():
        settings["chat_template"] = _read_object(folder / TEMPLATE_JSON).get("chat_template")
    return settings


def _read_text(path: Path, most: int = MAX_TEMPLATE) -> str:
    try:
        text = read_small(path, most, AGAIN).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} must be UTF-8; got {error}; {AGAIN}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _with_added(document: Mapping[str, Any], ids: Mapping[str, Any], settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The document with the tokens of added_tokens.json (text -> id) that it lacks; special if the settings name them.

    As in transformers, they get the ids after the document's, in the order of the ids in that file.
    """
    known, special = vocabulary_of(document), set(special_texts(settings))
    for text, token in added_tokens(document, {}, known).items():
        known[text] = token["id"]
    if any(type(token_id) is not int for token_id in ids.values()):
        raise ValueError(f"{ADDED} must map tokens to ids, whole numbers; got {brief(ids)}; copy it again")
    more = [text for text in sorted(ids, key=ids.__getitem__) if text not in known]
    following = max(known.values(), default=-1) + 1
    entries = [{"id": following + i, "content": text, "normalized": text not in special} for i, text in enumerate(more)]
    return {**document, "added_tokens": [*(document.get("added_tokens") or []), *entries]}


def _read_end_ids(folder: Path) -> list[int]:
    """Ids that end an answer, by generation_config.json or by our own key in tokenizer_config.json."""
    ids: list[object] = []
    for name, key in ((GENERATION, "eos_token_id"), (CONFIG, "end_ids")):
        value = _read_object(folder / name).get(key) if (folder / name).is_file() else None
        ids += value if isinstance(value, list) else [value]
    return [value for value in ids if type(value) is int]


def _gpt2_defaults(folder: Path, settings: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, str]:
    """The default bos_token and unk_token of GPT-2's class in transformers, if the folder is of that class, else {}."""
    maker = settings.get("tokenizer_class")
    if maker is None and (folder / MODEL_CONFIG).is_file():
        theirs = _read_object(folder / MODEL_CONFIG)
        maker = theirs.get("tokenizer_class", "GPT2Tokenizer" if theirs.get("model_type") == "gpt2" else None)
    added = document.get("added_tokens")
    has_word = isinstance(added, list) and any(
        isinstance(token, dict) and token.get("content") == GPT2_WORD and token.get("special") is True
        for token in added
    )
    return dict.fromkeys(("bos_token", "unk_token"), GPT2_WORD) if maker in GPT2_CLASSES and has_word else {}


def _read_gpt2(folder: Path, settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Vocabulary and merges as one document, and the settings with GPT-2's end token."""
    for vocabulary, merges in GPT2_FILES:
        if (folder / vocabulary).is_file() and (folder / merges).is_file():
            break
    else:
        if (folder / SENTENCEPIECE).is_file():
            raise FormatError(
                f"{folder} must hold {FILE_NAME}; got {SENTENCEPIECE} alone; write the former with transformers: "
                "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
        raise FileNotFoundError(
            f"a folder must hold {FILE_NAME}, or {' and '.join(GPT2_FILES[0])}; got neither in {folder}; check the "
            "path (fastllm convert and quantize do without a tokenizer: --no-tokenizer)"
        )
    kind = settings.get("tokenizer_class", "GPT2Tokenizer")
    if kind not in GPT2_CLASSES:
        raise FormatError(
            f"{folder}: a tokenizer in {vocabulary} and {merges} alone must be GPT-2's; got {kind!r:.60}; "
            f"add its {FILE_NAME}"
        )
    lines = _read_text(folder / merges, MAX_JSON).split("\n")
    words = dict.fromkeys(("bos_token", "eos_token", "unk_token"), GPT2_WORD) | settings
    vocabulary_ids = _read_object(folder / vocabulary)
    begin = text_of(words["bos_token"], "bos_token") if settings.get("add_bos_token") is True else None
    document: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "post_processor": None if begin is None else begin_processor(begin, vocabulary_ids.get(begin)),
        "pre_tokenizer": {**BYTE_LEVEL, "add_prefix_space": settings.get("add_prefix_space") is True},
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "vocab": vocabulary_ids,
            "merges": [line.rstrip("\r") for line in lines[lines[0].startswith("#version") :] if line.strip()],
        },
    }
    return document, words
