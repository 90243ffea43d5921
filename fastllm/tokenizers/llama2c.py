"""llama2.c's tokenizer: SentencePiece's byte-pair encoding with byte fallback, as run.c of
github.com/karpathy/llama2.c does it.

The file, little-endian:

    int32      length of the longest token, in bytes
    a token    float32 score, int32 length, so many bytes of UTF-8; until the file ends

Tokens 0, 1 and 2 are <unk>, <s> (a text begins) and </s> (it ends), 3 .. 258 the bytes, all others pieces of
text.

Encoding puts a space before the text and cuts it into characters; one that is no piece becomes its bytes of
UTF-8. Then, of all neighbours whose union is a piece, the pair whose union scores best is joined, of equals
the leftmost, until there is none.
"""

from __future__ import annotations

import heapq
import os
import struct
import sys
from collections.abc import Iterable, Sequence
from mmap import ACCESS_READ, mmap
from reprlib import repr as brief
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fastllm.errors import FormatError
from fastllm.tokenizers.base import TextStream, Tokenizer
from fastllm.tokenizers.byte import ByteStream

LONGEST = struct.Struct("<i")
ENTRY = struct.Struct("<fi")

BEGIN_ID = 1
FIRST_BYTE = 3
FIRST_PIECE = FIRST_BYTE + 256
FOREIGN = "copy the file again, or pass a tokenizer.bin of llama2.c"
FIXED_TOKENS = ("<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)))


class Llama2cTokenizer(Tokenizer):
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
    end_token = "</s>"
    begin_id = BEGIN_ID

    def __init__(self, tokens: Sequence[str], scores: Sequence[float]) -> None:
        """Raises TypeError or ValueError where they are no such vocabulary."""
        if tuple(tokens[:FIRST_PIECE]) != FIXED_TOKENS:
            raise ValueError(
                f"tokens must begin with {', '.join(FIXED_TOKENS[:4])} and the other bytes; "
                f"got {brief(list(tokens[:4]))}; pass a tokenizer.bin of llama2.c"
            )
        finite = sum(isinstance(score, (int, float)) and abs(score) <= sys.float_info.max for score in scores)
        if not len(tokens) == len(scores) == finite:
            raise ValueError(
                f"each of the {len(tokens)} tokens must have a finite score; got {len(scores)} scores, "
                f"{finite} of them finite numbers; pass an undamaged tokenizer.bin"
            )
        super().__init__(tokens)
        self.scores = list(scores)
        self.control_ids = frozenset((BEGIN_ID, self.end_id))
        self._pieces = {token: FIRST_PIECE + i for i, token in enumerate(self.tokens[FIRST_PIECE:])}

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

    @classmethod
    def build(cls, texts: Iterable[str], max_size: int | None = None, minimum_count: int = 1) -> Self:
        """Not possible: the vocabulary comes with a model. Raises NotImplementedError."""
        raise NotImplementedError("llama2.c's tokenizers come with their models; use read(path)")

    def _encode(self, text: str) -> NDArray[np.int32]:
        ids: list[int] = []
        for character in " " + text if text else "":
            piece = self._pieces.get(character)
            ids += [piece] if piece is not None else [FIRST_BYTE + byte for byte in character.encode()]
        return np.array(self._join(ids), dtype=np.int32)

    def _join(self, ids: list[int]) -> list[int]:
        """Join neighbours into pieces, best score first; ids is used up.

        A heap of candidate pairs, so the time is n log n; run.c looks at all pairs again for each join.
        """
        nothing = -1  # in the place of an id that its left neighbour has taken in
        before = list(range(-1, len(ids) - 1))
        after = list(range(1, len(ids) + 1))
        candidates: list[tuple[float, int, int, int, int, int]] = []

        def consider(left: int, right: int) -> None:
            if left < 0 or right >= len(ids) or min(ids[left], ids[right]) < FIRST_PIECE:
                return  # an end of the text, or a byte: its name is not its text
            union = self._pieces.get(self.tokens[ids[left]] + self.tokens[ids[right]])
            if union is not None:
                heapq.heappush(candidates, (-self.scores[union], left, right, ids[left], ids[right], union))

        for left in range(len(ids) - 1):
            consider(left, left + 1)
        while candidates:
            _, left, right, left_id, right_id, union = heapq.heappop(candidates)
            if (ids[left], ids[right]) != (left_id, right_id):
                continue  # one of them has been joined to something else meanwhile
            ids[left], ids[right] = union, nothing
            after[left] = after[right]
            if after[left] < len(ids):
                before[after[left]] = left
            consider(before[left], left)
            consider(left, after[left])
        return [token_id for token_id in ids if token_id != nothing]

    def stream(self, skip_special: bool = True) -> TextStream:
        return Llama2cStream(self, skip_special)


class Llama2cStream(ByteStream):
    """Holds the bytes of a character back until it is whole; leaves out the space a text begins with."""

    _begins = False  # whether the last id was <s>

    def push(self, token_id: int) -> str:
        text = super().push(token_id)
        self._begins = token_id == BEGIN_ID
        return text

    def _text(self, token_id: int) -> str:
        if FIRST_BYTE <= token_id < FIRST_PIECE:
            return self._decoder.decode(bytes((token_id - FIRST_BYTE,)))
        token = self._tokens[token_id]
        return self.flush() + (token.removeprefix(" ") if self._begins else token)


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
