"""llama2.c's tokenizer: SentencePiece's byte-pair encoding with byte fallback, as run.c of
github.com/karpathy/llama2.c does it.

The file, little-endian:

    int32      length of the longest token, in bytes
    a token    float32 score, int32 length, so many bytes of UTF-8; until the file ends

Tokens 0, 1 and 2 are <unk>, <s> (a text begins) and </s> (it ends), 3 .. 258 the bytes, all others pieces of
text, which hold spaces as they are.

Encoding is SentencePiece's (sentencepiece.py), but for one thing: a character that is no piece is bytes at
once and is joined with nothing, even where it is a part of a piece.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from mmap import ACCESS_READ, mmap
from reprlib import repr as brief
from typing import Self

from ..errors import FormatError
from .sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, SentencePieceTokenizer

LONGEST = struct.Struct("<i")
ENTRY = struct.Struct("<fi")

BEGIN_ID, END_ID = 1, 2
FIRST_BYTE = 3
FIRST_PIECE = FIRST_BYTE + 256
FOREIGN = "copy the file again, or pass a tokenizer.bin of llama2.c"
FIXED_TOKENS = ("<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)))


class Llama2cTokenizer(SentencePieceTokenizer):
    """The tokenizer of a llama2.c model; with the bytes to fall back on, no text is unknown.

    A text begins with `begin_id`; llama2.c's models expect it. The space that encoding puts before a text is
    taken away after it, and only there:

        tokenizer.decode([tokenizer.begin_id, *tokenizer.encode(text)]) == text
        tokenizer.decode(tokenizer.encode(text)) == " " + text

    so the text of ids that go on with a prompt keeps the space between the two.

    tokens    FIXED_TOKENS, then pieces of text
    scores    how early a pair is joined into the token: the higher the sooner
    """

    name = "llama2c"
    fields = ("tokens", "scores")
    options = ()
    space = " "
    joins_foreign = False
    strips_start = False

    def __init__(self, tokens: Sequence[str], scores: Sequence[float]) -> None:
        """Raises TypeError or ValueError where they are no such vocabulary."""
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

        Raises FormatError for a file that is truncated or foreign, OSError where it can't be opened.
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
    """Tokens and scores of a tokenizer.bin; ValueError where it is none."""
    if len(data) < LONGEST.size:
        raise ValueError(f"it must have {LONGEST.size} bytes or more; got {len(data)}; {FOREIGN}")
    (longest,) = LONGEST.unpack_from(data)
    tokens: list[str] = []
    scores: list[float] = []
    position = LONGEST.size
    while position < len(data):
        if len(data) - position < ENTRY.size:
            raise ValueError(f"it must end with a token; got {len(data) - position} bytes more; {FOREIGN}")
        score, length = ENTRY.unpack_from(data, position)
        position += ENTRY.size
        most = min(longest, len(data) - position)
        if not 0 < length <= most:
            raise ValueError(f"token {len(tokens)} must have 1 to {most} bytes; got {length}; {FOREIGN}")
        token = data[position : position + length].decode()  # UnicodeDecodeError is a ValueError
        # the export frames <s> and </s> in newlines, to be seen when printed
        tokens.append(token.strip("\n") if token.strip("\n") in FIXED_TOKENS[1:3] else token)
        scores.append(score)
        position += length
    return tokens, scores
