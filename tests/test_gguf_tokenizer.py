"""Tokenizers from the metadata of GGUF files: the ids of llama.cpp, and no metadata that break the reader."""

import functools
import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import HARD_TEXTS, TEMPLATE, TEXTS, byte_fallback, byte_level, gguf_metadata

import fastllm
from fastllm import FormatError
from fastllm.tokenizers import (
    HuggingFaceTokenizer,
    Llama2cTokenizer,
    SentencePieceTokenizer,
    load_tokenizer,
    tokenizer_from_gguf,
    tokenizer_to_gguf,
)
from fastllm.tokenizers.gguf import PRE_TOKENIZERS, SPLITS
from fastllm.tokenizers.huggingface_decoder import byte_characters
from fastllm.tokenizers.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

G = "tokenizer.ggml."

# A vocabulary of SentencePiece's kind in which pairs join in many ways; bytes stand where they like.
PIECES = {"▁": -20, "a": -21, "b": -22, "c": -23, "é": -24, "ab": -1, "bc": -2, "abc": -3, "▁a": -4, "▁ab": -2,
          "aa": -5, "aaa": -6, "cc": -2, "éa": 0, "日本": -1, "<": -25, "s": -26, ">": -27}  # fmt: skip
LLAMA_TOKENS = ["<unk>", "<s>", "</s>", *PIECES, "<user>", *(f"<0x{byte:02X}>" for byte in range(256))]
LLAMA = {
    G + "model": "llama",
    G + "tokens": LLAMA_TOKENS,
    G + "scores": np.array([0, 0, 0, *PIECES.values(), *[0] * 257], np.float32),
    G + "token_type": [UNKNOWN, CONTROL, CONTROL, *[NORMAL] * len(PIECES), USER_DEFINED, *[BYTE] * 256],
    G + "bos_token_id": np.uint32(1),
    G + "eos_token_id": 2,
    G + "unknown_token_id": 0,
    "tokenizer.chat_template": TEMPLATE,
}
LLAMA_TEXTS = TEXTS | st.text(st.sampled_from("aaabbcc é<>/s日本\n▁"))


def byte_level_metadata(pre="gpt-2", **changes):
    document = json.loads(byte_level().to_str())
    tokens = sorted(document["model"]["vocab"], key=document["model"]["vocab"].get)
    return {
        G + "model": "gpt2",
        G + "pre": pre,
        G + "tokens": tokens,
        G + "token_type": np.array([CONTROL] * 3 + [NORMAL] * (len(tokens) - 3), np.int32),
        G + "merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in document["model"]["merges"]],
        G + "bos_token_id": 1,
        G + "eos_token_id": 2,
        **changes,
    }


