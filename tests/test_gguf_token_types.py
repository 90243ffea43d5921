"""What the types and ids of tokens in a GGUF file say of a byte-level vocabulary."""

import pytest

pytest.importorskip("tokenizers")

from fastllm.tokenizers import tokenizer_from_gguf
from fastllm.tokenizers.sentencepiece import CONTROL, NORMAL, UNUSED, USER_DEFINED

G = "tokenizer.ggml."
TOKENS = ["<stop>", "<start>", "a", "b", "c", "ab", "abc", "<spare>"]
TYPES = [CONTROL, CONTROL, NORMAL, NORMAL, NORMAL, NORMAL, NORMAL, UNUSED]


def opened(types=TYPES, pre="gpt-2", **fields):
    given = {"model": "gpt2", "pre": pre, "tokens": TOKENS, "token_type": types, "merges": ["a b", "ab c"],
             "eos_token_id": 0, "bos_token_id": 1, **fields}  # fmt: skip
    return tokenizer_from_gguf({G + name: value for name, value in given.items()})


def test_an_unused_token_that_merges_need_is_one():
    made = opened(types=[*TYPES[:5], UNUSED, *TYPES[6:]])
    assert made.encode("abcab").tolist() == [6, 5]
    assert (made.tokens[5], made.vocab_size) == ("ab", 7)  # the last, unused, is none


def test_the_ends_of_a_text_are_control_tokens_whatever_their_type():
    made = opened(types=[USER_DEFINED, *TYPES[1:7], USER_DEFINED], eot_token_id=7)
    assert made.control_ids == {0, 1, 7}
    assert made.end_ids == {0, 7}
    assert made.decode([2, 0, 7]) == "a"


@pytest.mark.parametrize(
    ("pre", "fields", "begin_id"),
    [("llama-bpe", {}, 1), ("llama-bpe", {"add_bos_token": False}, None), ("gpt-2", {}, None),
     ("gpt-2", {"add_bos_token": True}, 1)],
)  # fmt: skip
def test_a_model_of_llama_3_begins_texts_unless_its_file_says_otherwise(pre, fields, begin_id):
    assert opened(pre=pre, **fields).begin_id == begin_id
