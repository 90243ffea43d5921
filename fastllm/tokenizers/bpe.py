"""Byte-level BPE learnt from texts: pairs of tokens that are frequent become one (Sennrich et al. 2015,
arXiv:1508.07909; over bytes, Radford et al. 2019). The package `tokenizers` learns it and encodes with it.

A text is split as GPT-2 splits it, into words with the space before them, numbers, marks and white space; no token
reaches across. As all 256 bytes are tokens, no text is unknown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from reprlib import repr as brief
from typing import Self

from fastllm.errors import DataError
from fastllm.tokenizers.base import ASSISTANT, END, USER, check_text, pieces
from fastllm.tokenizers.byte import BYTES
from fastllm.tokenizers.huggingface import HuggingFaceTokenizer
from fastllm.tokenizers.huggingface_document import BYTE_LEVEL
from fastllm.tokenizers.huggingface_export import house_marks
from fastllm.tokenizers.optional import require

CONTROLS = (END, USER, ASSISTANT)
USUAL_SIZE = 4096
LEAST_SIZE = BYTES + len(CONTROLS)


class BPETokenizer(HuggingFaceTokenizer):
    """A byte-level BPE tokenizer made from texts of one's own. Needs the extra `hf`.

    It is saved as Hugging Face's tokenizer.json, which load_tokenizer opens as a HuggingFaceTokenizer, and transformers
    and `tokenizers` open too.

    >>> tokenizer = BPETokenizer.build(["low lower lowest, new newer newest"] * 2, max_size=280)
    >>> [tokenizer.decode([token]) for token in tokenizer.encode("the newest")]
    ['t', 'h', 'e', ' newest']
    """

    name = "bpe"

    @classmethod
    def build(cls, texts: Iterable[str], max_size: int | None = None, minimum_count: int = 1) -> Self:
        """Learn the most frequent pairs of texts, one after another: ids 0 to 2 are <end>, <user> and <assistant>, then
        come the 256 bytes, then the pairs. The same texts give the same tokens.

        max_size       the largest vocab_size; None for 4,096. It is smaller where the texts have no more pairs
        minimum_count  pairs seen fewer times are left out

        Raises TypeError for anything but strings, DataError for texts without a character, ValueError for a limit out
        of range, FastllmError without the package `tokenizers`.
        """
        if isinstance(texts, str):
            raise TypeError(f"texts must be an iterable of str; got one str {brief(texts)}; pass [text]")
        size = USUAL_SIZE if max_size is None else max_size
        if size < LEAST_SIZE:
            raise ValueError(
                f"max_size must be at least {LEAST_SIZE} for bytes and control tokens; got {max_size}; "
                "raise it or leave it out"
            )
        if minimum_count < 1:
            raise ValueError(f"minimum_count must be 1 or more; got {minimum_count}; leave it out")
        rust = require("tokenizers", "a BPE tokenizer")
        learner = rust.Tokenizer(rust.models.BPE())
        learner.pre_tokenizer = rust.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = rust.trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=minimum_count,
            special_tokens=list(CONTROLS),
            initial_alphabet=rust.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        characters = 0

        def read() -> Iterator[str]:
            nonlocal characters
            for text in texts:
                check_text(text)
                characters += len(text)
                yield from pieces(text)

        learner.train_from_iterator(read(), trainer)
        if not characters:
            raise DataError("texts must hold at least one character; got none; pass more text")
        model = json.loads(learner.to_str())["model"]
        document, settings, ends = house_marks(model, BYTE_LEVEL, BYTE_LEVEL)
        return cls(document, settings, end_ids=ends)
