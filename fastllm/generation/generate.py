"""Text from a model and a prompt.

    tokens of the prompt -> Engine: prefill -> [sampler -> token -> decode] ... -> text pieces

One text is a batch of one: everything here but beam search runs on the engine (generation/engine.py).

A prompt may fill the model's context but not exceed it, and generation ends when the context is full. (The last token
is not fed back, so N prompt tokens leave context - N + 1 to generate.) A prompt begins with the tokenizer's begin
token if it has one. If not, an empty prompt starts from the end token, which separates texts in training data, as in
GPT-2.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from ..compilation import Uses, helping
from ..errors import ConfigError, DataError
from . import beam
from .config import GenerationConfig, GenerationOptions
from .engine import Engine, Generation, check_one, fit
from .sampling import Sampler
from .text import Completion, Decoder, Piece, Reader, completion

if TYPE_CHECKING:
    from ..model import Model
    from ..tokenizers import Tokenizer


def generate(
    model: Model,
    tokenizer: Tokenizer,
    prompt: str,
    config: GenerationConfig | None = None,
    **options: Unpack[GenerationOptions],
) -> str:
    """The text that follows `prompt` (raw text, without chat roles), up to the end token or a stop string.

    The prompt isn't repeated: `prompt + generate(...)` reads as one text. `options` are fields of GenerationConfig
    and override those of `config`; a field that neither gives takes the model's own default.

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
    model: Model,
    tokenizer: Tokenizer,
    prompt: str,
    config: GenerationConfig | None = None,
    **options: Unpack[GenerationOptions],
) -> Iterator[str]:
    """The text of `generate` in pieces, each as soon as it is certain; with beams > 1, all at the end.

    Arguments and errors as for `generate`; arguments are checked here, not at the first piece.
    """
    pieces = stream_pieces(model, tokenizer, prompt, config, **options)
    return (piece.text for piece in pieces if piece.text)


def stream_pieces(
    model: Model,
    tokenizer: Tokenizer,
    prompt: str,
    config: GenerationConfig | None = None,
    **options: Unpack[GenerationOptions],
) -> Iterator[Piece]:
    """Like `stream`, but with each piece's tokens and their log-probabilities, and finally the reason for the end.

    Closing the iterator frees the text's memory. Raises ConfigError for n > 1, which only `generate_batch` takes.
    """
    config = _resolve(model, tokenizer, config, options)
    check_one(config)
    tokens = encode_prompt(tokenizer, prompt)
    if config.beams > 1:
        return best_beam_pieces(model, tokenizer, *fit(model, tokens, config), config, before=tokens)
    engine = Engine(model, slots=1)
    [generation] = engine.submit(tokens, config)
    return pieces_of(engine, generation, tokenizer, before=tokens)


def pieces_of(engine: Engine, generation: Generation, tokenizer: Tokenizer, before: Iterable[int]) -> Generator[Piece]:
    """The pieces of one of the engine's generations, which is closed together with this.

    before  tokens that come before the text: they decide whether it begins with a space
    """
    reader = Reader(generation, tokenizer, before)
    try:
        while reader.finish_reason is None:
            if piece := reader.read():
                yield piece
            else:
                engine.step()
    finally:
        generation.close()


def generate_batch(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Iterable[str],
    config: GenerationConfig | None = None,
    *,
    slots: int = 8,
    **options: Unpack[GenerationOptions],
) -> list[Completion]:
    """Completions of several prompts of any lengths: n of the first, then n of the second, and so on.

    slots  how many texts are generated side by side, 1 to 32: more take more memory, but less time in all

    Each is the text that `generate` gives for its prompt: neither the other prompts nor `slots` change it. (With
    backend="numpy" this holds up to rounding, which may tip the choice between two tokens.) The first of n samples
    has the random state that `generate` has; the others have random states of their own, derived from the seed. With
    beams > 1 they are the n best hypotheses, of which there may be fewer.

    Arguments and errors as for `generate`; an error in a prompt names its position and is raised before any text is
    generated.

        >>> import fastllm
        >>> tokenizer = fastllm.ByteTokenizer()
        >>> model = fastllm.Model(fastllm.preset("nano", vocab_size=tokenizer.vocab_size), seed=0)
        >>> found = fastllm.generate_batch(model, tokenizer, ["Once", "Twice"], max_tokens=20)
        >>> found[1].text == fastllm.generate(model, tokenizer, "Twice", max_tokens=20)
        True
    """
    return list(completions(model, tokenizer, prompts, config, slots=slots, **options))


