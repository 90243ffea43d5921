"""The files that a tokenizer of Hugging Face's stands in: what each says, what is written, and damaged ones."""

import contextlib
import json
import os
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refusal
from tiny_tokenizers import (
    HARD_TEXTS,
    LLAMA,
    SETTINGS,
    TEMPLATE,
    added,
    byte_fallback,
    byte_level,
    write_folder,
)

import fastllm
from fastllm import DataError, FormatError
from fastllm.dialogue import check_speakers
from fastllm.small_files import MAX_JSON
from fastllm.tokenizers import HuggingFaceTokenizer, load_tokenizer
from fastllm.tokenizers.chat_template import MOST_SOURCE
from fastllm.tokenizers.huggingface import MAX_TOKENIZER

tokenizers = pytest.importorskip("tokenizers")


def test_gpt2(shared_data):
    transformers = pytest.importorskip("transformers")
    folder = shared_data / "gpt2-tokenizer"
    tokenizer = load_tokenizer(folder)
    original = transformers.GPT2Tokenizer(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    assert (tokenizer.vocab_size, tokenizer.end_id, tokenizer.begin_id) == (50257, 50256, None)
    assert tokenizer.encode("Hello world").tolist() == [15496, 995]
    for text in HARD_TEXTS:
        assert tokenizer.encode_template(text).tolist() == original(text).input_ids
        ids = tokenizer.encode(text)
        assert 50256 not in ids
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("said", [{}, {"bos_token": "<|im_end|>"}])
def test_gpt2_by_the_kind_of_model(said, tmp_path):
    """GPT-2's own folder says nothing of its tokens; its class does, and a folder written from it has to."""
    (tmp_path / "again").mkdir()
    byte_level().save(str(tmp_path / "tokenizer.json"))
    for model_type, expected in ("llama", None), ("gpt2", "<|endoftext|>"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 1024, **said}))
        load_tokenizer(tmp_path).save_into(tmp_path / "again")
        written = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
        assert written.get("bos_token") == said.get("bos_token", expected)
        assert (written["eos_token"], written.get("unk_token")) == ("<|endoftext|>", expected)


