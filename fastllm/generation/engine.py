"""Several texts at once from one model.

A step of the model for eight rows takes one and a half to three times as long as for one, not eight times: it reads
all weights once either way. So each running text gives its last token to one common step, texts of any length side by
side, without padding:

    step:  decode   one row for each running text, and its drafts -> a token each
           admit    waiting requests take the slots that have become free
           prefill  the next chunk of prompts that aren't read yet, `chunk` tokens in all

A long prompt is read in chunks, so that the other texts go on meanwhile. How it is cut doesn't change its bits. A step
has at most 32 rows, drafts included; up to that number, the bits of a row don't depend on the other rows. So each text,
with a random state of its own, is the same as it would be alone.

Samples of one prompt share it: it is read once, and the cache copies a shared page when a text first writes to it. An
engine that remembers leaves the prompt of an ended text in the cache. A new prompt that begins the same way, such as
the next turn of a chat, is read only from where the two differ. (The generated tokens are read again: decoding and
prefill don't give the same bits.)
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from ..compilation import Uses, helping
from ..config import STEP_ROWS, whole_number
from ..errors import ConfigError, FastllmError
from ..inputs import checked_tokens
from ..interrupts import uninterrupted
from .config import GenerationConfig
from .prompt_lookup import draft
from .sampling import Floats, Sampler, TokenLogprobs, check_bias, token_logprobs

if TYPE_CHECKING:
    from ..model import Model

CHUNK = 256


class Engine:
    """Runs requests through a model, at most `slots` texts at a time; the others wait for their turn.

    slots      1 to 32
    chunk      most tokens of prompts to read in one step, 1 or more
    remembers  whether the prompts of ended texts stay in the cache for later prompts, which costs memory; make a new
               engine after changing the model's weights, with which they were computed

    Raises ValueError for a number out of range, TypeError for anything but a whole number.

    Use it from one thread at a time. Each call of `step` advances all requests.

        >>> import fastllm
        >>> model = fastllm.Model(fastllm.preset("nano", vocab_size=50), seed=0)
        >>> engine = Engine(model)
        >>> [one] = engine.submit([1, 2, 3], GenerationConfig(max_tokens=4))
        >>> two, three = engine.submit([4, 5], GenerationConfig(max_tokens=6, temperature=1.0, n=2))
        >>> while engine.busy:
        ...     for generation in engine.step():
        ...         pass  # generation.tokens has become longer, or generation.finish_reason is known
        >>> len(one.tokens), len(two.tokens), three.finish_reason
        (4, 6, 'length')
    """

    def __init__(self, model: Model, slots: int = 8, chunk: int = CHUNK, remembers: bool = False) -> None:
        slots, chunk = whole_number(slots, "slots"), whole_number(chunk, "chunk")
        if not 1 <= slots <= STEP_ROWS:
            raise ValueError(
                f"slots must be from 1 to {STEP_ROWS}; got {slots}; further requests wait until a slot is free"
            )
        if chunk < 1:
            raise ValueError(f"chunk must be 1 or more; got {chunk}; use {CHUNK}")
        self.model = model
        self.slots = slots
        self.chunk = chunk
        self._cache = model.new_cache(slots=slots)
        self._remembers = remembers
        self._free = {slot: np.empty(0, np.int32) for slot in reversed(range(slots))}  # the prompt left in each
        self._running: list[Generation] = []  # those with a slot
        self._waiting: dict[_Prompt, None] = {}  # those with samples that wait for a slot, in order
        self._heirs: list[Generation] = []  # samples that have just been given a slot, or taken one over
        self._changed: dict[Generation, None] = {}
        self._has_decoded = False  # then all kernels are compiled
        self.is_broken = False  # whether Ctrl-C came while lists and cache disagreed: then it can't go on

    @property
    def busy(self) -> bool:
        """Whether a request is running or waiting."""
        return bool(self._running or self._waiting)

    def submit(
        self, tokens: Sequence[int] | np.ndarray, config: GenerationConfig | None = None, sampler: Sampler | None = None
    ) -> list[Generation]:
        """Submit a request: `config.n` texts that follow tokens (N,). `step` makes them grow.

        config   its `stop` strings are ignored, and `end_ids` None means no end token
        sampler  continues from an earlier request, and chooses by its own config; only for n=1

        Raises ValueError for a prompt that is empty, longer than the context or has ids outside the vocabulary;
        ConfigError for beams, for several samples at temperature 0 or with a sampler, and for a logit_bias of an id
        outside the vocabulary; TypeError for what is no GenerationConfig.
        """
        config = GenerationConfig() if config is None else config
        if not isinstance(config, GenerationConfig):
            raise TypeError(
                f"config must be a GenerationConfig; got {type(config).__name__}; write GenerationConfig(max_tokens=20)"
            )
        if config.beams > 1:
            raise ConfigError(f"beams are searched by beam_search; got beams={config.beams}; use beams=1")
        if sampler is not None:
            check_one(config)
        if config.n > 1 and config.temperature == 0:
            raise ConfigError(
                f"n above 1 needs a temperature above 0, or beams; got n={config.n}, temperature=0, which would give "
                "the same text each time; use temperature=0.8, or beams"
            )
        ids, limit = fit(self.model, tokens, config)
        samplers = [sampler] if sampler else [Sampler(config, sample) for sample in range(config.n)]
        prompt = _Prompt(ids)
        generations = [Generation(self, prompt, limit, config, sampler) for sampler in samplers]
        prompt.waiting.extend(generations)
        self._waiting[prompt] = None
        return generations

    def step(self) -> list[Generation]:
        """Advance all requests; returns those that have new tokens or have ended.

        An interrupted step (Ctrl-C) is undone, and the next call repeats it. This is impossible only in the few
        microseconds in which slots change hands: then the engine `is_broken`, and further steps raise RuntimeError.
        An error in the logits of one request (see Sampler) ends only that request, and is raised where it is iterated.
        """
        if self.is_broken:
            raise RuntimeError(
                "an engine can't go on after an interruption (Ctrl-C, out of memory) while slots change hands; got "
                "one; make a new engine"
            )
        with contextlib.nullcontext() if self._has_decoded else helping(self.model, Uses(generates=True)):
            self._decode()
            self._admit()
            self._prefill()
            self._admit()  # samples of a prompt that has just been read
        changed, self._changed = list(self._changed), {}
        return changed

    def _decode(self) -> None:
        rows = [generation for generation in self._running if generation.tokens]
        if not rows:
            return
        spare = STEP_ROWS - len(rows)
        parts = []
        for i, generation in enumerate(rows):
            drafted = generation._draft(spare // (len(rows) - i))
            spare -= len(drafted)
            parts.append([generation.tokens[-1], *drafted])
        tokens = np.array([token for part in parts for token in part], np.int32)
        slots = np.repeat([generation._slot for generation in rows], [len(part) for part in parts]).astype(np.int32)
        starts = accumulate((len(part) for part in parts), initial=0)
        with self._undone_if_interrupted(rows):
            logits = self.model.decode(tokens, self._cache, slots)
            with uninterrupted():  # no token that was drawn is lost
                for generation, part, start in zip(rows, parts, starts, strict=False):
                    self._accept(generation, part[1:], logits[start : start + len(part)])
        self._has_decoded = True

    def _accept(self, generation: Generation, drafted: list[int], logits: Floats) -> None:
        """Choose a token from each row of logits, up to the first that differs from the draft."""
        right = 0
        for row, guess in zip(logits, [*drafted, None], strict=True):
            if self._choose(generation, row) != guess:
                break
            right += 1
        if drafted and generation.finish_reason is None:
            self._cache.truncate(generation._slot, generation._cached)
            # A wrong guess wastes a row. So the next draft is one longer than the part of this one that was right, or
            # twice as long as this one if all of it was.
            generation._most_drafted = right + 1 if right < len(drafted) else 2 * right

    def _choose(self, generation: Generation, logits: Floats) -> int | None:
        """The next token, None if the text has ended."""
        self._changed[generation] = None
        config = generation.config
        try:
            token = generation._sampler(logits)
            if config.logprobs is not None:
                logprobs = token_logprobs(logits, token, config.logprobs)
        except (FastllmError, ValueError) as error:
            generation.error = error
            self._end(generation, "error")
            return None
        if token in (config.end_ids or ()):
            self._end(generation, "end")
            return None
        generation._append(token)
        if generation.logprobs is not None:
            generation.logprobs.append(logprobs)
        if len(generation.tokens) == generation.limit:
            self._end(generation, "length")
            return None
        return token

    def _admit(self) -> None:
        while self._heirs or self._start():
            generation = self._heirs[-1]
            prompt = generation._prompt
            with uninterrupted():  # no token that was drawn is lost
                if prompt.is_read:
                    assert prompt.logits is not None
                    self._choose(generation, prompt.logits)
                if generation in self._heirs:  # it goes on
                    self._heirs.remove(generation)

    def _start(self) -> bool:
        """Give a free slot to a waiting sample; False if there is no slot or no sample."""
        prompt = next(filter(_Prompt.can_start, self._waiting), None)
        if prompt is None or not self._free:
            return False
        common = {slot: common_length(left, prompt.tokens) for slot, left in self._free.items()}
        slot = max(reversed(common), key=common.__getitem__)
        with self._in_one_go():
            del self._free[slot]
            generation = self._next_sample(prompt, slot)
            if prompt.is_read:
                self._cache.copy(prompt.running[0]._slot, slot)
            else:  # at least the last token is read, for the logits of the next
                prompt.cached = min(common[slot], len(prompt.tokens) - 1)
            self._cache.truncate(slot, prompt.cached)
            prompt.running.append(generation)
            self._heirs.append(generation)
        return True

    def _next_sample(self, prompt: _Prompt, slot: int) -> Generation:
        """The prompt's first waiting sample, which gets the slot."""
        generation = prompt.waiting.popleft()
        if not prompt.waiting:
            del self._waiting[prompt]
        generation._slot = slot
        self._running.append(generation)
        return generation

    def _prefill(self) -> None:
        rows, stretches, room = [], [], self.chunk
        for generation in self._running:
            prompt = generation._prompt
            stretch = prompt.tokens[prompt.cached : prompt.cached + self.chunk]
            if 0 < len(stretch) <= room:
                rows.append(generation)
                stretches.append(stretch)
                room -= len(stretch)
        if not rows:
            return
        starts = np.cumsum([0, *map(len, stretches)], dtype=np.int32)
        slots = np.array([generation._slot for generation in rows], np.int32)
        with self._undone_if_interrupted(rows):
            logits = self.model.prefill(np.concatenate(stretches), starts, self._cache, slots)
            with uninterrupted():
                for generation, stretch, row in zip(rows, stretches, logits, strict=True):
                    prompt = generation._prompt
                    prompt.cached += len(stretch)
                    if prompt.is_read:
                        prompt.logits = row.copy() if prompt.waiting else None
                        self._choose(generation, row)

    @contextlib.contextmanager
    def _in_one_go(self) -> Iterator[None]:
        """A block whose interruption leaves the engine broken."""
        self.is_broken = True
        yield
        self.is_broken = False

    @contextlib.contextmanager
    def _undone_if_interrupted(self, rows: list[Generation]) -> Iterator[None]:
        cached = [generation._prompt.cached for generation in rows]
        try:
            yield
        except BaseException:
            if not self.is_broken:
                with self._in_one_go():
                    for generation, before in zip(rows, cached, strict=True):
                        if generation.finish_reason is None:
                            if not generation.tokens:
                                generation._prompt.cached = before
                            self._cache.truncate(generation._slot, generation._cached)
            raise

    def _end(self, generation: Generation, reason: str) -> None:
        """Free the generation's slot, or let the next sample of its prompt have it."""
        if generation.finish_reason is not None:
            return
        if self.is_broken:
            generation.finish_reason = reason
            return
        with self._in_one_go():
            generation.finish_reason = reason
            self._changed[generation] = None
            self._remove(generation)
            generation._engine = None  # _changed holds it until the next step, which may never come

    def _remove(self, generation: Generation) -> None:
        prompt = generation._prompt
        if generation not in prompt.running:
            prompt.waiting.remove(generation)
            if not prompt.waiting:
                del self._waiting[prompt]
            return
        self._running.remove(generation)
        prompt.running.remove(generation)
        if generation in self._heirs:
            self._heirs.remove(generation)
        if prompt.waiting:
            self._cache.truncate(generation._slot, prompt.cached)
            heir = self._next_sample(prompt, generation._slot)
            prompt.running.append(heir)
            self._heirs.append(heir)
        else:
            if not prompt.running:
                prompt.logits = None
            kept = prompt.cached if self._remembers else 0
            if kept:
                self._cache.truncate(generation._slot, kept)
            else:
                self._cache.release(generation._slot)
            self._free[generation._slot] = prompt.tokens[:kept]