def llama_cpp_tokenizer(metadata, path):
    """llama.cpp's tokenizer for the metadata, by way of a file without a model."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("llama_cpp")
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if isinstance(value, (bool, np.bool_)):
            writer.add_bool(key, bool(value))
        elif isinstance(value, (int, np.integer)):
            writer.add_uint32(key, int(value))
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, list(value) if isinstance(value[0], str) else np.asarray(value).tolist())
    for name in ("context_length", "embedding_length", "block_count", "feed_forward_length", "head_count"):
        getattr(writer, f"add_{name}")(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return open_llama_cpp(path)


OPEN = []


def open_llama_cpp(path):
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    OPEN.append(model)
    return lambda text, special=False: model.tokenize(text.encode(), add_bos=False, special=special)


@pytest.fixture(autouse=True, scope="module")
def _close():
    yield
    while OPEN:
        OPEN.pop().close()


# A real file


@functools.cache
def smollm2_pair(path):
    return tokenizer_from_gguf(gguf_metadata(path)), open_llama_cpp(path)


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_smollm2_hard_texts(smollm2, text):
    check_smollm2(smollm2, text)


@given(text=TEXTS)
def test_smollm2_any_text(smollm2, text):
    check_smollm2(smollm2, text)


@functools.cache
def missing_bytes(path):
    """Those that the vocabulary has no token for, of control characters and of beginnings that no character has."""
    tokens = set(smollm2_pair(path)[0].tokens)
    missing = {byte for character, byte in byte_characters().items() if character not in tokens}
    assert len(missing) < 30
    assert not missing.intersection(range(ord(" "), 0xC0))
    return missing


def check_smollm2(path, text):
    tokenizer, original = smollm2_pair(path)
    ids = tokenizer.encode(text).tolist()
    assert ids == original(text)
    if not missing_bytes(path).intersection(text.encode()):
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode_template(text).tolist() == original(text, special=True)


def test_smollm2(smollm2):
    metadata = gguf_metadata(smollm2)
    tokenizer = tokenizer_from_gguf(metadata)
    assert tokenizer.vocab_size == 49152
    assert (tokenizer.begin_id, tokenizer.end_id, tokenizer.end_ids) == (None, 2, {0, 2, 4})
    assert [tokenizer.tokens[i] for i in (0, 2, 4)] == ["<|endoftext|>", "<|im_end|>", "<reponame>"]
    assert tokenizer.control_ids == set(range(17))
    assert tokenizer.chat_template.startswith("{% for message in messages %}")
    written = tokenizer_to_gguf(tokenizer)
    for key, value in metadata.items():
        if key != G + "add_space_prefix":  # has no meaning for bytes
            assert np.array_equal(written[key], value)


def test_smollm2_as_a_folder_that_transformers_opens(smollm2, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = tokenizer_from_gguf(gguf_metadata(smollm2))
    tokenizer.save_into(tmp_path)
    original, again = transformers.AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    for text in HARD_TEXTS:
        assert again.encode(text).tolist() == tokenizer.encode(text).tolist()
        assert original(text).input_ids == tokenizer.encode_template(text).tolist()
    assert (again.end_ids, again.chat_template) == (tokenizer.end_ids, tokenizer.chat_template)


# Byte-level BPE


@pytest.mark.parametrize("pre", SPLITS)
def test_splits_are_llama_cpps(pre, tmp_path):
    metadata = byte_level_metadata(pre)
    tokenizer = tokenizer_from_gguf(metadata)
    original = llama_cpp_tokenizer(metadata, tmp_path / "vocabulary.gguf")
    texts = [text for text in HARD_TEXTS if "ſ" not in text]  # llama.cpp doesn't fold it into s
    for text in [*texts, *map("".join, pairwise(texts))]:
        assert tokenizer.encode(text).tolist() == original(text)
        assert tokenizer.encode_template(text).tolist() == original(text, special=True)
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_name_of_a_split_is_one_of_llama_cpps(pre, tmp_path):
    original = llama_cpp_tokenizer(byte_level_metadata(pre), tmp_path / "vocabulary.gguf")  # raises for another
    tokenizer = tokenizer_from_gguf(byte_level_metadata(pre))
    text = "It's 12345 don'T\r\n\n  if(x){return}; ÀÉb/ 你好 1"
    assert tokenizer.encode(text).tolist() == original(text)
    assert tokenizer_from_gguf(tokenizer_to_gguf(tokenizer)).document == tokenizer.document  # by any of its names


def test_it_is_the_tokenizer_it_was_made_from():
    tokenizer = tokenizer_from_gguf(byte_level_metadata())
    for text in HARD_TEXTS:
        assert tokenizer.encode_template(text).tolist() == byte_level().encode(text).ids


@pytest.mark.parametrize("pre", SPLITS)
@pytest.mark.parametrize("begins", [True, False])
def test_byte_level_there_and_back(pre, begins, tmp_path):
    metadata = byte_level_metadata(pre) | {G + "add_bos_token": begins, "tokenizer.chat_template": TEMPLATE}
    tokenizer = tokenizer_from_gguf(metadata)
    assert tokenizer.begin_id == (1 if begins else None)
    written = tokenizer_to_gguf(tokenizer)
    assert written.keys() == metadata.keys()
    assert all(np.array_equal(written[key], metadata[key]) for key in metadata)
    tokenizer.save_into(tmp_path)
    again = tokenizer_to_gguf(load_tokenizer(tmp_path))
    assert all(np.array_equal(again[key], metadata[key]) for key in metadata)


def test_rows_without_a_token():
    metadata = byte_level_metadata()
    count = len(metadata[G + "tokens"])
    metadata[G + "tokens"] = [*metadata[G + "tokens"], "[PAD]", "<think>"]
    metadata[G + "token_type"] = [*metadata[G + "token_type"].tolist(), UNUSED, USER_DEFINED]
    tokenizer = tokenizer_from_gguf(metadata)
    assert tokenizer.vocab_size == count + 2
    assert tokenizer.encode("[PAD]<think>").tolist() == [*tokenizer.encode("[PAD]").tolist(), count + 1]
    assert tokenizer.decode([count, count + 1]) == "<think>"
    written = tokenizer_to_gguf(tokenizer)
    assert written[G + "tokens"][count] == f"[PAD{count}]"
    assert written[G + "token_type"].tolist() == metadata[G + "token_type"]


def test_llama3_words_are_taken_whole():
    """ignore_merges: "cab" is a token though no merges lead to it."""
    metadata = byte_level_metadata("llama-bpe")
    tokens = metadata[G + "tokens"]
    metadata[G + "tokens"], metadata[G + "token_type"] = [*tokens, "qzx"], [NORMAL] * (len(tokens) + 1)
    assert tokenizer_from_gguf(metadata).encode("qzx").tolist() == [len(tokens)]
    metadata[G + "pre"] = "qwen2"
    assert len(tokenizer_from_gguf(metadata).encode("qzx")) == 3


# SentencePiece


@functools.cache
def llama_pair(tmp_path):
    return tokenizer_from_gguf(LLAMA), llama_cpp_tokenizer(LLAMA, tmp_path / "vocabulary.gguf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("llama")


@given(text=LLAMA_TEXTS)
def test_sentencepiece_has_llama_cpps_ids(folder, text):
    tokenizer, original = llama_pair(folder)
    ids = tokenizer.encode(text).tolist()
    assert ids == original(text)
    assert tokenizer.decode(ids) == text.replace("▁", " ")
    assert not tokenizer.control_ids.intersection(ids)
    assert tokenizer.encode_template(text).tolist() == original(text, special=True)


@pytest.mark.parametrize("flag", [True, False])
def test_space_prefix(flag, tmp_path):
    metadata = LLAMA | {G + "add_space_prefix": flag}
    tokenizer = tokenizer_from_gguf(metadata)
    original = llama_cpp_tokenizer(metadata, tmp_path / "vocabulary.gguf")
    for text in ("ab", " ab", "  a", "é日", "a<s>b", ""):
        assert tokenizer.encode(text).tolist() == original(text)
        assert tokenizer.encode_template(text).tolist() == original(text, special=True)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_control_token_that_pieces_would_join_to():
    """llama.cpp makes <s> of "<s" and ">"."""
    metadata = LLAMA | {G + "tokens": [{"<user>": "<s"}.get(token, token) for token in LLAMA_TOKENS]}
    metadata[G + "token_type"] = [{USER_DEFINED: NORMAL}.get(kind, kind) for kind in LLAMA[G + "token_type"]]
    tokenizer = tokenizer_from_gguf(metadata)
    assert [tokenizer.tokens[i] for i in tokenizer.encode("a<s>")] == ["▁a", "<s", ">"]
    assert [tokenizer.tokens[i] for i in tokenizer.encode_template("a<s>")] == ["▁a", "<s>"]


def test_user_defined_pieces_join_with_nothing():
    tokenizer = tokenizer_from_gguf(LLAMA)
    user = tokenizer.id_of("<user>")
    assert [tokenizer.tokens[i] for i in tokenizer.encode("ab<user>ab")] == ["▁ab", "<user>", "▁ab"]
    assert [tokenizer.tokens[i] for i in tokenizer.encode("<user><user>")] == ["<user>", "<user>"]
    assert tokenizer.decode(tokenizer.encode("ab<user>ab")) == "ab<user> ab"
    assert user not in tokenizer.control_ids


@given(ids=st.lists(st.integers(0, len(LLAMA_TOKENS) + 5)), skip=st.booleans())
def test_any_ids_stream_as_they_decode(ids, skip):
    tokenizer = tokenizer_from_gguf(LLAMA)
    stream = tokenizer.stream(skip)
    assert "".join([stream.push(i) for i in ids]) + stream.flush() == tokenizer.decode(ids, skip)


def test_a_text_that_goes_on_keeps_its_space():
    tokenizer = tokenizer_from_gguf(LLAMA)
    ids = tokenizer.encode("a").tolist()
    assert tokenizer.decode(ids) == tokenizer.decode([1, *ids]) == "a"
    assert tokenizer.decode([*ids, *ids]) == "a a"


def test_ids():
    tokenizer = tokenizer_from_gguf(LLAMA)
    assert (tokenizer.begin_id, tokenizer.end_id, tokenizer.unknown_id) == (1, 2, 0)
    assert tokenizer.control_ids == {1, 2}
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert tokenizer_from_gguf(LLAMA | {G + "add_bos_token": False}).begin_id is None
    assert tokenizer_from_gguf(LLAMA | {G + "eot_token_id": 1}).end_ids == {1, 2}
    assert tokenizer_from_gguf(LLAMA | {"tokenizer.chat_template": ""}).chat_template is None  # as in llama.cpp
    with pytest.raises(NotImplementedError):
        SentencePieceTokenizer.build(["a"])


def test_without_bytes_a_character_is_unknown_or_an_error():
    some = {key: value[:-256] if not isinstance(value, (str, int)) and key != G + "bos_token_id" else value
            for key, value in LLAMA.items()}  # fmt: skip
    tokenizer = tokenizer_from_gguf(some)
    assert tokenizer.encode("a日é").tolist() == [tokenizer.id_of("▁a"), 0, tokenizer.id_of("é")]
    del some[G + "unknown_token_id"]
    with pytest.raises(fastllm.DataError, match="got '日'"):
        tokenizer_from_gguf(some).encode("日")


def test_sentencepiece_there_and_back(tmp_path):
    tokenizer = tokenizer_from_gguf(LLAMA)
    written = tokenizer_to_gguf(tokenizer)
    assert all(np.array_equal(written[key], LLAMA[key]) for key in LLAMA)
    tokenizer.save_into(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, SentencePieceTokenizer)
    again = tokenizer_to_gguf(loaded)
    assert again.keys() == written.keys()
    assert all(np.array_equal(again[key], written[key]) for key in written)


def test_llama2c_is_a_special_case(shared_data, tmp_path):
    ours = Llama2cTokenizer.read(shared_data / "stories260K" / "tok512.bin")
    metadata = tokenizer_to_gguf(ours)
    tokenizer, original = tokenizer_from_gguf(metadata), llama_cpp_tokenizer(metadata, tmp_path / "vocabulary.gguf")
    for text in [*HARD_TEXTS, "Once upon a time, there was a little girl named Lily."]:
        if "▁" not in text:
            assert ours.encode(text).tolist() == tokenizer.encode(text).tolist() == original(text)


def test_it_agrees_with_the_same_vocabulary_in_hugging_faces_form():
    """Merges in their order are scores in theirs."""
    document = json.loads(byte_fallback().to_str())
    vocabulary = document["model"]["vocab"]
    ranks = {"".join(merge if isinstance(merge, list) else merge.split(" ")): -float(rank)
             for rank, merge in reversed([*enumerate(document["model"]["merges"])])}  # fmt: skip
    tokens = sorted(vocabulary, key=vocabulary.get)
    tokenizer = SentencePieceTokenizer(
        tokens,
        [ranks.get(token, -1e9) for token in tokens],
        [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(tokens) - 259)],
        end_id=2,
        begin_id=1,
        unknown_id=0,
    )
    for text in HARD_TEXTS:
        byte_fallback().encode_special_tokens = True
        assert tokenizer.encode(text).tolist() == byte_fallback().encode(text, add_special_tokens=False).ids
        byte_fallback().encode_special_tokens = False


# Bad metadata


BYTE_LEVEL_DAMAGE = [
    ({G + "model": "t5"}, "must be one of gpt2, llama; got 't5'"),
    ({G + "model": None}, "got None"),
    ({G + "pre": "mystery"}, "starcoder, tekken; got 'mystery'"),
    ({G + "tokens": None}, "list of texts"),
    ({G + "tokens": "abc"}, "list of texts"),
    ({G + "tokens": [1, 2]}, "got 1"),
    ({G + "tokens": [b"\xff", "a"]}, "UTF-8"),
    ({G + "tokens": ["a", "a", "b"], G + "token_type": None}, "'a' at 0 and 1"),
    ({G + "tokens": []}, "one for each token"),
    ({G + "token_type": [1, 2]}, "one for each token"),
    ({G + "token_type": [[1], [2]]}, "one for each token"),
    ({G + "token_type": ["a", [1]]}, "one for each token"),
    ({G + "merges": None}, "list of texts"),
    ({G + "merges": ["nothing of this"]}, "join two tokens"),
    ({G + "merges": ["日 本"]}, "vocabulary"),
    ({G + "eos_token_id": 10**9}, "got 1000000000"),
    ({G + "eos_token_id": -5}, "got -5"),
    ({G + "eos_token_id": True}, "got True"),
    ({G + "eos_token_id": "2"}, "got '2'"),
    ({G + "bos_token_id": 1.0}, "got 1.0"),
    ({G + "add_bos_token": 1}, "true or false"),
    ({"tokenizer.chat_template": 5}, "must be a text"),
    ({"tokenizer.chat_template.rag": 5}, "chat_template.rag must be a text"),
    ({"tokenizer.chat_template": b"\xff"}, "UTF-8"),
]
LLAMA_DAMAGE = [
    ({G + "scores": None}, "one for each token"),
    ({G + "scores": [0.0]}, "one for each token"),
    ({G + "scores": [float("nan")] * len(LLAMA_TOKENS)}, "finite"),
    ({G + "token_type": [1] * len(LLAMA_TOKENS), G + "eos_token_id": None}, "got none"),
    ({G + "token_type": [9] * len(LLAMA_TOKENS)}, "type from 1 to 6"),
    ({G + "token_type": [6] * len(LLAMA_TOKENS)}, "a byte must be named"),
    ({G + "tokens": ["x"] * len(LLAMA_TOKENS)}, "distinct"),
]


@pytest.mark.parametrize(
    ("metadata", "changes", "said"),
    [("gpt2", *damage) for damage in BYTE_LEVEL_DAMAGE] + [("llama", *damage) for damage in LLAMA_DAMAGE],
)
def test_damaged_metadata(metadata, changes, said):
    good = byte_level_metadata() if metadata == "gpt2" else LLAMA
    with pytest.raises(FormatError) as caught:
        tokenizer_from_gguf(good | changes)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_metadata():
    with pytest.raises(FormatError, match=r"tokenizer\.ggml\.model must be a text; got None"):
        tokenizer_from_gguf({})


def test_ids_that_say_none():
    metadata = byte_level_metadata() | {G + "bos_token_id": 0xFFFFFFFF}
    assert "bos_token" not in tokenizer_from_gguf(metadata).special_tokens


def test_bytes_are_texts_too():
    metadata = {key: value.encode() if isinstance(value, str) else value for key, value in LLAMA.items()}
    metadata[G + "tokens"] = [token.encode() for token in LLAMA_TOKENS]
    assert tokenizer_from_gguf(metadata).tokens == LLAMA_TOKENS


@settings(max_examples=50)
@given(data=st.data())
def test_no_damage_breaks_it(data):
    metadata = dict(data.draw(st.sampled_from([LLAMA, byte_level_metadata()])))
    key = data.draw(st.sampled_from(sorted(metadata)))
    value = st.none() | st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.text() | st.integers(0, 9))
    metadata[key] = data.draw(value)
    try:
        tokenizer = tokenizer_from_gguf(metadata)
    except FormatError:
        return
    assert tokenizer.decode(tokenizer.encode("abc")) == "abc"


@pytest.mark.parametrize("tokenizer", [fastllm.ByteTokenizer(), fastllm.WordTokenizer.build(["a"])])
def test_what_gguf_has_no_name_for(tokenizer):
    with pytest.raises(ValueError, match=f"got one of kind '{tokenizer.name}'; save the model in"):
        tokenizer_to_gguf(tokenizer)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(normalizer={"type": "Lowercase"}), "the normalizer"),
        (lambda d: d.update(normalizer={"type": "NFKC"}), "the normalizer"),
        (lambda d: d["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix = '</w>'"),
        (lambda d: d["added_tokens"][1].update(lstrip=True), "lstrip of the added token"),
        (lambda d: d["added_tokens"][2].update(single_word=True), "single_word of the added token"),
    ],
)
def test_what_gguf_has_no_words_for(change, said):
    """Readers would give other ids."""
    document = json.loads(byte_level().to_str())
    change(document)
    made = HuggingFaceTokenizer(document, {"eos_token": "<|im_end|>"})
    with pytest.raises(ValueError, match=f"a GGUF file can't express {said}"):
        tokenizer_to_gguf(made)


def test_splits_that_gguf_has_no_name_for():
    document = json.loads(byte_level().to_str())
    document["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    with pytest.raises(ValueError, match="must hold byte-level BPE with a split of gpt-2, smollm"):
        tokenizer_to_gguf(HuggingFaceTokenizer(document))
    with pytest.raises(ValueError, match="must hold byte-level BPE"):
        tokenizer_to_gguf(HuggingFaceTokenizer(json.loads(byte_fallback().to_str())))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"special_tokens": 5}, '"special_tokens" must be an object'),
        ({"end_ids": {}}, '"end_ids" must be a list'),
        ({"chat_template": 5}, '"chat_template" must be a text'),
        ({"types": None}, '"types" must be a list'),
        ({"end_id": "x"}, "end_id must be in 0"),
        ({"end_id": 10**6}, "end_id must be in 0"),
        ({"begin_id": -1}, "begin_id must be in 0"),
        ({"scores": ["x"]}, "finite score"),
    ],
)
def test_damaged_files_of_ours(changes, said, tmp_path):
    tokenizer_from_gguf(LLAMA).save_into(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes))
    with pytest.raises(FormatError, match=said):
        load_tokenizer(path)