def test_gpt2_with_a_begin_token(shared_data, tmp_path):
    for name in ("encoder.json", "vocab.bpe"):
        shutil.copy(shared_data / "gpt2-tokenizer" / name, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    assert load_tokenizer(tmp_path).begin_id == 50256
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    with pytest.raises(FormatError, match=r"got 'Qwen2Tokenizer'; add its tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_save_into_a_folder_that_transformers_opens(ours, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours.save_into(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, HuggingFaceTokenizer)
    original = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert original.chat_template == loaded.chat_template == TEMPLATE
    assert (original.eos_token_id, original.bos_token_id) == (loaded.end_id, 1) == (2, 1)
    for text in HARD_TEXTS:
        assert loaded.encode(text).tolist() == ours.encode(text).tolist()
        assert original(text).input_ids == ours.encode_template(text).tolist()
    assert sorted(os.listdir(tmp_path)) == ["tokenizer.json", "tokenizer_config.json"]


def test_the_begin_token_keeps_its_name_though_it_stands_before_no_text(ours, tmp_path):
    assert (ours.begin_id, ours.bos_id) == (None, 1)
    config = fastllm.ModelConfig(vocab_size=ours.vocab_size, width=8, hidden=8, layers=1, heads=2, context=8)
    fastllm.save(tmp_path / "model", fastllm.Model(config, backend="numpy"), ours)
    for name in "config.json", "generation_config.json":
        assert json.loads((tmp_path / "model" / name).read_text())["bos_token_id"] == 1
    assert "begin_id" not in fastllm.load(tmp_path / "model", backend="numpy")[0].generation_options


def test_save_writes_the_file_that_was_read(ours, tmp_path):
    ours.save(tmp_path / "tokenizer.json")
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert json.loads(again.to_str()) == json.loads(byte_level().to_str())


def test_end_ids_of_generation_config_are_kept(tmp_path):
    document = json.loads(byte_level().to_str())
    document["added_tokens"].append(added(380, "<over>", special=True))
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [380, 2, 379]}')  # 379 is text
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.end_ids == {0, 2, 380}
    (tmp_path / "again").mkdir()
    tokenizer.save_into(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").end_ids == {0, 2, 380}


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({"tokenizer_config.json": {"chat_template": "A"}}, "A"),
        ({"tokenizer_config.json": {"chat_template": [{"name": "tool", "template": "B"},
                                                      {"name": "default", "template": "A"}]}}, "A"),
        ({"tokenizer_config.json": {"chat_template": "A"}, "chat_template.jinja": "B"}, "B"),
        ({"tokenizer_config.json": {}, "chat_template.json": {"chat_template": "C"}}, "C"),
        ({"tokenizer_config.json": {"chat_template": "A"}, "chat_template.json": {"chat_template": "C"}}, "A"),
        ({"additional_chat_templates/default.jinja": "A", "additional_chat_templates/tool.jinja": "B"}, "A"),
        ({"chat_template.jinja": "C", "additional_chat_templates/default.jinja": "A",
          "additional_chat_templates/tool.jinja": "B"}, "C"),
        ({"tokenizer_config.json": {}}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_where_a_chat_template_stands(files, template, tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.chat_template == template
    assert tokenizer.end_token == "<|endoftext|>"  # nothing names another: known by its name
    (tmp_path / "again").mkdir()
    tokenizer.save_into(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    assert (again.chat_template, again.chat_templates) == (template, tokenizer.chat_templates)


@pytest.mark.parametrize("maker", ["CodeLlamaTokenizer", "GPTNeoXTokenizerFast", "TokenizersBackend", None])
def test_the_class_that_follows_the_file_is_written_whatever_it_was(maker, tmp_path):
    """Some classes make their steps anew; transformers 4 lacks TokenizersBackend; for null, the model's is taken."""
    transformers = pytest.importorskip("transformers")
    ours = HuggingFaceTokenizer(json.loads(byte_fallback().to_str()), {**LLAMA, "tokenizer_class": maker})
    ours.save_into(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    original = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in HARD_TEXTS:
        assert original(text, add_special_tokens=False).input_ids == ours.encode_template(text).tolist()


@pytest.mark.parametrize("said", [{}, {"padding_side": "right"}])
@pytest.mark.parametrize(
    "maker",
    ["LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizerFast", "GemmaTokenizer", "PreTrainedTokenizerFast"],
)
def test_the_side_of_padding_stays(said, maker, tmp_path):
    """Llama's class pads on the left; a batch padded on the right would be continued after its padding."""
    transformers = pytest.importorskip("transformers")
    settings = {**SETTINGS, **said, "tokenizer_class": maker}
    HuggingFaceTokenizer(json.loads(byte_level().to_str()), settings).save_into(tmp_path)
    its_class = "right" if maker == "PreTrainedTokenizerFast" else "left"
    assert getattr(transformers, maker).padding_side == its_class
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).padding_side == said.get("padding_side", its_class)


def test_what_names_code_or_a_place_is_not_written(tmp_path):
    """transformers would import the one, and look for more files at the other."""
    foreign = {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}, "name_or_path": "org/model", "model_max_length": 9,
               "fast_tokenizer_files": ["tokenizer.4.0.json"]}  # fmt: skip
    HuggingFaceTokenizer(json.loads(byte_level().to_str()), SETTINGS | foreign).save_into(tmp_path)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written.keys() & foreign.keys() == {"model_max_length"}


def test_several_chat_templates_are_kept(tmp_path):
    templates = [{"name": "rag", "template": "B"}, {"name": "default", "template": "A"}]
    made = HuggingFaceTokenizer(json.loads(byte_level().to_str()), {**SETTINGS, "chat_template": templates})
    made.save_into(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"] == templates
    assert load_tokenizer(tmp_path).chat_template == "A"


@pytest.mark.parametrize("template", ["", [{"name": "default", "template": ""}]])
def test_an_empty_chat_template_is_none(template):
    """It would make an empty prompt."""
    made = HuggingFaceTokenizer(json.loads(byte_level().to_str()), {**SETTINGS, "chat_template": template})
    assert made.chat_template is None
    with pytest.raises(DataError, match="to chat, "):
        check_speakers(made)


def test_several_chat_templates_none_of_them_the_default():
    templates = [{"name": "tool", "template": "B"}, {"name": "rag", "template": "C"}]
    made = HuggingFaceTokenizer(json.loads(byte_level().to_str()), {**SETTINGS, "chat_template": templates})
    with pytest.raises(DataError, match='must be called "default"; got rag, tool; rename one in'):
        check_speakers(made)


def test_added_tokens_json(tmp_path):
    """Of older folders: ids, where the settings only have names."""
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({**SETTINGS, "pad_token": "<pad>"}))
    ids = {"<sep>": 381, "<pad>": 380, "<|im_end|>": 2}
    (tmp_path / "added_tokens.json").write_text(json.dumps(ids))
    tokenizer = load_tokenizer(tmp_path)
    assert {text: tokenizer.id_of(text) for text in ids} == ids
    assert 380 in tokenizer.control_ids
    assert 381 not in tokenizer.control_ids
    original = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)
    text = "The<sep>cat<pad>"
    assert tokenizer.encode_template(text).tolist() == original(text).input_ids
    (tmp_path / "added_tokens.json").write_text(json.dumps({"cat": 300, "<sep>": 900, "<pad>": 64}))  # no such ids
    tokenizer, original = load_tokenizer(tmp_path), type(original).from_pretrained(tmp_path)
    assert tokenizer.encode_template(text).tolist() == original(text).input_ids
    assert (tokenizer.id_of("<pad>"), tokenizer.id_of("cat"), tokenizer.id_of("<sep>")) == (380, 381, 382)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {}}))  # a newer folder's
    assert load_tokenizer(tmp_path).id_of("<pad>") == 380
    assert "<sep>" not in load_tokenizer(tmp_path).tokens
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"unk_token": 5}))
    with pytest.raises(FormatError, match="a special token must be a text; got 5"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<sep>": "381"}))
    with pytest.raises(FormatError, match="must map tokens to ids, whole numbers"):
        load_tokenizer(tmp_path)


def test_special_tokens_map(tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    assert load_tokenizer(tmp_path).end_id == 2


@pytest.mark.parametrize("said", ["<|endoftext|>", ""])
@pytest.mark.parametrize("wins", [True, False])
def test_special_tokens_that_two_files_disagree_about(said, wins, tmp_path):
    """As where a chat model was saved into the folder of its base model."""
    transformers = pytest.importorskip("transformers")
    decoder = {} if wins else {"added_tokens_decoder": {"2": {"content": "<|im_end|>", "special": True}}}
    write_folder(tmp_path, byte_level(), eos_token=said, pad_token=said, additional_special_tokens=["<a>"], **decoder)
    more = {"eos_token": "<|im_end|>", "pad_token": None, "additional_special_tokens": ["<b>"]}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(more))
    tokenizer = load_tokenizer(tmp_path)
    original = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.special_tokens.get("eos_token", "") == original.eos_token == ("<|im_end|>" if wins else said)
    assert tokenizer.tokens[-1] == original.convert_ids_to_tokens(380) == "<a>"


def test_load_tokenizer_opens_folders_of_ours_and_of_llama2c(tmp_path, shared_data):
    fastllm.ByteTokenizer().save_into(tmp_path)
    assert isinstance(load_tokenizer(tmp_path), fastllm.ByteTokenizer)
    assert load_tokenizer(shared_data / "stories260K" / "tok512.bin").vocab_size == 512


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_folder_without_its_files(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="got neither"):
        load_tokenizer(tmp_path)
    (tmp_path / name).write_text("{}")
    with pytest.raises(FileNotFoundError, match="got neither"):
        load_tokenizer(tmp_path)


GOOD = {
    "version": "1.0",
    "added_tokens": [added(2, "</s>", special=True)],
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "</s>": 2, "ab": 3}, "merges": ["a b"]},
}