class Generation:
    """A text that an engine generates for a request.

    tokens         ids so far, without the end token
    logprobs       TokenLogprobs of each, None if they weren't asked for
    finish_reason  None while it grows, then "end" (an end token), "length" (max_tokens, or the context is full),
                   "closed" or "error"
    error          what went wrong
    prompt_tokens  number of tokens of the prompt
    limit          most tokens it may have

    Iterating yields the tokens as they come, stepping the engine as needed. Leaving the loop closes the generation.
    """

    def __init__(self, engine: Engine, prompt: _Prompt, limit: int, config: GenerationConfig, sampler: Sampler) -> None:
        self.config = config
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs] | None = None if config.logprobs is None else []
        self.finish_reason: str | None = None
        self.error: Exception | None = None
        self.prompt_tokens = len(prompt.tokens)
        self.limit = limit
        self._engine: Engine | None = engine  # None when it has ended
        self._prompt = prompt
        self._sampler = sampler
        self._slot = -1
        sampler.begin(prompt.tokens)
        self._speculates = config.speculate > 0 and config.temperature == 0
        self._most_drafted = config.speculate
        if self._speculates:
            self._text = np.empty(len(prompt.tokens) + limit, np.int32)
            self._text[: len(prompt.tokens)] = prompt.tokens

    def __iter__(self) -> Iterator[int]:
        read = 0
        try:
            while True:
                while read < len(self.tokens):
                    read += 1
                    yield self.tokens[read - 1]
                if self.finish_reason is not None:
                    break
                assert self._engine is not None
                self._engine.step()
            if self.error is not None:
                raise self.error
        finally:
            self.close()

    def close(self) -> None:
        """End it now and free its slot; does nothing if it has ended."""
        if self._engine is not None:
            self._engine._end(self, "closed")

    @property
    def _cached(self) -> int:
        """Number of its tokens in the cache: all but the last, which is the next step's input."""
        return self._prompt.cached + max(len(self.tokens) - 1, 0)

    def _append(self, token: int) -> None:
        if self._speculates:
            self._text[self.prompt_tokens + len(self.tokens)] = token
        self.tokens.append(token)

    def _draft(self, spare: int) -> list[int]:
        """Guesses at the next tokens, at most `spare`, and no more than the text's limit leaves room for."""
        count = min(self.config.speculate, self._most_drafted, spare, self.limit - len(self.tokens) - 1)
        if not self._speculates or count < 1:
            return []
        return draft(self._text[: self.prompt_tokens + len(self.tokens)], self.config.speculate_ngram, count)


