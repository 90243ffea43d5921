"""Hugging Face's tokenizer.json: the ids and texts of `tokenizers` and transformers, and no control token by typing."""

import base64
import json
import re
import subprocess
import sys
import time
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import (
    CONTROL,
    HARD_TEXTS,
    LLAMA,
    SETTINGS,
    TEMPLATE,
    TEXTS,
    added,
    begins_with,
    byte_fallback,
    byte_level,
    write_folder,
)

from fastllm import FastllmError
from fastllm.dialogue import prompt_tokens
from fastllm.tokenizers import HuggingFaceTokenizer, load_tokenizer
from fastllm.tokenizers.huggingface_document import added_tokens, check_growth, vocabulary_of

tokenizers = pytest.importorskip("tokenizers")

KINDS = {
    "byte-level": (byte_level, SETTINGS),
    "fallback": (byte_fallback, LLAMA),
    "metaspace": (lambda: byte_fallback("first"), LLAMA),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    build, said = KINDS[request.param]
    return build(), HuggingFaceTokenizer(json.loads(build().to_str()), said)


def plain(original, text):
    """The original's ids with special tokens taken for text."""
    original.encode_special_tokens = True
    try:
        return original.encode(text, add_special_tokens=False).ids
    finally:
        original.encode_special_tokens = False


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_hard_texts(kind, text):
    check_text(kind, text)


@given(text=TEXTS)
def test_any_text(kind, text):
    check_text(kind, text)


def check_text(kind, text):
    original, tokenizer = kind
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == plain(original, text)
    assert not tokenizer.control_ids.intersection(ids.tolist())
    assert tokenizer.decode(ids) == original.decode(ids.tolist())
    template = tokenizer.encode_template(text).tolist()
    assert template == original.encode(text, add_special_tokens=False).ids
    for skip in (True, False):
        assert tokenizer.decode(template, skip) == original.decode(template, skip_special_tokens=skip)


@given(text=TEXTS)
def test_byte_level_text_comes_back(ours, text):
    assert ours.decode(ours.encode(text)) == text


@given(ids=st.lists(st.integers(0, 450)), skip=st.booleans())
def test_any_ids_decode_as_the_original_does(ids, skip):
    """Bytes that are no UTF-8, control tokens inside a character and ids without a token included."""
    tokenizer = HuggingFaceTokenizer(json.loads(byte_level().to_str()), SETTINGS)
    assert tokenizer.decode(ids, skip) == byte_level().decode(ids, skip_special_tokens=skip)
    stream = tokenizer.stream(skip)
    assert "".join([stream.push(i) for i in ids]) + stream.flush() == tokenizer.decode(ids, skip)


@given(ids=st.lists(st.integers(0, 430)), skip=st.booleans())
def test_any_ids_with_byte_fallback(ids, skip):
    """Where bytes in a row are UTF-8 it is the original's text; else a whole character among them is kept."""
    tokenizer = HuggingFaceTokenizer(json.loads(byte_fallback().to_str()), LLAMA)
    decoded, original = tokenizer.decode(ids, skip), byte_fallback().decode(ids, skip_special_tokens=skip)
    if "\ufffd" in original:
        assert "\ufffd" in decoded
        outside = re.split("\ufffd+", original)
        assert decoded.startswith(outside[0])
        assert decoded.endswith(outside[-1])
    else:
        assert decoded == original


def test_a_character_is_shown_when_its_last_byte_comes(ours):
    stream = ours.stream()
    ids = [i for byte in "é🙂".encode() for i in [byte_level().token_to_id(byte_character(byte))]]
    assert [stream.push(i) for i in ids] == ["", "é", "", "", "", "🙂"]


def byte_character(byte):
    from fastllm.tokenizers.huggingface_decoder import byte_characters

    return next(character for character, value in byte_characters().items() if value == byte)


def test_the_byte_table_is_that_of_the_package():
    from fastllm.tokenizers.huggingface_decoder import byte_characters

    assert set(byte_characters()) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    pieces = tokenizers.pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str("é\n")
    assert [byte_characters()[character] for text, _ in pieces for character in text] == [*"é\n".encode()]


def test_the_space_a_continuation_begins_with_is_kept():
    tokenizer = HuggingFaceTokenizer(json.loads(byte_fallback().to_str()), LLAMA)
    cat = tokenizer.encode("cat").tolist()
    stream = tokenizer.stream()
    assert "".join(stream.push(i) for i in [1, *cat]) == "cat"
    assert "".join(stream.push(i) for i in cat) == " cat"


def test_ids(ours):
    assert (ours.begin_id, ours.end_id, ours.end_ids) == (None, 2, {0, 2})
    assert ours.control_ids == {0, 1, 2}
    assert ours.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert ours.chat_template == TEMPLATE
    assert ours.vocab_size == 380
    assert ours.id_of("<|im_end|>") == 2
    with pytest.raises(NotImplementedError):
        HuggingFaceTokenizer.build(["a"])


@pytest.mark.parametrize(
    ("processor", "said", "begin"),
    [
        (None, {}, None),
        (begins_with("<|im_start|>", 1), {}, 1),
        (begins_with("<|im_start|>", 1), {"add_bos_token": False}, 1),
        (None, {"add_bos_token": True}, None),
        ({"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}, {}, None),
        ({"type": "Sequence", "processors": [begins_with("<|im_start|>", 1)]}, {}, 1),
        ({"type": "RobertaProcessing", "sep": ["<|im_end|>", 2], "cls": ["<|im_start|>", 1], "trim_offsets": True,
          "add_prefix_space": True}, {}, 1),
    ],
)  # fmt: skip
def test_the_begin_token_is_the_one_that_transformers_puts_there(processor, said, begin, tmp_path):
    transformers = pytest.importorskip("transformers")
    document = json.loads(byte_level().to_str()) | {"post_processor": processor}
    write_folder(tmp_path, tokenizers.Tokenizer.from_str(json.dumps(document)), **SETTINGS, **said)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.begin_id == begin
    original = transformers.AutoTokenizer.from_pretrained(tmp_path)
    prefix = [] if begin is None else [begin]
    ids = original("the cat").input_ids  # some put an end token behind it
    assert ids[: len(prefix) + 1] == [*prefix, tokenizer.encode("the cat")[0]]


def test_a_control_token_that_merges_would_make():
    """As in some conversions of SentencePiece's vocabularies; "<" and "/s>" may be typed."""
    document = {
        "added_tokens": [added(3, "</s>", special=True)],
        "model": {"type": "BPE", "vocab": {"<": 0, "/s>": 1, "/": 4, "s": 5, ">": 6, "</s>": 3, "s>": 2},
                  "merges": ["s >", "/ s>", "< /s>"]},
    }  # fmt: skip
    tokenizer = HuggingFaceTokenizer({"version": "1.0", **document}, {"eos_token": "</s>"})
    assert tokenizer.encode("</s>").tolist() == [0, 1]
    assert tokenizer.encode_template("</s>").tolist() == [3]


def test_a_control_token_that_is_a_whole_word():
    document = {
        "version": "1.0",
        "added_tokens": [added(1, "stop", special=True)],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "stop": 1, "go": 2}},
    }
    tokenizer = HuggingFaceTokenizer(document, {"eos_token": "stop"})
    assert tokenizer.encode("go stop go").tolist() == [2, 0, 2]
    assert tokenizer.decode([2, 2]) == tokenizers.Tokenizer.from_str(json.dumps(document)).decode([2, 2]) == "go go"


def test_added_tokens_that_are_not_special_are_text():
    document = json.loads(byte_level().to_str())
    document["added_tokens"] += [added(380, "<think>"), added(381, "<|im_end|>x"), added(382, "  ", rstrip=True)]
    document["added_tokens"].append(added(383, "<|eot_id|>", special=True, lstrip=True, rstrip=True))
    original = tokenizers.Tokenizer.from_str(json.dumps(document))
    tokenizer = HuggingFaceTokenizer(document, SETTINGS)
    assert tokenizer.encode("a<think>").tolist()[-1] == 380
    assert 383 in tokenizer.end_ids
    for text in ("<think>a<|im_end|>", "<|im_end|>xy", "a  <|eot_id|>\n b", "a   b<|im_start|><|im_end|>x <|eot_id|> "):
        assert tokenizer.encode_template(text).tolist() == original.encode(text, add_special_tokens=False).ids
        ids = tokenizer.encode(text).tolist()
        assert ids == plain(original, text)
        assert not tokenizer.control_ids.intersection(ids)


def test_tokens_of_tokenizer_config_count(tmp_path):
    transformers = pytest.importorskip("transformers")
    more = {"380": added(380, "<extra>", special=True), "381": added(381, "<think>")}
    write_folder(tmp_path, byte_level(), **SETTINGS, added_tokens_decoder=more, pad_token="<pad>")
    tokenizer = load_tokenizer(tmp_path)
    original = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "a<extra> <think><pad> b"
    assert tokenizer.encode_template(text).tolist() == original(text).input_ids
    assert tokenizer.id_of("<pad>") == original.pad_token_id == 382
    assert tokenizer.control_ids == {0, 1, 2, 380, 382}


def test_ids_with_gaps():
    document = json.loads(byte_level().to_str())
    document["added_tokens"].append(added(500, "<far>", special=True))
    tokenizer = HuggingFaceTokenizer(document, SETTINGS)
    assert tokenizer.vocab_size == 501
    assert tokenizer.encode_template("a<far>").tolist()[-1] == 500
    assert tokenizer.tokens[450] == ""
    a = tokenizer.encode("a").tolist()
    assert tokenizer.decode([*a, 450, 10**6, *a]) == "aa"  # a model's table may be longer than the vocabulary
    with pytest.raises(ValueError, match="token ids must be in 0"):
        tokenizer.decode([-1])


def test_truncation_padding_and_dropout_of_a_file_do_nothing():
    document = json.loads(byte_level().to_str())
    document["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    document["padding"] = {"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                           "pad_type_id": 0, "pad_token": "<|endoftext|>"}  # fmt: skip
    document["model"]["dropout"] = 0.9
    tokenizer = HuggingFaceTokenizer(document, SETTINGS)
    text = "The cat sat on the mat"
    assert tokenizer.encode(text).tolist() == byte_level().encode(text).ids


@pytest.mark.parametrize("text", ["a <|im_start|> b", "a<|im_start|>", "<|im_start|>b", ".<|im_start|>."])
def test_a_control_token_that_must_be_a_word_of_its_own(text):
    document = json.loads(byte_level().to_str())
    document["added_tokens"][1]["single_word"] = True
    original = tokenizers.Tokenizer.from_str(json.dumps(document))
    ids = HuggingFaceTokenizer(document, SETTINGS).encode_template(text).tolist()
    assert ids == original.encode(text, add_special_tokens=False).ids


def test_without_the_package_one_error_says_what_to_install():
    code = (
        "import sys; sys.modules['tokenizers'] = None\n"
        "import fastllm\nfrom fastllm.tokenizers import HuggingFaceTokenizer\n"
        "try: HuggingFaceTokenizer({'model': {'vocab': {'</s>': 0}}})\n"
        "except fastllm.FastllmError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("a tokenizer.json, to be opened or written, needs the package tokenizers; got ")
    assert done.stdout.endswith('; pip install "fastllm-numba[hf]"\n')


def test_importing_tokenizers_does_not_import_the_package():
    code = "import fastllm.tokenizers, sys; assert not {'tokenizers', 'jinja2'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_parts_are_checked(ours):
    assert ours.encode_parts([1, "a<|im_end|>", "b", 2]).tolist() == [1, *ours.encode("a<|im_end|>b").tolist(), 2]
    with pytest.raises(ValueError, match="got 5; pass the others as text"):
        ours.encode_parts(["a", 5])
    with pytest.raises(FastllmError, match="surrogate"):
        ours.encode_parts(["\ud800"])
    assert CONTROL[ours.split_control("a<|im_start|>")[1]] == "<|im_start|>"


def test_control_tokens_whose_names_a_normalizer_changes():
    """As where a space is put before each text and the tokens are normalised too."""
    document = json.loads(byte_fallback().to_str())
    for token in document["added_tokens"]:
        token["normalized"] = True
    made = HuggingFaceTokenizer(document, LLAMA)
    end = made.end_id
    parts = ["The cat", end, "sat", end, "cat"]
    ids = made.encode_parts(parts).tolist()
    assert [i for i in ids if i in made.control_ids] == [end, end]
    assert made.decode(ids) == HuggingFaceTokenizer(document, LLAMA).decode(ids)
    assert len(ids) == sum(len(made.encode(part)) if isinstance(part, str) else 1 for part in parts)


def test_added_tokens_that_a_normalizer_changes_are_decoded_as_the_package_does():
    """From version 0.23 on, the package keeps the space that "▁" before such a token represents."""
    document = json.loads(byte_fallback().to_str())
    size = len(document["model"]["vocab"])
    document["added_tokens"].append(added(size, "<tool>", normalized=True))
    original, made = tokenizers.Tokenizer.from_str(json.dumps(document)), HuggingFaceTokenizer(document, LLAMA)
    for text in ("The cat <tool> sat", "<tool>", "a<tool>", "\n <tool><tool> b"):
        ids = original.encode(text, add_special_tokens=False).ids
        assert made.encode(text).tolist() == ids
        assert made.decode(ids) == original.decode(ids)
    assert size in ids


OWN_NAMES = {"boi_token": "<|im_start|>", "tool_token": {"__type": "AddedToken", "content": "<tool>"}}


@pytest.mark.parametrize(
    "said",
    [
        {"extra_special_tokens": {**OWN_NAMES, "tool_token": "<tool>"}},
        {"model_specific_special_tokens": {**OWN_NAMES, "tool_token": "<tool>"}},
        {**OWN_NAMES, "add_bos_token": False},
    ],
)
def test_special_tokens_with_names_of_their_own(said, tmp_path):
    """By which a chat template knows them, wherever transformers writes them."""
    transformers = pytest.importorskip("transformers")
    template = "{% for message in messages %}{{ boi_token + message.content + tool_token }}{% endfor %}"
    write_folder(tmp_path, byte_level(), **{**SETTINGS, "chat_template": template}, **said)
    original = transformers.AutoTokenizer.from_pretrained(tmp_path)
    original.save_pretrained(tmp_path / "again")
    messages = [{"role": "user", "content": "the <tool>"}]
    for folder in (tmp_path, tmp_path / "again"):
        made = load_tokenizer(folder)
        assert made.special_tokens == {
            "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "boi_token": "<|im_start|>", "tool_token": "<tool>"
        }  # fmt: skip
        tool = original.convert_tokens_to_ids("<tool>")
        assert tool in made.control_ids
        assert prompt_tokens(made, messages) == [1, *made.encode("the <tool>"), tool]
        assert original.apply_chat_template(messages)["input_ids"] == [1, *made.encode("the "), tool, tool]


def test_a_token_of_its_own_name_may_be_an_object_there():
    extra = {"boi_token": "<|im_start|>", "tool_token": {"content": "<tool>"}}
    made = HuggingFaceTokenizer(json.loads(byte_level().to_str()), {**SETTINGS, "extra_special_tokens": extra})
    assert made.special_tokens["boi_token"] == "<|im_start|>"
    assert made.special_tokens["tool_token"] == "<tool>"
    assert made.id_of("<tool>") in made.control_ids


def test_a_token_named_like_another_setting_leaves_that_alone():
    said = {**SETTINGS, "model_max_length": 5, "extra_special_tokens": {"model_max_length": "<|im_end|>"}}
    made = HuggingFaceTokenizer(json.loads(byte_level().to_str()), said | {"x_token": "<tool>", "y_token": "<q>"})
    limited = made.limited(made.vocab_size - 1)
    assert limited.vocab_size == made.vocab_size - 1
    assert limited.special_tokens.keys() == made.special_tokens.keys() - {"y_token"}


@pytest.mark.parametrize("prefix", [True, False])
def test_a_space_before_a_text_as_the_settings_say(prefix):
    document = json.loads(byte_level().to_str())
    document["pre_tokenizer"]["add_prefix_space"] = not prefix
    said = {**SETTINGS, "add_prefix_space": prefix}
    made = HuggingFaceTokenizer(document, said | {"tokenizer_class": "GPT2Tokenizer"})
    plainly = HuggingFaceTokenizer(json.loads(byte_level().to_str()), SETTINGS | {"tokenizer_class": "GPT2Tokenizer"})
    expected = plainly.encode(" cat" if prefix else "cat")
    np.testing.assert_array_equal(made.encode("cat"), expected)
    other = HuggingFaceTokenizer(document, said | {"tokenizer_class": "PreTrainedTokenizerFast"})
    assert other.encode("cat").tolist() != expected.tolist()


@pytest.mark.parametrize("prepend", ["normalizer", "first"])
def test_no_space_before_a_text_of_llamas_class(prepend):
    document = json.loads(byte_fallback(prepend).to_str())
    said = {**LLAMA, "tokenizer_class": "LlamaTokenizer"}
    usual, without = (HuggingFaceTokenizer(document, said | {"add_prefix_space": prefix}) for prefix in (True, False))
    assert usual.encode("The cat").tolist() == without.encode(" The cat").tolist()
    assert without.decode(without.encode(" The cat")) == " The cat"
    assert usual.encode("The cat").tolist() != without.encode("The cat").tolist()


def test_merges_that_the_package_would_cut_in_a_character():
    document = {
        "version": "1.0", "added_tokens": [{"id": 3, "content": "</s>", "special": True}],
        "model": {
            "type": "BPE", "continuing_subword_prefix": "a", "vocab": {"x": 0, "Ġ": 1, "xĠ": 2, "</s>": 3},
            "merges": ["x Ġ"],
        },
    }  # fmt: skip
    with pytest.raises(ValueError, match="a merge's second token must begin with 'a'; got 'Ġ'"):
        HuggingFaceTokenizer(document, {"eos_token": "</s>"})


def replace(content, **pattern):
    return {"type": "Replace", "pattern": pattern, "content": content}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
CHARSMAP = base64.b64encode((4).to_bytes(4, "little") + bytes(5) + b"a" * 4000 + b"\0").decode()


@pytest.mark.parametrize(
    ("place", "steps"),
    [
        ("normalizer", [replace("a" * 1000, String="a")] * 4),
        ("decoder", [replace("a" * 1000, String="a")] * 4),
        ("normalizer", [{"type": "Prepend", "prepend": "a" * 4_000_000}, replace("b" * 990, String="a")]),
        ("normalizer", [{"type": "Prepend", "prepend": "a" * 17}]),
        ("normalizer", [{"type": "Prepend", "prepend": "aaaa"}, replace("b" * 990, String="a")]),
        ("normalizer", [{"prepend": "aaaa"}, {"pattern": {"String": "a"}, "content": "b" * 990}]),
        ("normalizer", [["a" * 4000]]),
        ("normalizer", [replace("a", String="")] * 40),
        ("normalizer", [replace("a", Regex="")] * 40),
        ("normalizer", [{"type": "ByteLevel"}] * 40),
        ("normalizer", [step for _ in range(20) for step in (replace("\ufdfa", String="\u0644"), {"type": "NFKC"})]),
        ("normalizer", [{"type": "Precompiled", "precompiled_charsmap": CHARSMAP}]),
        ("pre_tokenizer", [BYTES] * 40),
    ],
)
def test_steps_that_would_make_terabytes_of_a_byte(place, steps):
    document = json.loads(byte_level().to_str())
    document[place] = {"type": "Sequence", place.replace("_", "") + "s": steps}
    with pytest.raises(ValueError, match=r"must be objects, .* that make a text at most 3000 times as long"):
        HuggingFaceTokenizer(document, SETTINGS)


def test_normalizer_and_splitter_together_make_not_too_much():
    document = json.loads(byte_level().to_str())
    document["normalizer"] = replace("a" * 1000, String="a")
    HuggingFaceTokenizer({**document, "pre_tokenizer": None}, SETTINGS)
    with pytest.raises(ValueError, match="at most 3000 times as long"):
        HuggingFaceTokenizer(document, SETTINGS)


def test_steps_of_xlnet_are_not_too_many():
    """Those of its tokenizer.json, with the longest text that SentencePiece's table of NFKC has."""
    table = base64.b64encode((0).to_bytes(4, "little") + unicodedata.normalize("NFKC", "\ufdfa").encode() + b"\0")
    steps = [
        replace('"', String="``"), replace('"', String="''"), {"type": "NFKD"}, {"type": "StripAccents"},
        {"type": "Lowercase"}, {"type": "Precompiled", "precompiled_charsmap": table.decode()},
        replace(" ", Regex=" {2,}"),
    ]  # fmt: skip
    check_growth({"type": "Sequence", "normalizers": steps}, {"type": "Metaspace", "replacement": "▁"})


def test_a_table_of_texts_that_is_none():
    with pytest.raises(ValueError, match="precompiled_charsmap must be in base64; got 5"):
        check_growth({"type": "Precompiled", "precompiled_charsmap": 5})


def test_many_steps_are_refused_at_once():
    document = json.loads(byte_level().to_str())
    one = {"type": "Sequence", "decoders": [{"type": "Fuse"}]}
    document["decoder"] = {"type": "Sequence", "decoders": [one] * 300_000}
    start = time.process_time()
    with pytest.raises(ValueError, match="at most 64 in a sequence"):
        HuggingFaceTokenizer(document, SETTINGS)
    assert time.process_time() - start < 2


def test_many_special_tokens_are_numbered_at_once():
    document = json.loads(byte_level().to_str())
    names = [f"<{i}>" for i in range(20_000)]
    start = time.process_time()
    added = added_tokens(document, {"additional_special_tokens": ["<|im_end|>", *names]}, vocabulary_of(document))
    assert time.process_time() - start < 1
    assert [added[name]["id"] for name in names] == list(range(380, 20_380))
