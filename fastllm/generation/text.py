"""From tokens to text, piece by piece, up to a stop string."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .engine import Generation
from .sampling import TokenLogprobs
from .stop import StopStrings

if TYPE_CHECKING:
    from ..tokenizers import Tokenizer


class Piece(NamedTuple):
    """Text that won't change any more, and the tokens read for it.

    tokens         those since the piece before; the text of the last ones may come only with the next piece
    logprobs       of each of them, None if they weren't asked for
    finish_reason  see Completion; None except in the last piece, whose text may be empty
    """

    text: str
    tokens: list[int]
    logprobs: list[TokenLogprobs] | None
    finish_reason: str | None


@dataclass(frozen=True)
class Completion:
    """What follows a prompt.

    text           up to the end token or a stop string, neither of them included; also str(completion)
    tokens         ids, without the end token but with a stop string's tokens, up to the one that completed it
    logprobs       TokenLogprobs of each of them, None if they weren't asked for
    finish_reason  "end" (an end token), "stop" (a stop string) or "length" (max_tokens, or the context is full)
    prompt_tokens  number of tokens of the prompt, a begin token included
    prompt         position of the prompt in the batch
    score          of a beam search hypothesis, otherwise None
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
    """Turns tokens into text, up to a stop string; then `found` is true.

    before  tokens that come before: they decide whether the text begins with a space
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
        """The text that has become certain. An id beyond the tokenizer's vocabulary, as of padding rows, adds none."""
        return self._watch.push(self._stream.push(token)) if token < self._size else ""

    def flush(self) -> str:
        """The text still held back, after the last token."""
        return self._watch.push(self._stream.flush()) + self._watch.flush()


class Reader:
    """Reads the text of a generation as it grows, and closes it when a stop string is complete.

    finish_reason  None while there is more to come
    """

    def __init__(self, generation: Generation, tokenizer: Tokenizer, before: Iterable[int]) -> None:
        self.finish_reason: str | None = None
        self._generation = generation
        self._decoder = Decoder(tokenizer, before, generation.config.stop)
        self._read = self._given = 0  # tokens decoded; tokens that are in a piece

    def read(self) -> Piece | None:
        """The next piece, or None if no new text is certain. Raises the generation's error."""
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
    """The pieces of a text, joined."""
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
