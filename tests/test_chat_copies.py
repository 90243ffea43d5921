"""Copies and pickles of a chat: conversations that begin alike."""

import copy
import pickle

import pytest
from generation_fakes import TableModel

import fastllm
from fastllm.generation import Chat
from fastllm.tokenizers import CharacterTokenizer

TOKENIZER = CharacterTokenizer.build(["abcdefgh?!"])


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda chat: pickle.loads(pickle.dumps(chat))])
def test_a_copy_of_a_chat_goes_its_own_way(copied):
    """Also while an answer is read."""
    model = TableModel(TOKENIZER.vocab_size, context=120, seed=2, scale=0.3)
    options = {"max_tokens": 8, "temperature": 1.0, "end_ids": ()}

    def asked(questions):
        chat = Chat(model, TOKENIZER, **options)
        return ["".join(chat.ask(question)) for question in questions]

    chat = Chat(model, TOKENIZER, **options)
    "".join(chat.ask("a?"))
    answer = chat.ask("b?")
    begun = next(answer)
    other = copied(chat)
    assert other.turns == chat.turns and other.is_cut(other.turns[0])
    "".join(other.ask("d?"))
    assert [question for question, _ in other.turns] == ["a?", "d?"]
    assert begun + "".join(answer) == chat.turns[1][1]
    "".join(chat.ask("c?"))
    assert [text for _, text in chat.turns] == asked(["a?", "b?", "c?"])


def test_a_chat_is_pickled_between_questions(tokenizer):
    model = fastllm.Model(
        fastllm.preset("nano", vocab_size=tokenizer.vocab_size, width=8, layers=1, heads=2, context=32), backend="numpy"
    )
    chat = fastllm.Chat(model, tokenizer, max_tokens=3)
    "".join(chat.ask("the sun"))
    again = pickle.loads(pickle.dumps(chat))
    assert again.turns == chat.turns
    assert "".join(again.ask("a star")) == "".join(chat.ask("a star"))