class _Prompt:
    """A prompt, which is read once, and its samples."""

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens
        self.cached = 0  # how many of them have been read
        self.logits: Floats | None = None  # of the next token, kept while samples wait for a slot
        self.waiting: deque[Generation] = deque()
        self.running: list[Generation] = []

    @property
    def is_read(self) -> bool:
        return self.cached == len(self.tokens)

    def can_start(self) -> bool:
        """Whether a waiting sample has something to do: read the prompt, or continue one that has been read."""
        return not self.running or self.is_read


def common_length(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the longest common prefix."""
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    return int(differs.argmax()) if differs.any() else length


def check_one(config: GenerationConfig) -> None:
    """Raise ConfigError where several texts are asked for."""
    if config.n > 1:
        raise ConfigError(f"one text is generated here; got n={config.n}; use generate_batch, or n=1")


def fit(model: Model, tokens: Sequence[int] | np.ndarray, config: GenerationConfig) -> tuple[np.ndarray, int]:
    """The prompt (N,) int32 and how many tokens may follow it. Raises ValueError as Engine.submit."""
    check_bias(config, model.config.vocab_size)
    prompt = np.asarray(tokens)
    if prompt.ndim != 1 or not prompt.size or prompt.dtype.kind not in "iu":
        fix = "give ids, which are whole numbers" if prompt.size else "start an empty text with the end token"
        raise ValueError(
            f"tokens must be one row of at least one token id; got shape {prompt.shape}, {prompt.dtype}; {fix}"
        )
    context = model.config.context
    if prompt.size > context:
        raise ValueError(
            f"a prompt must fit into the model's context of {context} tokens; got {prompt.size}; "
            f"shorten it, for example to its last {context // 2} tokens"
        )
    room = context - prompt.size + 1
    return checked_tokens(model.config, prompt).copy(), min(room, config.max_tokens or room)
