"""fastllm convert: transformers, llama.cpp and fastllm open what it writes, and compute the same."""

import dataclasses
import json
import os
import shutil
import warnings

import numpy as np
import pytest

pytest.importorskip("tokenizers")

import huggingface_models as models
from converting import CONFIGS, CONTEXT, byte_level, convert, own

import fastllm
from fastllm import conversion
from fastllm.adapters import write_adapter
from fastllm.dialogue import prompt_tokens
from fastllm.formats import open_model, write_gguf
from fastllm.formats.gguf_file import read_gguf_file
from fastllm.parameters import Parameters, initialise
from fastllm.tokenizers import (
    ByteTokenizer,
    CharacterTokenizer,
    SentencePieceTokenizer,
    WordTokenizer,
    tokenizer_to_gguf,
)

TEXT = "The sun isn't a star,  it's 3.14 suns!\n\tÉté 日本 <end>"
TOKENIZERS = {
    "byte": ByteTokenizer,
    "word": lambda: WordTokenizer.build([TEXT]),
    "character": lambda: CharacterTokenizer.build([TEXT]),
}
TOLERANCE = 1e-4  # of logits, float32 on both sides


def theirs(folder, name="llama", dtype="float32"):
    """A folder that transformers wrote, with a tokenizer."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model = models.make(name).to(getattr(torch, dtype))
    # 1 has no name that says so, 5 is a letter, which can't be said in GGUF: no text would become it
    model.generation_config.update(temperature=0.7, top_p=0.9, do_sample=True, eos_token_id=[2, 1, 5])
    model.save_pretrained(folder)
    byte_level().save_into(folder)


def transformers_logits(folder, ids):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(map(int, ids))])).logits[0].numpy()


def llama_cpp_model(path, **options):
    llama_cpp = pytest.importorskip("llama_cpp")
    return llama_cpp.Llama(str(path), verbose=False, n_ctx=256, n_threads=1, type_k=0, type_v=0, **options)


# Ours


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_computes_what_ours_computes(name, kind, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    model, tokenizer = own(tmp_path / "run" / "checkpoint", TOKENIZERS[kind](), name)
    assert convert(tmp_path / "run", tmp_path / "theirs") == 0
    assert "F32 from F32" in capsys.readouterr().out
    ids = tokenizer.encode(TEXT)[:CONTEXT]
    expected = model.forward(ids)
    got = transformers_logits(tmp_path / "theirs", ids)
    assert np.abs(got - expected).max() <= TOLERANCE * np.abs(expected).max()
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert opened(TEXT.removesuffix("<end>"))["input_ids"] == tokenizer.encode(TEXT.removesuffix("<end>")).tolist()
    generation = json.loads((tmp_path / "theirs" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [tokenizer.end_id, tokenizer.user_id]
    again, its_tokenizer = fastllm.load(tmp_path / "theirs", backend="numpy")
    assert np.abs(again.forward(ids) - expected).max() <= TOLERANCE * np.abs(expected).max()
    messages = [{"role": "user", "content": "The sun!"}]
    assert prompt_tokens(its_tokenizer, messages) == prompt_tokens(tokenizer, messages)


@pytest.mark.parametrize(("wanted", "stored"), [("float16", "F16"), ("bf16", "BF16"), (None, "F32")])
def test_a_folder_of_another_type(wanted, stored, tmp_path):
    own(tmp_path / "ours")
    assert convert(tmp_path / "ours", tmp_path / "theirs", *(["--type", wanted] if wanted else [])) == 0
    kinds = conversion._kinds(open_model(tmp_path / "theirs").weights)
    assert kinds == {stored}
    name = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}[stored]
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["dtype"] == name


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_gguf_has_no_words_for_our_tokenizers(kind, tmp_path, capsys):
    model, tokenizer = own(tmp_path / "ours", TOKENIZERS[kind]())
    assert convert(tmp_path / "ours", tmp_path / "model.gguf") == 1
    said = capsys.readouterr().err
    assert f"got one of kind '{kind}'" in said
    assert "--no-tokenizer writes the model without" in said
    assert os.listdir(tmp_path) == ["ours"]
    assert convert(tmp_path / "ours", tmp_path / "model.gguf", "--no-tokenizer") == 0
    assert "without a tokenizer" in capsys.readouterr().out
    with pytest.raises(fastllm.FormatError, match="must hold a tokenizer; got a model without"):
        fastllm.load(tmp_path / "model.gguf")
    opened = open_model(tmp_path / "model.gguf")
    again = fastllm.Model(opened.config, backend="numpy", weights=opened.weights)
    ids = tokenizer.encode(TEXT)[:CONTEXT]
    expected = model.forward(ids)
    assert np.abs(again.forward(ids) - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_no_tokenizer_in_a_folder(tmp_path):
    own(tmp_path / "ours")
    assert convert(tmp_path / "ours", tmp_path / "theirs", "--no-tokenizer") == 0
    assert sorted(os.listdir(tmp_path / "theirs")) == ["config.json", "generation_config.json", "model.safetensors"]


def test_an_adapter_is_merged(tmp_path):
    model, tokenizer = own(tmp_path / "ours")
    adapter = model.add_lora(rank=2)
    adapter.flat[...] = np.random.default_rng(1).standard_normal(adapter.flat.shape) * 0.3
    ids = tokenizer.encode(TEXT)[:CONTEXT]
    expected = model.forward(ids)
    conversion.write(conversion.source_of(model, tokenizer), tmp_path / "theirs")
    again, _ = fastllm.load(tmp_path / "theirs", backend="numpy")
    assert np.abs(again.forward(ids) - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("words", [[], ["--no-tokenizer"]], ids=["whole", "alone"])
def test_the_folder_of_an_adapter_is_merged_into_its_model(words, tmp_path):
    own(tmp_path / "ours")
    model, tokenizer = fastllm.load(tmp_path / "ours", backend="numpy")
    adapter = model.add_lora(rank=2)
    adapter.flat[...] = np.random.default_rng(1).standard_normal(adapter.flat.shape) * 0.3
    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", model.config, adapter, str(tmp_path / "ours"))
    ids = tokenizer.encode(TEXT)[:CONTEXT]
    expected = model.forward(ids)
    assert convert(tmp_path / "adapter", tmp_path / "theirs", *words) == 0
    opened = open_model(tmp_path / "theirs")
    again = fastllm.Model(opened.config, backend="numpy", weights=opened.weights)
    assert np.abs(again.forward(ids) - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize(("kind", "stored"), [("Q8_0", "F16"), ("F16", "F16"), ("BF16", "BF16")])
def test_what_an_adapter_is_merged_into_is_quantised_no_more(kind, stored, tmp_path):
    model, _ = own(tmp_path / "ours", hidden=64)  # whole blocks
    write_gguf(tmp_path / "base.gguf", model.config, model.parameters, kind)
    opened = open_model(tmp_path / "base.gguf")
    assert conversion._kinds(opened.weights) == {kind}
    model = fastllm.Model(opened.config, backend="numpy", weights=opened.weights)
    model.add_lora(rank=2)
    source = conversion.source_of(model, None)
    assert source.nbytes == sum(weight.nbytes for weight in opened.weights.values())
    conversion.write(source, tmp_path / "merged.gguf")
    assert conversion._kinds(open_model(tmp_path / "merged.gguf").weights) == {stored}


def test_a_model_without_a_name_there(tmp_path, capsys):
    own(tmp_path / "ours", name="other", norm_position="post")
    assert convert(tmp_path / "ours", tmp_path / "theirs") == 1
    assert "must hold one of its architectures" in capsys.readouterr().err
    assert convert(tmp_path / "ours", tmp_path / "model.gguf", "--no-tokenizer") == 1
    assert "that llama.cpp has an architecture for" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["ours"]


# Hugging Face's and GGUF


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_what_fastllm_does_not_do_is_handed_on(name, tmp_path):
    """Options of generating, from folder to folder, and through a checkpoint; ids of tokens through GGUF, too."""
    theirs(tmp_path / "theirs", name)
    path = tmp_path / "theirs" / "generation_config.json"
    more = {"no_repeat_ngram_size": 3, "bos_token_id": 4, "pad_token_id": 6, "suppress_tokens": [7, 8]}
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    settings = tmp_path / "theirs" / "tokenizer_config.json"
    fields = json.loads(settings.read_text())
    fields.pop("bos_token", None)
    settings.write_text(json.dumps(fields))
    with pytest.warns(UserWarning, match="no_repeat_ngram_size, suppress_tokens: fastllm generates without"):
        model, tokenizer = fastllm.load(tmp_path / "theirs", backend="numpy")
    assert tokenizer.bos_id is None
    fastllm.save(tmp_path / "checkpoint", model, tokenizer)
    for source, target, options in (
        ("theirs", "copy", ()), ("theirs", "bare", ("--no-tokenizer",)), ("checkpoint", "after", ()),
        ("theirs", "model.gguf", ()), ("model.gguf", "back", ()),
    ):  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            assert convert(tmp_path / source, tmp_path / target, *options) == 0
        if target == "model.gguf":
            continue
        said = json.loads((tmp_path / target / "generation_config.json").read_text())
        kept = {"bos_token_id": 4, "pad_token_id": 6} if target == "back" else more
        assert {key: said.get(key) for key in more} == {key: kept.get(key) for key in more}, target
        assert said["top_p"] == 0.9


def test_a_folder_keeps_the_tokens_that_end_its_texts(tmp_path):
    """The tokenizer's own end token, 2, is not among them: transformers continues after it."""
    theirs(tmp_path / "theirs")
    path = tmp_path / "theirs" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [4, 1]}))
    assert convert(tmp_path / "theirs", tmp_path / "again") == 0
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text())["eos_token_id"] == [4, 1]


