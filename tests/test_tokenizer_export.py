"""Tokenizers as a tokenizer.json and back: the same ids, by `tokenizers`, transformers and ourselves."""

import functools
import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tokenizers")

from tiny_tokenizers import byte_level

from fastllm.dialogue import end_ids, prompt_tokens
from fastllm.tokenizers import (
    ByteTokenizer,
    CharacterTokenizer,
    HuggingFaceTokenizer,
    Llama2cTokenizer,
    SentencePieceTokenizer,
    WordTokenizer,
    load_tokenizer,
    tokenizer_from_gguf,
    tokenizer_to_gguf,
)
from fastllm.tokenizers.huggingface_export import WHITE_SPACE, to_huggingface
from fastllm.tokenizers.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from fastllm.tokenizers.sentencepiece_json import (
    HARD_TEXTS,
    sentencepiece_from_huggingface,
    sentencepiece_to_huggingface,
)

TEXT = "Don't say: The  dogs' tails\nare 3.14 cm long, (isn't it?) <user> é ß 日本 ▁"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# In which pairs join in many ways; all characters are pieces.
PIECES = {
    "▁": -60, "a": -61, "b": -62, "c": -63, "é": -64, "日": -65, "本": -66, "<": -67, "s": -68, ">": -69, "=": -70,
    "ab": -1, "bc": -2, "abc": -3, "▁a": -4, "▁ab": -5, "aa": -6, "aaa": -7, "cc": -8, "éa": 0, "日本": -9,
    "▁▁": -10, "▁▁▁": -11, "▁▁▁▁": -12, "==": -13, "====": -14, "<s": -15, "ba": -16, "▁s": -17, "aba": -18,
}  # fmt: skip
ALPHABET = "aaabbcc é日本<>s=\n▁xß0"
TEXTS = st.text() | st.text(st.sampled_from(ALPHABET)) | st.sampled_from(HARD_TEXTS)


def sentencepiece(pieces=PIECES, defined=(), **options):
    tokens = ["<unk>", "<s>", "</s>", *BYTES, *pieces, *defined, "<|end|>", ""]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(pieces), *[USER_DEFINED] * len(defined), CONTROL]
    scores = [0.0] * 259 + [float(score) for score in pieces.values()] + [0.0] * (len(defined) + 2)
    given = {"end_id": 2, "begin_id": 1, "unknown_id": 0, "chat_template": "{{ bos_token }}x"}
    return SentencePieceTokenizer(
        tokens, scores, [*types, UNUSED], **given | {"special_tokens": {"bos_token": "<s>"}} | options
    )


@functools.cache
def pair(name):
    """A tokenizer and what becomes of it."""
    tokenizer = {
        "byte": ByteTokenizer,
        "character": lambda: CharacterTokenizer.build([TEXT]),
        "word": lambda: WordTokenizer.build([TEXT]),
        "sentencepiece": sentencepiece,
        "no prefix": lambda: sentencepiece(add_space_prefix=False, begin_id=None),
        "user-defined": lambda: sentencepiece(defined=("<user>", "<user>x", " = ", "[.*]")),
    }[name]()
    return tokenizer, to_huggingface(tokenizer)


NAMES = ("byte", "character", "word", "sentencepiece", "no prefix", "user-defined")


@pytest.mark.parametrize("name", NAMES)
@given(text=TEXTS | st.lists(st.sampled_from(["<user>", "<user>x", "= = ", "[.*]", " ", "a", "s"])).map("".join))
def test_the_ids_are_the_same(name, text):
    tokenizer, theirs = pair(name)
    ids = tokenizer.encode(text)
    assert theirs.encode(text).tolist() == ids.tolist()
    if name != "word":  # which has a space between any two
        assert theirs.decode(ids) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", NAMES)
def test_what_belongs_to_it_comes_along(name, tmp_path):
    tokenizer, theirs = pair(name)
    theirs.save_into(tmp_path)
    opened = load_tokenizer(tmp_path)
    assert isinstance(opened, HuggingFaceTokenizer)
    assert (opened.begin_id, opened.end_id) == (tokenizer.begin_id, tokenizer.end_id)
    assert end_ids(tokenizer) <= opened.end_ids
    assert tokenizer.control_ids <= opened.control_ids
    assert opened.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
    if tokenizer.chat_template is not None:
        assert opened.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level"])
