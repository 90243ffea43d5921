"""A conversation with a model, in the layout that the model was tuned on (see dialogue.py)."""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, Unpack

from ..dialogue import check_speakers, end_ids, prompt_tokens
from ..errors import DataError
from ..tokenizers.base import check_text
from .config import GenerationConfig, GenerationOptions
from .engine import Engine, Generation, check_one, fit
from .generate import best_beam_pieces, check_kinds, check_vocabulary, pieces_of
from .sampling import Sampler
from .text import Piece

if TYPE_CHECKING:
    from ..model import Model
    from ..tokenizers import Tokenizer


class Chat:
    """A conversation: the model sees as many of the earlier turns as its context holds.

    config, options  as for `generate`, for every answer; unless `end_ids` is given, an answer ends at the tokenizer's
                     end tokens and the model's own
    system           the system message, for a tokenizer with a chat template that takes one

    `turns` holds each turn as (question, answer). The oldest turns are left out of the prompt when they would leave
    the answer less room than `max_tokens`, or than a quarter of the context if that is less; they stay in `turns`.
    The system message is never left out.

    An answer that is not read to its end is closed by the next question or by `reset`. Call `reset` after changing the
    model's weights: the cache still holds keys and values computed with the old ones.

    `counts` holds the number of tokens of the last prompt and of its answer, as far as the answer was read.

    Raises DataError for a tokenizer that can't mark who speaks, or for a system message without a chat template;
    ValueError for the tokenizer of another model.

        >>> import fastllm
        >>> tokenizer = fastllm.ByteTokenizer()
        >>> model = fastllm.Model(fastllm.preset("nano", vocab_size=tokenizer.vocab_size), seed=0)
        >>> chat = fastllm.Chat(model, tokenizer, max_tokens=20)
        >>> answer = "".join(chat.ask("How do mountains form?"))
        >>> chat.turns == [("How do mountains form?", answer)]
        True
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        config: GenerationConfig | None = None,
        system: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> None:
        check_kinds(model, tokenizer)
        self.model = model
        self.tokenizer = tokenizer
        check_speakers(tokenizer)
        check_vocabulary(model, tokenizer)
        self._given = GenerationConfig.of(config, options)
        self.config = GenerationConfig.of(self._given, {}, model.generation_options)
        self.system = system
        self._engine: Engine | None = None  # it remembers prompts, as the next one begins like the last
        self._generation: Generation | None = None
        self._asked: weakref.ref[Generator[str]] | None = None  # the last answer; weak, so that dropping it closes it
        self.reset()

    def __repr__(self) -> str:
        return f"<Chat with {self.model!r}: {len(self.turns)} turns>"

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: the conversation without its keys and values; the next question computes them."""
        own = {"turns": self.turns.copy(), "_sampler": copy.deepcopy(self._sampler)}
        return {**self.__dict__, **own, "_engine": None, "_generation": None, "_asked": None}

    @property
    def system(self) -> str | None:
        """The system message, or None."""
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        if text is not None and self.tokenizer.chat_template is None:
            raise DataError(
                "a system message needs a tokenizer with a chat template; got one without; put it into the question"
            )
        if text is not None:
            check_text(text)
        self._system = text

    def reset(self) -> None:
        """Forget all turns and start again from the seed; the system message stays."""
        self._leave()
        self._engine = None
        self.turns: list[tuple[str, str]] = []
        self._cut: list[tuple[str, str]] = []
        self.counts = (0, 0)
        self._sampler = Sampler(self.config)

    def is_cut(self, turn: tuple[str, str]) -> bool:
        """Whether the answer of one of `turns` was cut off, by the limit of tokens or because it was closed."""
        return any(turn is cut for cut in self._cut)

    def change(self, **options: Unpack[GenerationOptions]) -> None:
        """Change options from the next answer on. The random state continues, unless a seed is given.

        Raises ValueError for an invalid option, and then changes nothing.
        """
        given = GenerationConfig.of(self._given, options)
        self.config, self._given = GenerationConfig.of(given, {}, self.model.generation_options), given
        if "seed" in options:
            self._sampler = Sampler(self.config)

    def ask(self, question: str) -> Iterator[str]:
        """An iterator over the pieces of the answer.

        The turn is added to `turns` when the last piece has been read or the iterator is closed, unless it is closed
        before the first piece.

        Raises, at once, ValueError if the question has no tokens, doesn't fit into the context alone, or is refused
        by the chat template; RuntimeError while another thread reads an answer.
        """
        self._leave()
        ends = set(self.config.end_ids or ())
        if self._given.end_ids is None:
            ends |= end_ids(self.tokenizer)
        prompt = self.prompt(question)
        config = GenerationConfig.of(self.config, {"end_ids": tuple(sorted(ends))})
        check_one(config)
        if config.beams > 1:
            pieces = best_beam_pieces(self.model, self.tokenizer, *fit(self.model, prompt, config), config, before=[])
        else:
            if self._engine is None or self._engine.is_broken:
                self._engine = Engine(self.model, slots=1, remembers=True)
            self._sampler.config = config
            [self._generation] = self._engine.submit(prompt, config, self._sampler)
            pieces = pieces_of(self._engine, self._generation, self.tokenizer, before=[])
        self.counts = (len(prompt), 0)
        answer = self._answer(question, pieces)
        self._asked = weakref.ref(answer)
        return answer

    def _leave(self) -> None:
        """Close the last answer; what was read of it becomes a turn."""
        if self._asked is not None and (answer := self._asked()) is not None:
            try:
                answer.close()
            except ValueError:  # the generator is running, in another thread
                raise RuntimeError(
                    "a chat gives one answer at a time; got another call while a thread reads one; close that answer "
                    "first, or use a Chat for each thread"
                ) from None
        if self._generation is not None:  # of an answer that was never read
            self._generation.close()
        self._asked = self._generation = None

    def _answer(self, question: str, pieces: Generator[Piece]) -> Generator[str]:
        answer, finish_reason = "", None
        try:
            with contextlib.closing(pieces):
                for piece in pieces:
                    answer, finish_reason = answer + piece.text, piece.finish_reason
                    self.counts = (self.counts[0], self.counts[1] + len(piece.tokens))
                    if piece.text:
                        yield piece.text
        finally:
            if answer or finish_reason is not None:
                self.turns.append((question, answer))
                if finish_reason not in ("end", "stop"):
                    self._cut.append(self.turns[-1])

    def prompt(self, question: str) -> list[int]:
        """The prompt's tokens for a question: as many of the last turns as fit, and the question.

        Raises ValueError as `ask` does.
        """
        context = self.model.config.context
        if not self.tokenizer.encode(question).size:
            raise ValueError(f"a question must hold at least one token; got {question!r}. Ask something.")
        quarter = context // 4
        room = context - min(quarter, self.config.max_tokens or quarter)
        if self.turns and len(prompt := self._prompt(question, len(self.turns))) <= room:
            return prompt
        prompt = self._prompt(question, 0)
        if len(prompt) > context:
            raise ValueError(
                f"a question must fit into the model's context of {context} tokens; got {len(prompt)} with what "
                f"marks the roles{'' if self.system is None else ' and the system message'}; ask a shorter one"
            )
        fits, too_many = 0, len(self.turns)
        while too_many - fits > 1:  # bisection: more turns make a longer prompt
            tried = (fits + too_many) // 2
            if len(longer := self._prompt(question, tried)) <= room:
                fits, prompt = tried, longer
            else:
                too_many = tried
        return prompt

    def _prompt(self, question: str, turns: int) -> list[int]:
        """The tokens of the system message, the last `turns` turns and the question."""
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for earlier, answer in self.turns[len(self.turns) - turns :]:
            messages += [{"role": "user", "content": earlier}, {"role": "assistant", "content": answer}]
        return prompt_tokens(self.tokenizer, [*messages, {"role": "user", "content": question}])