def with_model(**fields):
    return {**GOOD, "model": {**GOOD["model"], **fields}}


def with_begin(token, known):
    single = [{"SpecialToken": token}, {"Sequence": {"id": "A"}}]
    return {**GOOD, "post_processor": {"type": "TemplateProcessing", "single": single, "special_tokens": known}}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (with_model(vocab=5), '"vocab" must map'),
        (with_model(vocab={}), '"vocab" must map'),
        (with_model(vocab={"a": -1, "</s>": 2}), "got -1"),
        (with_model(vocab={"a": 2**40, "</s>": 2}), "got 1099511627776"),
        (with_model(vocab={"a": "0", "</s>": 2}), "got '0'"),
        (with_model(vocab={"a": True, "</s>": 2}), "got True"),
        (with_model(vocab={"a": 0, "b": 0, "</s>": 2}), "got 'a' and 'b' for 0"),
        (with_model(vocab=[["a"], ["b"]]), "pairs"),
        (with_model(vocab={"\ud800": 0, "</s>": 2}), "U+D800"),
        (with_model(merges=["a x"]), "`x` out of vocabulary"),
        (with_model(merges=["abc"]), "got 'abc'"),
        (with_model(merges=[5]), "got 5"),
        (with_model(type="Nonsense"), "tokenizers"),
        ({**GOOD, "added_tokens": []}, "end"),
        ({**GOOD, "added_tokens": 5}, "must be a list"),
        ({**GOOD, "added_tokens": [5]}, "got 5"),
        ({**GOOD, "added_tokens": [{"id": 2, "content": ""}]}, "content"),
        ({**GOOD, "added_tokens": [added(7, "a", special=True)]}, "got 0 and 7"),
        ({**GOOD, "decoder": {"type": "CTC"}}, "got 'CTC'"),
        ({**GOOD, "decoder": {"type": "Sequence", "decoders": 5}}, "without decoders"),
        ({**GOOD, "decoder": {"type": "Strip", "content": "ab", "start": 1, "stop": 0}}, "Strip"),
        ({**GOOD, "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated",
                                    "invert": False}}, "tokenizers"),
        ({**GOOD, "normalizer": {"type": "Nothing"}}, "tokenizers"),
        ({**GOOD, "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}]}},
         "post-processor"),
        (with_begin({"id": ["x"]}, {}), "must know the ids of its special tokens, whole numbers; got None for ['x']"),
        (with_begin({"id": "x"}, {"x": {"ids": [[1]]}}), "whole numbers; got [[1]] for 'x'"),
        (with_model(unk_token=[1]), "unk_token must be a text or null; got [1]"),
        (with_model(continuing_subword_prefix=5), "continuing_subword_prefix must be a text or null; got 5"),
    ],
)  # fmt: skip
def test_damaged_documents(document, said, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document))
    assert said in refusal(path, load_tokenizer)