@pytest.mark.parametrize("default", ["D", None])
def test_named_chat_templates_come_along_everywhere(kind, default, tmp_path):
    others = {"tool_use": "T", "rag": "{{ messages }}"}
    templates = others if default is None else {"default": default, **others}
    if kind == "sentencepiece":
        tokenizer = sentencepiece(chat_template=default, chat_templates=templates)
    else:
        given = [{"name": name, "template": text} for name, text in templates.items()]
        tokenizer = HuggingFaceTokenizer(json.loads(byte_level().to_str()), {"chat_template": given})
    metadata = tokenizer_to_gguf(tokenizer)  # under the keys of gguf.GGUFWriter.add_chat_template
    assert {key: value for key, value in metadata.items() if "chat_template" in key} == {
        **({} if default is None else {"tokenizer.chat_template": default}),
        "tokenizer.chat_templates": ["tool_use", "rag"],
        "tokenizer.chat_template.tool_use": "T",
        "tokenizer.chat_template.rag": "{{ messages }}",
    }
    theirs = to_huggingface(tokenizer)
    for name, each in (("own", tokenizer), ("theirs", theirs)):
        (tmp_path / name).mkdir()
        each.save_into(tmp_path / name)
    forms = [tokenizer_from_gguf(metadata), theirs, *map(load_tokenizer, (tmp_path / "own", tmp_path / "theirs"))]
    if kind == "sentencepiece":
        forms.append(sentencepiece_from_huggingface(theirs))
    for form in forms:
        assert (form.chat_template, form.chat_templates) == (default, templates)
    transformers = pytest.importorskip("transformers")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs").chat_template == templates


@pytest.mark.parametrize("name", NAMES)
def test_transformers_opens_it(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer, theirs = pair(name)
    theirs.save_into(tmp_path)
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path)
    begin = [] if tokenizer.begin_id is None else [tokenizer.begin_id]
    texts = [text for text in HARD_TEXTS if "<s>" not in text]  # which transformers takes for the token
    for text in (*texts, "a ab  abc", " a", "x", "a▁b"):
        assert opened(text)["input_ids"] == begin + tokenizer.encode(text).tolist(), text
    assert opened.decode(tokenizer.encode("ab ab")) == tokenizer.decode(tokenizer.encode("ab ab"))
    assert opened.eos_token_id == tokenizer.end_id
    assert len(opened) == len([token for token in tokenizer.tokens if token])