def completions(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Iterable[str],
    config: GenerationConfig | None = None,
    *,
    slots: int = 8,
    **options: Unpack[GenerationOptions],
) -> Iterator[Completion]:
    """The completions of `generate_batch` in order, each as soon as it and all before it are complete."""
    if isinstance(prompts, str):
        raise TypeError(f"prompts must be several strings; got the string {prompts!r:.40}; use generate, or a list")
    config = _resolve(model, tokenizer, config, options)
    engine = Engine(model, slots) if config.beams == 1 else None
    encoded, generations = [], []
    for position, prompt in enumerate(prompts):
        try:
            tokens = encode_prompt(tokenizer, prompt)
            if engine:
                generations.append(engine.submit(tokens, config))
            else:
                fit(model, tokens, config)
        except ConfigError:
            raise
        except TypeError as error:
            raise TypeError(f"prompts[{position}]: {error}") from None
        except ValueError as error:
            raise DataError(f"prompts[{position}]: {error}") from None
        encoded.append(tokens)
    if engine is None:
        return (
            found
            for position, tokens in enumerate(encoded)
            for found in _beam_completions(model, tokenizer, tokens, config, position)
        )
    return _run_all(engine, tokenizer, generations, encoded)


def _run_all(
    engine: Engine, tokenizer: Tokenizer, generations: list[list[Generation]], prompts: list[np.ndarray]
) -> Iterator[Completion]:
    prompt_of = {generation: position for position, samples in enumerate(generations) for generation in samples}
    readers: dict[Generation, Reader] = {}
    pieces: dict[Generation, list[Piece]] = {}
    for generation, position in prompt_of.items():
        while generation not in readers or readers[generation].finish_reason is None:
            for changed in engine.step():
                if changed not in readers:
                    readers[changed] = Reader(changed, tokenizer, prompts[prompt_of[changed]])
                if readers[changed].finish_reason is None and (piece := readers[changed].read()):
                    pieces.setdefault(changed, []).append(piece)
        yield completion(pieces.pop(generation), generation.prompt_tokens, position)


def beam_search(
    model: Model,
    tokenizer: Tokenizer,
    prompt: str,
    config: GenerationConfig | None = None,
    **options: Unpack[GenerationOptions],
) -> list[tuple[str, float]]:
    """Up to `beams` continuations of `prompt` with their scores (see generation/beam.py), best first.

    Arguments and errors as for `generate`, but n has no effect. Raises ConfigError for options that beam search
    doesn't take: a temperature, stop strings, log-probabilities.
    """
    asked = {**(config.given if config else {}), **options}
    wrong = [name for name in ("temperature", "stop") if asked.get(name)]
    wrong += ["logprobs"] if asked.get("logprobs") is not None else []
    if wrong:
        raise ConfigError(f"a beam search must go without {', '.join(wrong)}; got {asked[wrong[0]]!r}; use generate")
    resolved = _resolve(model, tokenizer, None, asked | {"n": 1})
    config = GenerationConfig.of(resolved, {"n": resolved.beams})
    found = _beam_completions(model, tokenizer, encode_prompt(tokenizer, prompt), config, 0)
    return [(best.text, best.score or 0.0) for best in found]


def _beam_completions(
    model: Model, tokenizer: Tokenizer, prompt: np.ndarray, config: GenerationConfig, position: int
) -> Iterator[Completion]:
    """The n best hypotheses."""
    for hypothesis in islice(_search(model, *fit(model, prompt, config), config), config.n):
        pieces = list(_hypothesis_pieces(tokenizer, prompt, hypothesis))
        yield completion(pieces, prompt.size, position, hypothesis.score)