def test_the_document_that_is_not_damaged(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(GOOD))
    assert load_tokenizer(tmp_path).encode("ab").tolist() == [3]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer_config.json", "{", "JSON in UTF-8"),
        ("tokenizer_config.json", "[]", "JSON object"),
        ("tokenizer_config.json", '{"eos_token": 5}', "special token must be a text"),
        ("tokenizer_config.json", '{"added_tokens_decoder": [5]}', "must be a list"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "y"}}}', "ids must be whole numbers"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"9": {"content": "a"}}}', "got 0 and 9"),
        ("tokenizer_config.json", '{"chat_template": 5}', "chat_template must be a text"),
        ("tokenizer_config.json", '{"chat_template": [{"name": ["x"]}]}', "must have a text as its name; got ['x']"),
        ("tokenizer_config.json", '{"eos_token": "</s>", "eos_token": "a"}', "got the key 'eos_token' twice"),
        ("tokenizer_config.json", '{"model_max_length": NaN}', "got the number NaN"),
        ("tokenizer_config.json", "{}".encode("utf-16"), "JSON in UTF-8"),
        ("tokenizer_config.json", "{}".encode("utf-32-le"), "JSON in UTF-8"),
        ("special_tokens_map.json", "[" * 10**5, "JSON in UTF-8"),
        ("chat_template.jinja", b"\xff", "UTF-8"),
        ("generation_config.json", "no", "JSON in UTF-8"),
    ],
)
def test_damaged_files_beside_it(name, content, said, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(GOOD))
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FormatError) as caught:
        load_tokenizer(tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=30)
