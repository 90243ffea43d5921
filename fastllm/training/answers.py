"""How many questions a model answers word for word."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..datasets import NO_TARGET
from ..dialogue import training_sequences
from ..generation import Chat
from ..model import Model
from ..records import Record
from ..tokenizers import Tokenizer


def exact_answers(model: Model, tokenizer: Tokenizer, records: Iterable[Record]) -> tuple[int, int]:
    """In how many dialogues greedy generation gives exactly the last answer, and how many dialogues there are.

    records  as from read_records; texts are ignored

    The prompt is Chat's, after the dialogue's own earlier answers; with a chat template, it has all earlier turns. An
    answer is exact if the model gives all of its tokens and then the token that ends it. It isn't if the question
    doesn't fit into the context, or if the answer contains an unknown word.

    No token is generated. Greedy generation gives the answer if and only if each of the answer's tokens has the largest
    logit after the prompt and the answer's tokens before it, as up to the first wrong token both see the same text. So
    one forward pass over prompt and answer replaces as many steps as the answer has tokens.
    """
    dialogues = [record["messages"] for record in records if "messages" in record]
    return sum(_is_exact(model, tokenizer, messages) for messages in dialogues), len(dialogues)


def _is_exact(model: Model, tokenizer: Tokenizer, messages: list[dict[str, str]]) -> bool:
    if tokenizer.chat_template is not None:
        tokens, said = training_sequences(tokenizer, messages)[-1]
        first = len(said) - next((at for at, mine in enumerate(reversed(said)) if not mine), len(said))
        return _says(model, tokenizer, tokens[:first], tokens[first:])
    *earlier, question, answer = (message["content"] for message in messages)
    if messages[0]["role"] == "system":
        return False
    chat = Chat(model, tokenizer)
    chat.turns = list(zip(earlier[::2], earlier[1::2], strict=True))
    try:
        prompt = chat.prompt(question)
    except ValueError:
        return False
    return _says(model, tokenizer, prompt, [*tokenizer.encode(answer).tolist(), tokenizer.end_id])


def _says(model: Model, tokenizer: Tokenizer, prompt: list[int], reply: list[int]) -> bool:
    """Whether greedy generation gives the reply's tokens after the prompt's."""
    # The last token is exempt: GPT-2's unknown token is also the one that ends a text.
    if tokenizer.unknown_id in reply[:-1] or len(prompt) + len(reply) - 1 > model.config.context:
        return False
    tokens = np.array([*prompt, *reply[:-1]], np.int32)
    targets = np.array([*[NO_TARGET] * (len(prompt) - 1), *reply], np.int32)
    score = model.score(tokens, targets)
    return score.correct == score.targets