def best_beam_pieces(
    model: Model,
    tokenizer: Tokenizer,
    prompt: np.ndarray,
    limit: int,
    config: GenerationConfig,
    before: Iterable[int],
) -> Generator[Piece]:
    """The best hypothesis in pieces; `before` as for pieces_of, `limit` in place of the config's max_tokens."""
    yield from _hypothesis_pieces(tokenizer, before, next(_search(model, prompt, limit, config)))


def _hypothesis_pieces(tokenizer: Tokenizer, before: Iterable[int], hypothesis: beam.Hypothesis) -> Iterator[Piece]:
    decoder = Decoder(tokenizer, before)
    new: list[int] = []
    for token in hypothesis.tokens:
        new.append(token)
        if text := decoder.push(token):
            yield Piece(text, new, None, None)
            new = []
    yield Piece(decoder.flush(), new, None, "end" if hypothesis.ended else "length")


def generate_tokens(
    model: Model,
    tokens: Sequence[int] | np.ndarray,
    config: GenerationConfig | None = None,
    *,
    sampler: Sampler | None = None,
    **options: Unpack[GenerationOptions],
) -> Iterator[int]:
    """The token ids that follow `tokens` (N,), up to one of `end_ids`, which isn't yielded. Ignores stop strings.

    sampler  continues from an earlier call, instead of a new one made from the seed; it chooses by its own config

    Without `end_ids` no token ends the text. Errors as for `generate`, and ConfigError for n > 1; wrong arguments are
    reported here, not at the first token.
    """
    config = GenerationConfig.of(config, options, model.generation_options)
    if config.n > 1:
        raise ConfigError(f"one text is generated here; got n={config.n}; use an Engine, or n=1")
    if config.beams > 1:
        prompt, limit = fit(model, tokens, config)
        best = islice(_search(model, prompt, limit, config), 1)
        return (token for hypothesis in best for token in hypothesis.tokens)
    [generation] = Engine(model, slots=1).submit(tokens, config, sampler)
    return iter(generation)


def _search(model: Model, prompt: np.ndarray, limit: int, config: GenerationConfig) -> Iterator[beam.Hypothesis]:
    """The hypotheses of a beam search, best first; it runs when the first is asked for."""
    with helping(model, Uses(generates=True)):
        found = beam.search(model, prompt, limit, config)
    yield from found


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    """The prompt's tokens (N,) int32 for raw text, N >= 1."""
    tokens = tokenizer.encode(prompt)
    if tokenizer.begin_id is not None:
        return np.insert(tokens, 0, tokenizer.begin_id)
    return tokens if tokens.size else np.array([tokenizer.end_id], np.int32)


def check_kinds(model: object, tokenizer: object) -> None:
    """Raise TypeError unless these are a model and a tokenizer; they are easily swapped."""
    if not hasattr(model, "generation_options") or not hasattr(tokenizer, "tokens"):
        raise TypeError(
            f"the first arguments must be a Model and its Tokenizer; got {type(model).__name__} and "
            f"{type(tokenizer).__name__}; fastllm.load(path) gives both"
        )


def check_vocabulary(model: Model, tokenizer: Tokenizer) -> None:
    """Raise ValueError if the tokenizer's end token is outside the model's vocabulary."""
    if tokenizer.end_id >= model.config.vocab_size:
        raise ValueError(
            f"a tokenizer's end token must be below the model's vocab_size, {model.config.vocab_size}; got "
            f"{tokenizer.end_id}; "
            "use the tokenizer that the model was trained with"
        )


def _resolve(
    model: Model, tokenizer: Tokenizer, config: GenerationConfig | None, options: Mapping[str, Any]
) -> GenerationConfig:
    """What was asked for, completed by the model's defaults and the tokenizer's end token."""
    check_kinds(model, tokenizer)
    config = GenerationConfig.of(config, options, model.generation_options)
    check_vocabulary(model, tokenizer)
    if config.end_ids is None:
        config = GenerationConfig.of(config, {"end_ids": (tokenizer.end_id,)})
    return config
