"""llama2.c's tokenizer: SentencePiece's byte-pair encoding with byte fallback, as in run.c of
github.com/karpathy/llama2.c.

The file, little-endian:

    int32      length of the longest token, in bytes
    tokens     float32 score, int32 length in bytes, then UTF-8; to the end of the file

Tokens 0, 1 and 2 are <unk>, <s> (begins a text) and </s> (ends it), 3 .. 258 bytes, the others pieces of text, in which
a space is a space.

Encoding is SentencePiece's (sentencepiece.py) with one difference: a character that is no piece becomes bytes at once
and is never joined, even if it is part of a longer piece.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from mmap import ACCESS_READ, mmap
from typing import Self

from ..errors import FormatError
from ..small_files import brief
from .sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, SentencePieceTokenizer

LONGEST = struct.Struct("<i")
ENTRY = struct.Struct("<fi")

BEGIN_ID, END_ID = 1, 2
FIRST_BYTE = 3
FIRST_PIECE = FIRST_BYTE + 256
FOREIGN = "copy the file again, or pass a tokenizer.bin of llama2.c"
FIXED_TOKENS = ("<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)))


class Llama2cTokenizer(SentencePieceTokenizer):
    """The tokenizer of a llama2.c model; thanks to byte fallback, no text is unknown.

    llama2.c's models expect `begin_id` before a text. Encoding puts a space before a text; decoding removes it after
    `begin_id`, and only there:

        tokenizer.decode([tokenizer.begin_id, *tokenizer.encode(text)]) == text
        tokenizer.decode(tokenizer.encode(text)) == " " + text

    so ids that continue a prompt decode with the space between the two.

    tokens    FIXED_TOKENS, then pieces of text
    scores    priority of joining a pair into the token: the highest first
    """

    name = "llama2c"
    fields = ("tokens", "scores")
    options = ()
    space = " "
    joins_foreign = False
    strips_start = False

    def __init__(self, tokens: Sequence[str], scores: Sequence[float]) -> None:
        """Raises TypeError or ValueError for an invalid vocabulary."""
        if tuple(tokens[:FIRST_PIECE]) != FIXED_TOKENS:
            raise ValueError(
                f"tokens must begin with {', '.join(FIXED_TOKENS[:4])} and the other bytes; "
                f"got {brief(list(tokens[:4]))}; pass a tokenizer.bin of llama2.c"
            )
        types = [UNKNOWN, CONTROL, CONTROL, *(BYTE for _ in range(256)), *(NORMAL for _ in tokens[FIRST_PIECE:])]
        super().__init__(tokens, scores, types, end_id=END_ID, begin_id=BEGIN_ID, unknown_id=0)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Open a tokenizer.bin of llama2.c.

        Raises FormatError for a file that is truncated or of another format, OSError where it can't be opened.
        """
        with open(path, "rb") as file:
            try:
                if os.fstat(file.fileno()).st_size == 0:  # which can't be mapped
                    raise ValueError(f"it must hold tokens; got 0 bytes; {FOREIGN}")
                with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
                    return cls(*_parse(data))
            except ValueError as error:
                raise FormatError(f"{path} is no tokenizer of llama2.c: {error}") from error


def _parse(data: mmap) -> tuple[list[str], list[float]]:
    """Tokens and scores of a tokenizer.bin. Raises ValueError for another file."""
    if len(data) < LONGEST.size:
        raise ValueError(f"it must have {LONGEST.size} bytes or more; got {len(data)}; {FOREIGN}")
    (longest,) = LONGEST.unpack_from(data)
    tokens: list[str] = []
    scores: list[float] = []
    position = LONGEST.size
    while position < len(data):
        if len(data) - position < ENTRY.size:
            raise ValueError(f"it must end with a whole token; got {len(data) - position} bytes more; {FOREIGN}")
        score, length = ENTRY.unpack_from(data, position)
        position += ENTRY.size
        most = min(longest, len(data) - position)
        if not 0 < length <= most:
            raise ValueError(f"token {len(tokens)} must have 1 to {most} bytes; got {length}; {FOREIGN}")
        token = data[position : position + length].decode()  # UnicodeDecodeError is a ValueError
        # exported as "\n<s>\n" and "\n</s>\n"
        tokens.append(token.strip("\n") if token.strip("\n") in FIXED_TOKENS[1:3] else token)
        scores.append(score)
        position += length
    return tokens, scores