@pytest.mark.filterwarnings("ignore:for Qwen2 models, transformers' AutoTokenizer")
@pytest.mark.parametrize("name", ["gpt2", "llama", "llama3-rope", "qwen2-tied", "qwen3"])
def test_from_a_folder_to_gguf_and_back(name, tmp_path):
    theirs(tmp_path / "theirs", name)
    assert convert(tmp_path / "theirs", tmp_path / "model.gguf") == 0
    assert convert(tmp_path / "model.gguf", tmp_path / "back") == 0
    ids = [3, 20, 51, 7, 60, 0, 4]
    expected = transformers_logits(tmp_path / "theirs", ids)
    assert np.abs(transformers_logits(tmp_path / "back", ids) - expected).max() <= TOLERANCE * np.abs(expected).max()
    assert convert(tmp_path / "back", tmp_path / "again.gguf") == 0
    one, other = (read_gguf_file(tmp_path / file) for file in ("model.gguf", "again.gguf"))
    assert one.tensors.keys() == other.tensors.keys()
    assert all(one.tensors[key].data.tobytes() == other.tensors[key].data.tobytes() for key in one.tensors)
    for key, value in one.metadata.items():
        assert np.array_equal(value, other.metadata[key]) or key == "general.name", key
    generation = json.loads((tmp_path / "back" / "generation_config.json").read_text())
    assert generation["do_sample"] is True
    assert generation["temperature"] == pytest.approx(0.7)
    assert generation["top_p"] == pytest.approx(0.9)
    # 0 ends a text by its name, as all that read GGUF files have it.
    assert (generation["eos_token_id"], generation["bos_token_id"]) == ([2, 1, 0], 1)


