"""Byte-level BPE learnt from texts: the most frequent pairs of tokens are merged (Sennrich et al. 2015,
arXiv:1508.07909; over bytes, Radford et al. 2019). The package `tokenizers` learns it and encodes with it.

Text is first split as in GPT-2, into words with the space before them, numbers, punctuation and white space; no token
crosses these. As all 256 bytes are tokens, no text is unknown.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Self

from ..config import whole_number
from ..errors import DataError
from ..small_files import brief
from .base import ASSISTANT, END, USER, check_text, pieces
from .byte import BYTES
from .huggingface import HuggingFaceTokenizer
from .huggingface_document import BYTE_LEVEL
from .huggingface_export import document_and_settings
from .optional import require

CONTROLS = (END, USER, ASSISTANT)
USUAL_SIZE, USUAL_COUNT = 4096, 2
LEAST_SIZE, MOST_SIZE = BYTES + len(CONTROLS), 1 << 20
LONGEST = 31  # bytes per token: longer ones would be of no use in other texts
# Texts are cut there for learning, whose time grows with the square of a word's length: in scripts without spaces, a
# "word" may be as long as the text.
LONG_RUN = re.compile(r"\S{64}(?=\S)|\s{64}(?=\s)")


class BPETokenizer(HuggingFaceTokenizer):
    """A byte-level BPE tokenizer learnt from your own texts. Needs the extra `hf`.

    It is saved as Hugging Face's tokenizer.json, which load_tokenizer opens as a HuggingFaceTokenizer. save_into and
    fastllm.save also write a chat template, for transformers too.

    >>> tokenizer = BPETokenizer.build(["low lower lowest, new newer newest"] * 2, max_size=280)
    >>> [tokenizer.decode([token]) for token in tokenizer.encode("the newest")]
    ['t', 'h', 'e', ' newest']
    """

    name = "bpe"

    @classmethod
    def build(cls, texts: Iterable[str], max_size: int | None = None, minimum_count: int = USUAL_COUNT) -> Self:
        """Learn a vocabulary from texts: ids 0 to 2 are <end>, <user> and <assistant>, then come the 256 bytes, then
        merged pairs of at most 31 bytes, the most frequent first. The same texts give the same tokens.

        max_size       limit of vocab_size, None for 4,096; fewer are learnt where texts have no more pairs
        minimum_count  pairs seen fewer times are left out; with 1, tokens that occur only once are learnt too

        Raises TypeError for anything but strings, DataError for texts without a character, ValueError for a limit out
        of range, FastllmError without the package `tokenizers`.
        """
        if isinstance(texts, str):
            raise TypeError(f"texts must be an iterable of str; got one str {brief(texts)}; pass [text]")
        size = USUAL_SIZE if max_size is None else max_size
        size, minimum_count = whole_number(size, "max_size"), whole_number(minimum_count, "minimum_count")
        if not LEAST_SIZE <= size <= MOST_SIZE:
            raise ValueError(
                f"max_size must be at least {LEAST_SIZE} for bytes and control tokens, and at most {MOST_SIZE:,}; got "
                f"{max_size}; change it or leave it out"
            )
        if minimum_count < 1:
            raise ValueError(f"minimum_count must be 1 or more; got {minimum_count}; leave it out")
        rust = require("tokenizers", "a BPE tokenizer")
        learner = rust.Tokenizer(rust.models.BPE())
        learner.pre_tokenizer = rust.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = rust.trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=min(minimum_count, 1 << 40),
            max_token_length=LONGEST + 1,  # which a pair stays below
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
                for piece in pieces(text):
                    yield from _without_long_runs(piece)

        _interruptible(lambda: learner.train_from_iterator(read(), trainer))
        if not characters:
            raise DataError("texts must hold at least one character; got none; pass more text")
        model = json.loads(learner.to_str())["model"]
        document, settings, ends = document_and_settings(model, BYTE_LEVEL, BYTE_LEVEL)
        return cls(document, settings, end_ids=ends)


def _interruptible(work: Callable[[], object]) -> None:
    """Call work() in a thread of its own, so that Ctrl-C takes effect at once; `tokenizers` would delay it.

    After Ctrl-C, the thread goes on in the background until it is done or the process ends.
    """
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # errors of the iterable, and panics, which aren't Exceptions
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
    if failures:
        raise failures[0]


def _without_long_runs(text: str) -> Iterator[str]:
    """The text, cut within runs of more than 64 characters without white space, or of white space alone."""
    at = 0
    for run in LONG_RUN.finditer(text):
        yield text[at : run.end()]
        at = run.end()
    yield text[at:]
