"""From tokens to text, piece by piece, up to a stop string."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .engine import Generation
from .sampling import TokenLogprobs
from .stop import StopStrings

if TYPE_CHECKING:
    from ..tokenizers import Tokenizer


class Piece(NamedTuple):
    """Text that is certain, and the tokens that made it so.

    tokens         those since the piece before; a token may be in the piece before the one that shows its text
    logprobs       of each of them, None if they weren't asked for
    finish_reason  None but for the last piece, of which the text may be empty: see Completion
    """

    text: str
    tokens: list[int]
    logprobs: list[TokenLogprobs] | None
    finish_reason: str | None


@dataclass(frozen=True)
class Completion:
    """What follows a prompt.

    text           up to the end token or a stop string, neither of them included; str(completion) is the text too
    tokens         ids, without an end token; a stop string's tokens are there, up to the one that completed it
    logprobs       TokenLogprobs of each of them, None if they weren't asked for
    finish_reason  "end" (an end token), "stop" (a stop string) or "length" (max_tokens, or the context is full)
    prompt_tokens  number of tokens of the prompt, a begin token included
    prompt         position of its prompt among those of the batch
    score          of a hypothesis of beam search, otherwise None
    """

    text: str
    tokens: list[int]
    logprobs: list[TokenLogprobs] | None
    finish_reason: str
    prompt_tokens: int
    prompt: int = 0
    score: float | None = None

    def __str__(self) -> str:
        return self.text


class Decoder:
    """The text of tokens, up to a stop string; `found` tells that there was one.

    before  tokens of the text that they go on with: these decide about a space between the two
    """

    def __init__(self, tokenizer: Tokenizer, before: Iterable[int], stop: Sequence[str] = ()) -> None:
        self._stream = tokenizer.stream()
        self._size = tokenizer.vocab_size
        for token in before:
            self._stream.push(int(token))
        self._watch = StopStrings(stop)

    @property
    def found(self) -> bool:
        return self._watch.found

    def push(self, token: int) -> str:
        """The text that is certain now. A row of the model's that no token stands for adds nothing."""
        return self._watch.push(self._stream.push(token)) if token < self._size else ""

    def flush(self) -> str:
        """What was still held back when no more tokens come."""
        return self._watch.push(self._stream.flush()) + self._watch.flush()


class Reader:
    """Takes the text from a generation as it grows, and closes it where a stop string is complete.

    finish_reason  None while there is more to come
    """

    def __init__(self, generation: Generation, tokenizer: Tokenizer, before: Iterable[int]) -> None:
        self.finish_reason: str | None = None
        self._generation = generation
        self._decoder = Decoder(tokenizer, before, generation.config.stop)
        self._read = self._given = 0  # tokens decoded; tokens that are in a piece

    def read(self) -> Piece | None:
        """What is new and certain, None if nothing is. Raises the generation's error."""
        generation, decoder = self._generation, self._decoder
        text = ""
        while self._read < len(generation.tokens) and not decoder.found:
            text += decoder.push(generation.tokens[self._read])
            self._read += 1
        if generation.error is not None and not decoder.found:
            raise generation.error
        if generation.finish_reason is not None and not decoder.found:
            text += decoder.flush()
            self.finish_reason = generation.finish_reason
        if decoder.found:
            generation.close()
            self.finish_reason = "stop"
        if not text and self.finish_reason is None:
            return None
        new = slice(self._given, self._read)
        self._given = self._read
        logprobs = None if generation.logprobs is None else generation.logprobs[new]
        return Piece(text, generation.tokens[new], logprobs, self.finish_reason)


def completion(pieces: Sequence[Piece], prompt_tokens: int, prompt: int, score: float | None = None) -> Completion:
    """All pieces of a text, in one."""
    logprobs = None if pieces[0].logprobs is None else [entry for piece in pieces for entry in piece.logprobs or ()]
    return Completion(
        text="".join(piece.text for piece in pieces),
        tokens=[token for piece in pieces for token in piece.tokens],
        logprobs=logprobs,
        finish_reason=pieces[-1].finish_reason or "",
        prompt_tokens=prompt_tokens,
        prompt=prompt,
        score=score,
    )


def decode_pieces(
    tokenizer: Tokenizer, before: Iterable[int], tokens: Iterable[int], stop: Sequence[str] = ()
) -> Iterator[str]:
    """The text of `tokens` in pieces, none of them empty, up to a stop string.

    before  tokens of the text that `tokens` go on with: they decide about a space between the two

    An iterator of tokens is closed with this one.
    """
    decoder = Decoder(tokenizer, before, stop)
    try:
        for token in tokens:
            if piece := decoder.push(token):
                yield piece
            if decoder.found:
                return
        if piece := decoder.flush():
            yield piece
    finally:
        if isinstance(tokens, Generator):
            tokens.close()