def test_of_qwen2_transformers_makes_its_own_tokenizer(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = WordTokenizer.build([TEXT])
    changes = {"attention_bias": True, "attention_output_bias": False, "head_size": 16, "heads": 2, "width": 32}
    config = fastllm.preset("llama", vocab_size=tokenizer.vocab_size, layers=1, hidden=32, kv_heads=2, **changes)
    fastllm.save(tmp_path / "ours", fastllm.Model(config, backend="numpy"), tokenizer)
    with pytest.warns(UserWarning, match="transformers' AutoTokenizer splits text as Qwen2 does"):
        assert convert(tmp_path / "ours", tmp_path / "theirs") == 0
    opened = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "theirs")
    assert opened.encode(TEXT.replace("<end>", "")) == tokenizer.encode(TEXT.replace("<end>", "")).tolist()


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_llama_cpp_opens_it_with_its_tokenizer(name, tmp_path):
    theirs(tmp_path / "theirs", name)
    assert convert(tmp_path / "theirs", tmp_path / "model.gguf", "--type", "f32") == 0
    model = llama_cpp_model(tmp_path / "model.gguf", logits_all=True)
    ids = [3, 20, 51, 7, 10, 0, 4]
    model.eval(ids)
    expected = transformers_logits(tmp_path / "theirs", ids)
    error = np.abs(model.scores[: len(ids)] - expected).max() / np.abs(expected).max()
    assert error <= (1e-3 if name == "gpt2" else TOLERANCE)  # its GELU is a table of float16
    text = "abc ab,<|im_end|>.0"
    assert model.tokenize(text.encode(), add_bos=False, special=True) == byte_level().encode_template(text).tolist()
    assert model.token_eos() == 2
    model.close()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_types_stay_as_they_are(dtype, tmp_path):
    theirs(tmp_path / "theirs", dtype=dtype)
    kind = {"float16": "F16", "bfloat16": "BF16"}[dtype]
    assert convert(tmp_path / "theirs", tmp_path / "model.gguf") == 0
    assert convert(tmp_path / "model.gguf", tmp_path / "back") == 0
    for path in ("model.gguf", "back"):
        assert conversion._kinds(open_model(tmp_path / path).weights) == {kind}
    given, back = open_model(tmp_path / "theirs").weights, open_model(tmp_path / "back").weights
    for key, weight in given.items():
        one, other = (getattr(w, "data", w) if len(w.shape) == 2 else w for w in (weight, back[key]))
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes(), key


