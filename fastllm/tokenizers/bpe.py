"""Byte-level BPE learnt from texts: pairs of tokens that are frequent become one (Sennrich et al. 2015,
arXiv:1508.07909; over bytes, Radford et al. 2019). The package `tokenizers` learns it and encodes with it.

A text is split as GPT-2 splits it, into words with the space before them, numbers, marks and white space; no token
reaches across. As all 256 bytes are tokens, no text is unknown.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from reprlib import repr as brief
from typing import Self

from ..config import whole_number
from ..errors import DataError
from .base import ASSISTANT, END, USER, check_text, pieces
from .byte import BYTES
from .huggingface import HuggingFaceTokenizer
from .huggingface_document import BYTE_LEVEL
from .huggingface_export import house_marks
from .optional import require

CONTROLS = (END, USER, ASSISTANT)
USUAL_SIZE, USUAL_COUNT = 4096, 2
LEAST_SIZE, MOST_SIZE = BYTES + len(CONTROLS), 1 << 20
LONGEST = 31  # bytes of a token: a sentence learnt by heart is of no use in another text
# Learning takes the square of a word's length. Scripts without spaces have words as long as sentences, or texts.
LONG_RUN = re.compile(r"\S{64}(?=\S)|\s{64}(?=\s)")


class BPETokenizer(HuggingFaceTokenizer):
    """A byte-level BPE tokenizer made from texts of one's own. Needs the extra `hf`.

    It is saved as Hugging Face's tokenizer.json, which load_tokenizer opens as a HuggingFaceTokenizer; what save_into
    writes beside it, and fastllm.save with a model, lets transformers chat with it, too.

    >>> tokenizer = BPETokenizer.build(["low lower lowest, new newer newest"] * 2, max_size=280)
    >>> [tokenizer.decode([token]) for token in tokenizer.encode("the newest")]
    ['t', 'h', 'e', ' newest']
    """

    name = "bpe"

    @classmethod
    def build(cls, texts: Iterable[str], max_size: int | None = None, minimum_count: int = USUAL_COUNT) -> Self:
        """Learn the most frequent pairs of texts, one after another: ids 0 to 2 are <end>, <user> and <assistant>, then
        come the 256 bytes, then the pairs, of 31 bytes at most. The same texts give the same tokens.

        max_size       the largest vocab_size; None for 4,096. It is smaller where the texts have no more pairs
        minimum_count  pairs seen fewer times are left out; with 1, tokens that only these very texts need are learnt

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
        document, settings, ends = house_marks(model, BYTE_LEVEL, BYTE_LEVEL)
        return cls(document, settings, end_ids=ends)


def _interruptible(work: Callable[[], object]) -> None:
    """Call work() in a thread of its own, so that Ctrl-C comes meanwhile: `tokenizers` would keep it waiting.

    Interrupted, it goes on unseen until it is done or the process ends.
    """
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # what the texts raise, and panics, which are no Exceptions
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
    if failures:
        raise failures[0]


def _without_long_runs(text: str) -> Iterator[str]:
    """The text, cut where it goes on and on without a space, or with nothing else."""
    at = 0
    for run in LONG_RUN.finditer(text):
        yield text[at : run.end()]
        at = run.end()
    yield text[at:]
