"""A conversation with a model, in the format it was tuned on.

<user> question <assistant> answer <end> <user> question <assistant> ...
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fastllm.dialogue import answer_tokens, question_tokens
from fastllm.generation.config import GenerationConfig
from fastllm.generation.generate import decode_pieces, generate_tokens
from fastllm.generation.sampling import Sampler

if TYPE_CHECKING:
    from fastllm.model import Model
    from fastllm.tokenizers import Tokenizer


class Chat:
    """Asks a model question after question; it sees the earlier turns as far as its context holds them.

    config, options  as for `generate`, for every answer

    `turns` holds each question and its answer as (question, answer). The oldest whole turns are left out of
    the prompt when it would leave less than `max_tokens`, or a quarter of the context if that is less, to
    the answer; they stay in `turns`.

        >>> import fastllm
        >>> tokenizer = fastllm.ByteTokenizer()
        >>> model = fastllm.Model(fastllm.preset("nano", vocab_size=tokenizer.vocab_size), seed=0)
        >>> chat = fastllm.Chat(model, tokenizer, max_tokens=20)
        >>> answer = "".join(chat.ask("How do mountains form?"))
        >>> chat.turns == [("How do mountains form?", answer)]
        True
    """

    def __init__(
        self, model: Model, tokenizer: Tokenizer, config: GenerationConfig | None = None, **options: Any
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = GenerationConfig.of(config, options)
        self.reset()

    def reset(self) -> None:
        """Forget all turns and start again from the seed."""
        self.turns: list[tuple[str, str]] = []
        self._sampler = Sampler(self.config)

    def ask(self, question: str) -> Iterator[str]:
        """The pieces of the answer; the turn joins `turns` when the last is read or the iterator closed.

        Raises ValueError, at once, if the question has no tokens or doesn't fit into the context alone.
        """
        end_ids = [self.tokenizer.end_id, self.tokenizer.user_id]
        tokens = generate_tokens(
            self.model, self.prompt(question), self.config, end_ids=end_ids, sampler=self._sampler
        )
        return self._answer(question, decode_pieces(self.tokenizer, [], tokens, self.config.stop))

    def _answer(self, question: str, pieces: Iterator[str]) -> Iterator[str]:
        answer = ""
        try:
            for piece in pieces:
                answer += piece
                yield piece
        finally:
            self.turns.append((question, answer))

    def prompt(self, question: str) -> list[int]:
        """What the model is given for a question: as many of the last turns as fit, and the question.

        Raises ValueError if the question has no tokens or doesn't fit into the context alone.
        """
        tokenizer, context = self.tokenizer, self.model.config.context
        prompt = question_tokens(tokenizer, question)
        if len(prompt) == 2:
            raise ValueError(f"a question must hold at least one token; got {question!r}. Ask something.")
        if len(prompt) > context:
            raise ValueError(
                f"a question must fit into the model's context of {context} tokens; got {len(prompt)} with "
                "the two that mark the roles; ask a shorter one"
            )
        quarter = context // 4
        room = context - min(quarter, self.config.max_tokens or quarter)
        for earlier, answer in reversed(self.turns):
            turn = question_tokens(tokenizer, earlier) + answer_tokens(tokenizer, answer)
            if len(turn) + len(prompt) > room:
                break
            prompt = turn + prompt
        return prompt
