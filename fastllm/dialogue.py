"""How a dialogue stands in tokens, in training and in chat alike:

    <user> question <assistant> answer <end> <user> question <assistant> answer <end> ...
"""

from __future__ import annotations

from .tokenizers.base import Tokenizer


def question_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """`<user> question <assistant>`: what the model is given."""
    return [tokenizer.user_id, *tokenizer.encode(text).tolist(), tokenizer.assistant_id]


def answer_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """`answer <end>`: what it is to say."""
    return [*tokenizer.encode(text).tolist(), tokenizer.end_id]