@given(data=st.data())
def test_no_damage_breaks_the_reader(data, tmp_path_factory):
    """Any value of the document replaced by another: a tokenizer or one error."""
    document = json.loads(json.dumps({**GOOD, "pre_tokenizer": GOOD["decoder"], "normalizer": {"type": "NFC"}}))
    places = [(holder, key) for holder in _holders(document) for key in _keys(holder)]
    holder, key = data.draw(st.sampled_from(places))
    holder[key] = data.draw(st.sampled_from([None, -1, 5, 10**30, 0.5, "x", "", [], {}, ["a"], {"type": "x"}, True]))
    path = tmp_path_factory.mktemp("damaged") / "tokenizer.json"
    path.write_text(json.dumps(document))
    try:
        tokenizer = load_tokenizer(path)
    except FormatError:
        return
    with contextlib.suppress(DataError):  # of a vocabulary that can't write the text
        tokenizer.decode(tokenizer.encode("ab a"))


def _keys(holder):
    return list(holder) if isinstance(holder, dict) else range(len(holder))


def _holders(value):
    if isinstance(value, (dict, list)):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _holders(inner)


def test_a_split_that_never_ends_is_one_error(tmp_path):
    """The package gives up, in a panic that is no Exception."""
    split = {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**GOOD, "pre_tokenizer": split}))
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="a text must be one that the tokenizer can encode; got the error"):
        tokenizer.encode("a" * 100)
    assert tokenizer.encode("ab").tolist() == [3]


def test_a_key_twice_in_tokenizer_json(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(GOOD).replace('"a": 0', '"a": 1, "a": 0'))
    for path in tmp_path, tmp_path / "tokenizer.json":
        with pytest.raises(FormatError, match="must be JSON in UTF-8; got the key 'a' twice"):
            load_tokenizer(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files")
@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", ["tokenizer.json", "additional_chat_templates/default.jinja"])
def test_what_could_be_read_for_ever(name, kind, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(GOOD))
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    said = refusal(path, lambda _: load_tokenizer(tmp_path / "tokenizer.json"))
    assert "must be a file; got a folder, pipe or device; " in said


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("tokenizer.json", MAX_TOKENIZER),
        *((name, MAX_JSON) for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                                        "generation_config.json", "chat_template.json")),
        *((name, 4 * MOST_SOURCE) for name in ("chat_template.jinja", "additional_chat_templates/default.jinja")),
    ],
)  # fmt: skip
def test_files_that_are_too_long(name, most, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(GOOD))
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    os.truncate(path, most + 1)
    assert f"must have at most {most} bytes; got {most + 1}; " in refusal(path, lambda _: load_tokenizer(tmp_path))
    if name == "tokenizer.json":
        assert f"must have at most {most} bytes" in refusal(path, load_tokenizer)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_gpt2_files_that_are_too_long(name, tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").touch()
    os.truncate(tmp_path / name, MAX_JSON + 1)
    assert f"must have at most {MAX_JSON} bytes" in refusal(tmp_path / name, lambda _: load_tokenizer(tmp_path))


def test_line_ends_of_a_chat_template(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(GOOD))
    (tmp_path / "chat_template.jinja").write_bytes(b"a\r\nb\rc\n")
    assert load_tokenizer(tmp_path).chat_template == "a\nb\nc\n"
