"""Text from a model and a prompt.

    tokens of the prompt -> prefill -> [sampler -> token -> decode] ... -> text pieces

The rules of length: a prompt may fill the context of the model but not exceed it, and generation ends when
the context is full. (The last token is not fed back, so N prompt tokens leave context - N + 1 to generate.)
A prompt begins with the tokenizer's begin token if it has one. Without one, an empty prompt starts from the end
token, which stands between the texts of the training data, as in GPT-2.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastllm.generation import beam
from fastllm.generation.config import GenerationConfig
from fastllm.generation.sampling import Sampler
from fastllm.generation.stop import StopStrings

if TYPE_CHECKING:
    from fastllm.model import Model
    from fastllm.tokenizers import Tokenizer


def generate(
    model: Model, tokenizer: Tokenizer, prompt: str, config: GenerationConfig | None = None, **options: Any
) -> str:
    """The text that follows `prompt` (raw text, without chat roles), up to the end token or a stop string.

    The prompt isn't repeated; `prompt + generate(...)` reads as one text. `options` are the fields of
    GenerationConfig and go before those of `config`.

    Raises ValueError if the prompt exceeds the context or an option is out of range, FastllmError if the
    model's logits aren't finite.

        >>> import fastllm
        >>> tokenizer = fastllm.ByteTokenizer()
        >>> model = fastllm.Model(fastllm.preset("nano", vocab_size=tokenizer.vocab_size), seed=0)
        >>> text = fastllm.generate(model, tokenizer, "Once", max_tokens=20, temperature=1.0, seed=3)
        >>> text == "".join(fastllm.stream(model, tokenizer, "Once", max_tokens=20, temperature=1.0, seed=3))
        True
    """
    return "".join(stream(model, tokenizer, prompt, config, **options))


def stream(
    model: Model, tokenizer: Tokenizer, prompt: str, config: GenerationConfig | None = None, **options: Any
) -> Iterator[str]:
    """The pieces of `generate`'s text, each as soon as it is certain; with beams > 1, all at the end.

    Arguments and errors as for `generate`; they are checked here, not at the first piece.
    """
    config = GenerationConfig.of(config, options)
    prompt_tokens = _encode(tokenizer, prompt)
    tokens = generate_tokens(model, prompt_tokens, config, end_ids=[tokenizer.end_id])
    return decode_pieces(tokenizer, prompt_tokens, tokens, config.stop)


def beam_search(
    model: Model, tokenizer: Tokenizer, prompt: str, config: GenerationConfig | None = None, **options: Any
) -> list[tuple[str, float]]:
    """Up to `beams` continuations of `prompt` with their scores (see generation/beam.py), best first.

    Arguments and errors as for `generate`.
    """
    config = GenerationConfig.of(config, options)
    prompt_tokens = _encode(tokenizer, prompt)
    return [
        ("".join(decode_pieces(tokenizer, prompt_tokens, tokens)), score)
        for tokens, score in beam.search(
            model, *_fit(model, prompt_tokens, config), config, end_ids=[tokenizer.end_id]
        )
    ]


def generate_tokens(
    model: Model,
    tokens: Sequence[int] | np.ndarray,
    config: GenerationConfig | None = None,
    *,
    end_ids: Collection[int] = (),
    sampler: Sampler | None = None,
    **options: Any,
) -> Iterator[int]:
    """The token ids that follow `tokens` (N,), up to one of `end_ids`, which isn't yielded. No stop strings.

    sampler  one that goes on from an earlier call, in place of a new one from the seed

    Errors as for `generate`; they are raised here, not at the first token.
    """
    config = GenerationConfig.of(config, options)
    prompt, limit = _fit(model, tokens, config)
    if config.beams > 1:
        return _best_beam(model, prompt, limit, config, end_ids)
    return _sample(model, prompt, limit, sampler or Sampler(config), end_ids)


def decode_pieces(
    tokenizer: Tokenizer, before: Iterable[int], tokens: Iterable[int], stop: Sequence[str] = ()
) -> Iterator[str]:
    """The text of `tokens` in pieces, none of them empty, up to a stop string.

    before  tokens of the text that `tokens` go on with: they decide about a space between the two
    """
    decoder = tokenizer.stream()
    for token in before:
        decoder.push(int(token))
    watch = StopStrings(stop)
    for token in tokens:
        if piece := watch.push(decoder.push(token)):
            yield piece
        if watch.found:
            return
    if piece := watch.push(decoder.flush()) + watch.flush():
        yield piece


def _encode(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    tokens = tokenizer.encode(prompt)
    if tokenizer.begin_id is not None:
        return np.insert(tokens, 0, tokenizer.begin_id)
    return tokens if tokens.size else np.array([tokenizer.end_id], np.int32)


def _fit(
    model: Model, tokens: Sequence[int] | np.ndarray, config: GenerationConfig
) -> tuple[np.ndarray, int]:
    """The prompt as an array and how many tokens may follow it."""
    prompt = np.asarray(tokens)
    if prompt.ndim != 1 or not prompt.size or prompt.dtype.kind not in "iu":
        raise ValueError(
            f"tokens must be one row of at least one token id; got shape {prompt.shape}, {prompt.dtype}; "
            "start an empty text with the end token"
        )
    context = model.config.context
    if prompt.size > context:
        raise ValueError(
            f"a prompt must fit into the model's context of {context} tokens; got {prompt.size}; "
            f"shorten it, for example to its last {context // 2} tokens"
        )
    room = context - prompt.size + 1
    return prompt.astype(np.int32), min(room, config.max_tokens or room)


def _sample(
    model: Model, prompt: np.ndarray, limit: int, sampler: Sampler, end_ids: Collection[int]
) -> Iterator[int]:
    cache = model.new_cache()
    logits = model.prefill(prompt, np.array([0, prompt.size], np.int32), cache)
    for remaining in reversed(range(limit)):
        token = sampler(logits[0])
        if token in end_ids:
            return
        yield token
        if remaining:
            logits = model.decode(np.array([token], np.int32), cache)


def _best_beam(
    model: Model, prompt: np.ndarray, limit: int, config: GenerationConfig, end_ids: Collection[int]
) -> Iterator[int]:
    yield from beam.search(model, prompt, limit, config, end_ids)[0].tokens