@pytest.mark.parametrize("name", ["byte", "character", "word"])
def test_a_dialogue_is_laid_out_as_ours(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("jinja2")
    tokenizer, theirs = pair(name)
    theirs.save_into(tmp_path)
    messages = [{"role": "user", "content": "Don't say"}, {"role": "assistant", "content": "it?"},
                {"role": "user", "content": "The tails"}]  # fmt: skip
    expected = prompt_tokens(tokenizer, messages)
    assert prompt_tokens(theirs, messages) == expected
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert opened.apply_chat_template(messages, tokenize=True, return_dict=False) == expected


def test_white_space_is_pythons():
    assert set(WHITE_SPACE) == {chr(point) for point in range(0x110000) if chr(point).isspace()}
    tokenizer, theirs = pair("word")
    text = "".join(f"tails{space}are" for space in WHITE_SPACE)
    assert theirs.encode(text).tolist() == tokenizer.encode(text).tolist()


@given(st.dictionaries(st.text("ab▁", min_size=2, max_size=4), st.just(0), max_size=12), st.text("ab "), st.randoms())
@settings(max_examples=100)
def test_any_vocabulary_has_the_same_ids_or_is_refused(more, text, random):
    """Scores all differ. Where two ways to cut one piece overlap, the order may not be theirs: then it is refused."""
    scores = [*range(-len(more), 0)]
    random.shuffle(scores)
    tokenizer = sentencepiece({"▁": -90, "a": -91, "b": -92, "c": -93} | dict(zip(more, scores, strict=True)))
    try:
        theirs = sentencepiece_to_huggingface(tokenizer)
    except ValueError as error:
        assert "the same ids in both forms" in str(error)  # noqa: PT017  # most are not refused
        return
    assert theirs.encode("c" + text).tolist() == tokenizer.encode("c" + text).tolist()
    back = sentencepiece_from_huggingface(theirs)
    assert back.encode("c" + text).tolist() == tokenizer.encode("c" + text).tolist()


@pytest.mark.parametrize(
    "pieces",
    [
        {**PIECES, "ab": -1, "ba": -1},  # which is joined first depends on the text
        {**{piece: score for piece, score in PIECES.items() if piece not in "日本"}, "日本": -9},
    ],
    ids=["equal scores", "characters that are no pieces"],
)
def test_what_has_no_equal_is_refused(pieces):
    with pytest.raises(ValueError, match="the same ids in both forms"):
        sentencepiece_to_huggingface(sentencepiece(pieces))


@pytest.mark.parametrize("name", ["sentencepiece", "no prefix", "user-defined"])
def test_back_to_sentencepiece(name):
    tokenizer, theirs = pair(name)
    back = sentencepiece_from_huggingface(theirs)
    assert (back.tokens, back.types) == ([*tokenizer.tokens[:-1]], tokenizer.types[:-1])
    assert (back.begin_id, back.end_id, back.unknown_id) == (tokenizer.begin_id, 2, 0)
    assert back.chat_template == tokenizer.chat_template
    for text in HARD_TEXTS:
        assert back.encode(text).tolist() == tokenizer.encode(text).tolist()


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_the_newer_form_of_llama(scheme):
    """Metaspace instead of a normalizer: as SentencePiece except for texts that begin with a space."""
    _, theirs = pair("sentencepiece")
    document = theirs.document | {
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False},
    }
    given = HuggingFaceTokenizer(document, {"bos_token": "<s>", "eos_token": "</s>"})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        back = sentencepiece_from_huggingface(given)
    # Not behind a control token, where SentencePiece has no way to say so.
    expected = {"first": ["begins with a space", "around '<unk>'"], "always": ["begins with a space"], "never": []}
    assert len(said) == len(expected[scheme])
    for warning, part in zip(said, expected[scheme], strict=True):
        assert part in str(warning.message)
    assert (back.encode(" a").tolist() == given.encode(" a").tolist()) == (scheme == "never")
    assert back.add_space_prefix == (scheme != "never")
    for text in ("a ab  abc", "aaa", "", *HARD_TEXTS):
        assert back.encode(text).tolist() == given.encode(text).tolist()


def test_llama2c_writes_spaces_as_they_are(shared_data):
    tokenizer = Llama2cTokenizer.read(shared_data / "stories260K" / "tok512.bin")
    theirs = to_huggingface(tokenizer)
    text = (shared_data / "tinystories-train-head.txt").read_text(encoding="utf-8")[:20_000]
    for one in (text, *HARD_TEXTS):
        assert theirs.encode(one).tolist() == tokenizer.encode(one).tolist()
        ids = [tokenizer.begin_id, *tokenizer.encode(one).tolist()]
        assert theirs.decode(ids) == tokenizer.decode(ids) == one


def test_one_of_theirs_stays_as_it_is():
    _, theirs = pair("byte")
    assert to_huggingface(theirs) is theirs
    with pytest.raises(ValueError, match="must be BPE with ▁ for spaces"):
        sentencepiece_from_huggingface(theirs)


def test_the_file_says_what_llamas_says():
    """So that programs which know Llama's know this one."""
    document = pair("sentencepiece")[1].document
    assert document["normalizer"] == {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    assert [step["type"] for step in document["decoder"]["decoders"]] == ["Replace", "ByteFallback", "Fuse", "Strip"]
    assert document["model"]["byte_fallback"] is True
    assert document["model"]["merges"][0] == "é a"
    assert "" not in document["model"]["vocab"]
    assert document["post_processor"]["single"][0] == {"SpecialToken": {"id": "<s>", "type_id": 0}}
    assert json.loads(json.dumps(document)) == document
    assert np.array_equal(sorted(document["model"]["vocab"].values()), np.arange(len(document["model"]["vocab"])))