def test_positions_of_float32_leave_matrices_of_float16_as_they_are(tmp_path):
    """A GGUF file has learned positions in float32, whatever the matrices are."""
    config = fastllm.preset("gpt2", vocab_size=40, layers=1, width=32, hidden=32, heads=2, context=8)
    model = fastllm.Model(config, backend="numpy")
    conversion.write(conversion.source_of(model, None), tmp_path / "model.gguf", "f16")
    source = conversion.load_source(tmp_path / "model.gguf", tokenizer=False)
    assert conversion.kind_of(source, tmp_path / "folder", None) == "F16"
    mixed = dataclasses.replace(source, kinds=frozenset({"F16", "BF16"}))
    assert conversion.kind_of(mixed, tmp_path / "folder", None) == "F32"  # neither holds all numbers of the other


def test_quantised_weights_become_float16_in_a_folder_and_stay_in_a_file(tmp_path):
    theirs(tmp_path / "theirs")
    opened = open_model(tmp_path / "theirs")
    config = dataclasses.replace(opened.config, vocab_size=64, width=32, hidden=64, head_size=8)
    parameters = Parameters(config)
    initialise(parameters, config, seed=0)
    write_gguf(tmp_path / "mixed.gguf", config, parameters, "Q4_0", tokenizer_to_gguf(byte_level(64)))
    assert convert(tmp_path / "mixed.gguf", tmp_path / "again.gguf") == 0
    one, other = (read_gguf_file(tmp_path / file).tensors for file in ("mixed.gguf", "again.gguf"))
    assert {tensor.kind.name for tensor in other.values()} == {"F32", "Q4_0", "Q8_0"}
    for key, tensor in one.items():
        assert (tensor.kind, tensor.data.tobytes()) == (other[key].kind, other[key].data.tobytes())
    assert convert(tmp_path / "mixed.gguf", tmp_path / "halves") == 0
    assert conversion._kinds(open_model(tmp_path / "halves").weights) == {"F16"}


def test_rows_without_a_token_get_one_in_gguf(tmp_path):
    """llama.cpp wants as many tokens as the table has rows."""
    model, tokenizer = own(tmp_path / "ours", byte_level(), name="llama on pairs", more_rows=5, attention_bias=False)
    assert convert(tmp_path / "ours", tmp_path / "model.gguf") == 0
    metadata = open_model(tmp_path / "model.gguf").tokenizer_metadata
    tokens = metadata["tokenizer.ggml.tokens"]
    assert len(tokens) == len(set(tokens)) == model.config.vocab_size
    assert metadata["tokenizer.ggml.token_type"][-5:].tolist() == [5] * 5
    _, again = fastllm.load(tmp_path / "model.gguf", backend="numpy")
    assert again.tokens == tokenizer.tokens
    llama = llama_cpp_model(tmp_path / "model.gguf", logits_all=True)
    ids = [3, 20, 51, 7]
    llama.eval(ids)
    expected = model.forward(np.array(ids))
    assert np.abs(llama.scores[: len(ids)] - expected).max() <= TOLERANCE * np.abs(expected).max()
    llama.close()


