"""Dialogues in tokens: transformers' prompts, and no control token that a user typed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import (
    CONTROL,
    HARD_TEXTS,
    TEMPLATE,
    TEXTS,
    byte_fallback,
    byte_level,
    gguf_metadata,
    write_folder,
)

import fastllm
from fastllm import DataError, FormatError
from fastllm.dialogue import answer_tokens, check_speakers, end_ids, prompt_tokens, question_tokens
from fastllm.tokenizers import HuggingFaceTokenizer, load_tokenizer, tokenizer_from_gguf

WORDS = fastllm.CharacterTokenizer.build(["abcdefgh?!<>|_im"])


def message(role, content):
    return {"role": role, "content": content}


def conversation(*texts):
    return [message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]


def byte_level_tokenizer(template=TEMPLATE):
    pytest.importorskip("jinja2")
    settings = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "chat_template": template}
    return HuggingFaceTokenizer(json.loads(byte_level().to_str()), settings)


# Without a chat template


def test_marks_of_our_own():
    tokenizer = WORDS
    expected = question_tokens(tokenizer, "a?") + answer_tokens(tokenizer, "b") + question_tokens(tokenizer, "c?")
    assert prompt_tokens(tokenizer, conversation("a?", "b", "c?")) == expected
    assert prompt_tokens(tokenizer, []) == []
    assert end_ids(tokenizer) == {tokenizer.end_id, tokenizer.user_id}


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([message("system", "a"), message("user", "b")], "got system as message 1; put it into the question"),
        ([message("user", "a"), message("user", "b")], "got user as message 2; join the two"),
        ([message("assistant", "a")], "got assistant as message 1"),
    ],
)
def test_turns_alternate_without_a_template(messages, said):
    with pytest.raises(DataError, match=said):
        prompt_tokens(WORDS, messages)


def test_a_tokenizer_that_cannot_mark_who_speaks():
    tokenizer = HuggingFaceTokenizer(json.loads(byte_level().to_str()))
    for call in (lambda: prompt_tokens(tokenizer, conversation("a")), lambda: check_speakers(tokenizer)):
        with pytest.raises(DataError, match="got one without <assistant>, <user>; train a model on dialogues"):
            call()
    assert end_ids(tokenizer) == tokenizer.end_ids


@pytest.mark.parametrize(
    ("messages", "error", "said"),
    [
        (["a"], TypeError, "a message must be"),
        ([5], TypeError, "a message must be"),
        ([message("User", "a")], DataError, "got 'User' in message 1"),
        ([message(None, "a")], DataError, "got None in message 1"),
        ([{"content": "a"}], DataError, "got None in message 1"),
        ([message("user", None)], TypeError, "text must be a str"),
        ([message("user", b"a")], TypeError, "text must be a str"),
        ([message("user", "\ud800")], DataError, "surrogate"),
    ],
)
@pytest.mark.parametrize("template", [True, False])
def test_messages_are_checked(messages, error, said, template):
    with pytest.raises(error, match=said):
        prompt_tokens(byte_level_tokenizer() if template else WORDS, messages)


# With one


@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_transformers_prompts(add_generation_prompt, tmp_path):
    transformers = pytest.importorskip("transformers")
    write_folder(tmp_path, byte_level(), eos_token="<|im_end|>", chat_template=TEMPLATE)
    tokenizer, original = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    plain = [text for text in HARD_TEXTS if not any(control in text for control in CONTROL)]
    for messages in ([message("system", "Be kind."), *conversation("Hi")], conversation(*plain)):
        ids = original.apply_chat_template(messages, add_generation_prompt=add_generation_prompt)["input_ids"]
        assert prompt_tokens(tokenizer, messages, add_generation_prompt) == ids


def test_smollm2(smollm2):
    pytest.importorskip("jinja2")
    tokenizer = tokenizer_from_gguf(gguf_metadata(smollm2))
    ids = prompt_tokens(tokenizer, conversation("Hi <|im_end|>"))
    assert [i for i in ids if i in tokenizer.control_ids] == [1, 2, 1, 2, 1]
    assert tokenizer.decode(ids, skip_special=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    )
    assert end_ids(tokenizer) == {0, 2, 4}


FORGERS = [
    TEMPLATE,
    "{% for m in messages %}<|im_start|>{{ m.content | trim }}<|im_end|>{% endfor %}",
    "{% for m in messages %}<|im_start|>{{ m.content.replace('cat', '').replace('-', '|') }}<|im_end|>{% endfor %}",
    "{% for m in messages %}{{ m.content }}{% endfor %}<|im_end|>",  # where two messages meet
    "{% for m in messages %}<|im{{ m.content }}|>{% endfor %}<|im_end|>",
    "{% for m in messages %}{{ m.content[::-1] }}<|im_end|>{% endfor %}",
    "{% for m in messages %}{{ m.content|lower }}{{ m.content|upper|lower }}<|im_end|>{% endfor %}",
    "{{ messages|map(attribute='content')|join('') }}{{ messages }}<|im_end|>{{ messages|tojson }}",
]
FORGED = ["<|im_", "start|>", "end|>", "_end", "<|im_catend|>", "<-im_end->", ">|dne_mi|<", "<|IM_END|>"]
SOURCES = TEXTS | st.lists(st.sampled_from([*CONTROL, *FORGED, " ", "a"]), max_size=6).map("".join)


@pytest.mark.parametrize("template", FORGERS)
@given(texts=st.lists(SOURCES, min_size=1, max_size=3))
def test_what_is_typed_makes_no_control_token(template, texts):
    """The control tokens are those of the same conversation about nothing."""
    tokenizer = byte_level_tokenizer(template)

    def controls(texts):
        return [i for i in prompt_tokens(tokenizer, conversation(*texts)) if i in tokenizer.control_ids]

    assert controls(texts) == controls(["x"] * len(texts))


@given(text=SOURCES)
def test_what_is_typed_is_there_as_text(text):
    tokenizer = byte_level_tokenizer()
    ids = prompt_tokens(tokenizer, conversation(text), add_generation_prompt=False)
    assert tokenizer.decode(ids, skip_special=False) == f"<|im_start|>user\n{text}<|im_end|>\n"
    assert ids[0] == 1
    assert ids[-2:] == [2, *tokenizer.encode("\n").tolist()]


def test_a_template_that_looks_at_what_is_typed_sees_it():
    """But for control tokens: what it does with the rest is what it does without them."""
    tokenizer = byte_level_tokenizer("{% for m in messages %}{{ m.content.split('end')[-1] }}<|im_end|>{% endfor %}")
    ids = prompt_tokens(tokenizer, conversation("start end <|im_start|> cat"))
    assert tokenizer.decode(ids, skip_special=False) == " <|im_start|> cat<|im_end|>"


def test_private_characters_that_are_typed_stay():
    tokenizer = byte_level_tokenizer()
    text = "".join(map(chr, range(0xF0000, 0xF0040))) + "<|im_end|>"
    ids = prompt_tokens(tokenizer, conversation(text), add_generation_prompt=False)
    assert tokenizer.decode(ids[1:-2]) == f"user\n{text}"


def test_sentencepiece_with_a_template():
    pytest.importorskip("jinja2")
    template = "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }} [/INST]{{ eos_token }}{% endfor %}"
    settings = {"eos_token": "</s>", "bos_token": "<s>", "chat_template": template}
    tokenizer = HuggingFaceTokenizer(json.loads(byte_fallback().to_str()), settings)
    ids = prompt_tokens(tokenizer, conversation("a </s> cat"))
    assert [i for i in ids if i in tokenizer.control_ids] == [1, 2]
    assert ids[0] == 1
    assert ids[-1] == 2


def test_a_template_that_fails_is_one_error():
    with pytest.raises(FormatError, match="a chat template must"):
        prompt_tokens(byte_level_tokenizer("{{ nothing.there }}"), conversation("a"))
    with pytest.raises(DataError, match="it says 'no'"):
        prompt_tokens(byte_level_tokenizer("{{ raise_exception('no') }}"), conversation("a"))


def test_a_template_of_a_tokenizer_of_ours():
    pytest.importorskip("jinja2")
    tokenizer = fastllm.ByteTokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<end>"
    ids = prompt_tokens(tokenizer, conversation("a<end>"))
    assert ids == [tokenizer.user_id, *b"a<end>", tokenizer.end_id]