# SentencePiece and llama2.c


@pytest.fixture
def stories(shared_data, tmp_path):
    """A trained model of llama2.c's with its tokenizer, and what it writes."""
    folder = shared_data / "stories260K"
    (tmp_path / "stories").mkdir()
    shutil.copyfile(folder / "stories260K.bin", tmp_path / "stories" / "model.bin")
    shutil.copyfile(folder / "tok512.bin", tmp_path / "stories" / "tokenizer.bin")
    return tmp_path / "stories" / "model.bin", (folder / "case0.txt").read_text(encoding="utf-8").removesuffix("\n")


def test_transformers_writes_llama2cs_story(stories, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    path, story = stories
    assert convert(path, tmp_path / "theirs") == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    prompt = tokenizer("", return_tensors="pt")["input_ids"]
    assert prompt.tolist() == [[1]]
    written = model.generate(prompt, max_new_tokens=200, do_sample=False)
    assert tokenizer.decode(written[0], skip_special_tokens=True) == story


def test_llama_cpp_writes_llama2cs_story(stories, tmp_path):
    path, story = stories
    assert convert(path, tmp_path / "model.gguf") == 0
    assert convert(path, tmp_path / "theirs") == 0
    assert convert(tmp_path / "theirs", tmp_path / "again.gguf") == 0
    for name in ("model.gguf", "again.gguf"):
        model = llama_cpp_model(tmp_path / name)
        tokens = model.tokenize(b"", add_bos=True)
        assert tokens == [1]
        written = []
        for token in model.generate(tokens, temp=0.0, repeat_penalty=1.0):
            written.append(token)
            if len(written) == 200:
                break
        assert model.detokenize(written).decode().lstrip() == story
        model.close()
    one, other = (fastllm.load(tmp_path / name, backend="numpy")[1] for name in ("model.gguf", "again.gguf"))
    assert isinstance(one, SentencePieceTokenizer)
    assert isinstance(other, SentencePieceTokenizer)
    assert one.tokens == other.tokens
    assert one.encode(story).tolist() == other.encode(story).tolist()


def test_without_its_tokenizer_a_model_needs_none(stories, tmp_path, capsys):
    path, _ = stories
    (path.parent / "tokenizer.bin").unlink()
    assert convert(path, tmp_path / "model.gguf") == 1
    assert "tokenizer" in capsys.readouterr().err
    assert convert(path, tmp_path / "model.gguf", "--no-tokenizer") == 0
    assert open_model(tmp_path / "model.gguf").tokenizer_metadata == {"tokenizer.ggml.model": "none"}


def test_smollm2_to_a_folder_and_back(smollm2, tmp_path):
    """A real model: the same bytes and the same words about its tokenizer."""
    assert convert(smollm2, tmp_path / "theirs", "--type", "f32") == 0
    assert convert(tmp_path / "theirs", tmp_path / "back.gguf") == 0
    given, back = open_model(smollm2), open_model(tmp_path / "back.gguf")
    for key in ("tokens", "token_type", "merges", "eos_token_id", "bos_token_id", "pre", "model"):
        one, other = (opened.tokenizer_metadata[f"tokenizer.ggml.{key}"] for opened in (given, back))
        assert np.array_equal(one, other), key
    for key in ("eot", "eom"):  # <reponame> ends a text by its name; as eot, it would be the end of a turn
        assert f"tokenizer.ggml.{key}_token_id" not in back.tokenizer_metadata
    assert given.tokenizer_metadata["tokenizer.chat_template"] == back.tokenizer_metadata["tokenizer.chat_template"]
    one, other = (opened.weights["blocks.3.attention.query.weight"] for opened in (given, back))
    assert np.array_equal(fastllm.quantize.dequantize(one), fastllm.quantize.dequantize(other))
