"""open_model: what it opens, by its content, and what it says to all else."""

import json
import os

import numpy as np
import pytest
from gguf_bytes import LLAMA as GGUF_LLAMA
from gguf_bytes import model_file, tensors
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mutations import Memory, damaged
from small_folders import GPT2, LLAMA, make_folder, parameters_of

from fastllm import FormatError
from fastllm.formats import OpenedModel, open_model, write_gguf, write_huggingface
from fastllm.formats.huggingface_config import config_from_huggingface
from fastllm.packed import Packed
from fastllm.parameters import parameter_shapes
from fastllm.quantize import dequantize


def refusal(path):
    """What open_model says."""
    with pytest.raises(FormatError) as caught:
        open_model(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# What it is


def test_the_name_does_not_matter(tmp_path):
    (tmp_path / "model.bin").write_bytes(model_file())
    assert open_model(tmp_path / "model.bin").source == "gguf"
    assert open_model(str(make_folder(tmp_path / "folder.gguf"))).source == "huggingface"


def test_a_folder_with_something_else(tmp_path):
    assert "must be a model's folder, with a config.json; got none" in refusal(tmp_path)
    (tmp_path / "some.gguf").write_bytes(model_file())
    assert "there is some.gguf: name the file" in refusal(tmp_path)


def test_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_model(tmp_path / "absent")


@pytest.mark.parametrize("data", [b"", b"text", b"PK\3\4" + bytes(400), b"\x80\x02}q\0." * 40])
def test_a_file_of_something_else(tmp_path, data):
    path = tmp_path / "file"
    path.write_bytes(data)
    assert "must be a Hugging Face folder, a GGUF file or a llama2.c checkpoint" in refusal(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "such as a pipe" in refusal(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_part_of_a_folder(tmp_path, name):
    make_folder(tmp_path / "model")
    assert f"name {tmp_path / 'model'}" in refusal(tmp_path / "model" / name)


# Folders


def test_a_folder_of_fastllm_itself(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"format": "fastllm", "version": 1, "model": {}}))
    assert "use fastllm.load" in refusal(tmp_path)


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize("prefix", [EMBEDDING, EMBEDDING.removeprefix("model.")])
@pytest.mark.parametrize(("factor", "is_tied"), [(1, True), (2, False)])
def test_a_head_stored_with_other_numbers_is_not_tied(tmp_path, prefix, factor, is_tied):
    """Whatever config.json says: so does transformers, too."""
    cut = len(EMBEDDING) - len(prefix)
    folder = make_folder(
        tmp_path,
        tensors=lambda own: {name[cut:]: array for name, array in own.items()} | {HEAD: own[EMBEDDING] * factor},
    )
    opened = open_model(folder)
    assert opened.config.tied_head is is_tied
    if not is_tied:
        head, embedding = (dequantize(opened.weights[f"{name}.weight"]) for name in ("head", "embedding.token"))
        np.testing.assert_array_equal(head, 2 * embedding)


def test_a_head_of_another_shape_is_not_passed_over(tmp_path):
    """transformers refuses it, too."""
    make_folder(tmp_path, tensors=lambda own: own | {HEAD: own[EMBEDDING][1:]})
    assert "lm_head.weight must be of shape" in refusal(tmp_path)


def test_a_tied_head_stored_alone(tmp_path):
    folder = make_folder(tmp_path, tensors=lambda own: {HEAD if name == EMBEDDING else name: own[name] for name in own})
    assert open_model(folder).weights.keys() == open_model(make_folder(tmp_path / "usual")).weights.keys()


def test_a_pickle_is_not_opened(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert "got pytorch_model.bin only, a pickle, which runs code" in refusal(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    assert "model.safetensors or model.safetensors.index.json; got neither" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "received"),
    [
        (b"", "must be JSON in UTF-8"),
        (b"\xff\xfe{}", "must be JSON in UTF-8"),
        (b"[]", "must be a JSON object; got []"),
        (b"[" * 10**6, "must be JSON in UTF-8"),
        (b" " * (1 << 25), "must have at most"),
        (b"{}", "model_type must be one of gpt2, llama, mistral, qwen2, qwen3; got None"),
        (json.dumps({**LLAMA, "quantization_config": {"bits": 4}}).encode(), "got quantised ones, {'bits': 4}"),
        (json.dumps({**LLAMA, "num_hidden_layers": 10**9}).encode(), "must have more tensors than that"),
        (json.dumps({**LLAMA, "num_hidden_layers": 3}).encode(), "missing, 'model.layers.2."),
        (json.dumps({**LLAMA, "hidden_size": 16}).encode(), "must be of shape"),
        (json.dumps({**LLAMA, "eos_token_id": "x"}).encode(), "whole numbers; got 'x'"),
        (json.dumps({**LLAMA, "eos_token_id": [[2]]}).encode(), "whole numbers; got [2]"),
    ],
)
def test_a_config_json_of_any_kind(tmp_path, content, received):
    make_folder(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    assert received in refusal(tmp_path)


def test_tensors_of_types_that_fastllm_lacks(tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    for dtype, theirs in (np.int8, "I8"), (np.float64, "F64"):
        make_folder(tmp_path, tensors=lambda own, dtype=dtype: own | {name: own[name].astype(dtype)})
        assert f"tensor '{name}' must be of F32, F16, BF16; got '{theirs}'" in refusal(tmp_path)


def test_masks_of_whole_numbers_are_passed_over(tmp_path):
    attention = "transformer.h.0.attn"
    masks = {f"{attention}.bias": np.ones((1, 1, 5, 5), np.bool_), f"{attention}.masked_bias": np.array(-1)}
    opened = open_model(make_folder(tmp_path, GPT2, lambda own: own | masks))
    expected = parameters_of(opened.config)
    for name, weight in opened.weights.items():
        np.testing.assert_array_equal(dequantize(weight) if isinstance(weight, Packed) else weight, expected[name])


def test_a_header_of_odd_length(tmp_path):
    """Floats that begin at any byte are read; no writer of renown leaves them so."""
    make_folder(tmp_path)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    path.write_bytes((length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :])
    opened = open_model(tmp_path)
    expected = parameters_of(opened.config)
    for name, weight in opened.weights.items():
        data = weight.data if isinstance(weight, Packed) else weight
        assert data.ctypes.data % 4 == 0
        np.testing.assert_array_equal(dequantize(weight) if isinstance(weight, Packed) else weight, expected[name])


@pytest.mark.parametrize(
    ("fields", "generation", "expected"),
    [
        ({}, None, {"end_ids": ()}),
        ({"eos_token_id": 2, "bos_token_id": 1}, None, {"end_ids": (2,)}),
        ({"eos_token_id": 2, "temperature": 0.3}, None, {"end_ids": (2,)}),  # old config.json hold all of transformers'
        ({"eos_token_id": 2}, {"eos_token_id": [3, 4, 3]}, {"end_ids": (3, 4)}),
        ({"eos_token_id": 2, "bos_token_id": 1}, {"top_p": 0.6}, {"end_ids": (2,), "top_p": 0.6}),
        # transformers samples where do_sample says so, at 1.0 if nothing else is said, and else never does.
        ({}, {"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {"end_ids": (), "temperature": 0.0, "top_p": 0.9}),
        ({}, {"temperature": 0.6, "top_p": 0.9}, {"end_ids": (), "top_p": 0.9}),
        ({}, {"do_sample": True, "top_k": 0}, {"end_ids": (), "temperature": 1.0, "top_k": 0}),
        ({}, {"do_sample": True, "temperature": 1.3}, {"end_ids": (), "temperature": 1.3, "top_k": 50}),
        ({}, {"max_new_tokens": 7, "stop_strings": ["a", "b"]}, {"end_ids": (), "max_tokens": 7, "stop": ("a", "b")}),
        ({}, {"guidance_scale": 1.0, "bad_words_ids": None, "min_length": 0, "num_beams": 1}, {"end_ids": ()}),
        ({"repetition_penalty": 3.0}, None, {"end_ids": (), "repetition_penalty": 3.0}),  # where it stood long ago
        ({"repetition_penalty": 3.0}, {}, {"end_ids": ()}),
        ({}, {"repetition_penalty": 1.1, "top_k": None}, {"end_ids": (), "repetition_penalty": 1.1}),
        ({}, {"num_beams": 1, "early_stopping": True}, {"end_ids": (), "early_stopping": True}),
        ({"eos_token_id": 50256, "bos_token_id": -1}, None, {"end_ids": ()}),  # beyond the vocabulary
    ],
)  # fmt: skip
def test_generation(tmp_path, fields, generation, expected):
    assert open_model(make_folder(tmp_path, LLAMA | fields, generation=generation)).generation == expected


def test_tokens_that_only_config_json_names_count_too(tmp_path):
    fields, generation = LLAMA | {"bos_token_id": 1, "pad_token_id": 0}, {"top_p": 0.6, "_from_model_config": True}
    other = open_model(make_folder(tmp_path, fields, generation=generation)).other_generation
    assert other == {"bos_token_id": 1, "pad_token_id": 0}


def test_options_that_fastllm_lacks_are_named(tmp_path):
    folder = make_folder(tmp_path, generation={"num_beams": 4, "bad_words_ids": [[3]], "guidance_scale": 1, "min_p": 0})
    with pytest.warns(UserWarning, match=r"generation_config.json sets num_beams, bad_words_ids: fastllm generates w"):
        assert open_model(folder).generation == {"end_ids": (), "min_p": 0}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0), ("stop_strings", ["a", ""]), ("typical_p", 1.5), ("length_penalty", 20),
        ("early_stopping", 1), ("forced_eos_token_id", 0), ("top_h", 0.4), ("max_new_tokens", 10**30),
    ],
)  # fmt: skip
def test_options_that_fastllm_can_not_take_are_passed_over(tmp_path, name, value):
    folder = make_folder(tmp_path, generation={name: value})
    with pytest.warns(UserWarning, match=f"sets {name}: fastllm generates without"):
        assert open_model(folder).generation == {"end_ids": ()}


@pytest.mark.parametrize(
    ("generation", "received"),
    [
        ({"temperature": -1}, "temperature as a number >= 0; got -1"),
        ({"temperature": "hot"}, "temperature as a number >= 0; got 'hot'"),
        ({"top_k": 2.5}, "top_k as a whole number >= 0, of at most 64 bits; got 2.5"),
        ({"top_k": 1 << 63}, "top_k as a whole number >= 0, of at most 64 bits; got 9223372036854775808"),
        ({"top_p": 0}, "top_p as a number > 0 and <= 1; got 0"),
        ({"min_p": True}, "min_p as a number from 0 to 1; got True"),
        ({"repetition_penalty": [1]}, "repetition_penalty as a number from 1e-30 to 1e30; got [1]"),
        ({"eos_token_id": 2.0}, "whole numbers; got 2.0"),
        ({"bos_token_id": "x"}, "whole numbers; got 'x'"),
    ],
)
def test_wrong_generation(tmp_path, generation, received):
    assert received in refusal(make_folder(tmp_path, generation=generation))


# Any damage


def whole_or_refused(path):
    """Only FormatError may come out, or a model that is whole; in little memory."""
    try:
        with Memory(4 << 20):
            opened = open_model(path)
    except FormatError as error:
        message = str(error)
    else:
        assert isinstance(opened, OpenedModel)
        decayed, others = parameter_shapes(opened.config)
        assert {name: weight.shape for name, weight in opened.weights.items()} == decayed | others
        return
    assert "\n" not in message
    assert len(message) < 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("damaged") / "model", {**LLAMA, "num_hidden_layers": 1}, generation={})


@pytest.fixture(scope="module")
def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(data=st.data())
@settings(max_examples=200)
def test_no_damage_to_a_folder_breaks_the_reader(folder, contents, data):
    name = data.draw(st.sampled_from(sorted(contents)))
    try:
        (folder / name).write_bytes(data.draw(damaged(contents[name])))
        whole_or_refused(folder)
    finally:
        (folder / name).write_bytes(contents[name])


VALUES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4) | st.just([[]])


@given(
    fields=st.dictionaries(
        st.sampled_from([
            *LLAMA, "rope_scaling", "rope_parameters", "rope_theta", "sliding_window", "use_sliding_window",
            "layer_types", "head_dim", "attention_bias", "mlp_bias", "eos_token_id", "bos_token_id",
            "quantization_config", "format",
        ]),
        VALUES | st.sampled_from(["llama", "mistral", "qwen2", "qwen3", "gpt2", 1, 2, 4, 8, {}, {"type": "linear"}]),
        max_size=4,
    )
)  # fmt: skip
@settings(max_examples=300)
def test_no_config_json_breaks_the_reader(folder, contents, fields):
    try:
        merged = {**json.loads(contents["config.json"]), **fields}
        (folder / "config.json").write_text(json.dumps(merged))
        whole_or_refused(folder)
    finally:
        (folder / "config.json").write_bytes(contents["config.json"])


@given(fields=st.dictionaries(st.sampled_from(["eos_token_id", "bos_token_id", "do_sample", "top_k", "top_p"]), VALUES))
def test_no_generation_config_breaks_the_reader(folder, contents, fields):
    try:
        (folder / "generation_config.json").write_text(json.dumps(fields))
        whole_or_refused(folder)
    finally:
        (folder / "generation_config.json").write_bytes(contents["generation_config.json"])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged") / "model.gguf"


@given(data=damaged(model_file()) | st.binary(max_size=100).map(lambda data: b"GGUF" + data))
@settings(max_examples=300)
def test_no_damage_to_a_gguf_file_breaks_the_reader(file, data):
    file.write_bytes(data)
    whole_or_refused(file)


KEYS = [
    "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.sliding_window",
    "attention.causal", "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "attention.scale",
    "expert_count", "rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor",
    "rope.scale_linear", "logit_scale",
]  # fmt: skip
OTHER_KEYS = [
    "general.architecture", "general.type", "general.alignment", "split.count", "general.sampling.temp",
    "general.sampling.top_k", "general.sampling.top_p", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.bos_token_id",
]  # fmt: skip
SINGLE = st.one_of(
    st.tuples(st.sampled_from(["u8", "u32", "u64"]), st.sampled_from([0, 1, 2, 3, 4, 8, 16, 32, 255])),
    st.tuples(st.just("i64"), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just("f32"), st.floats(width=32)),
    st.tuples(st.just("f64"), st.floats() | st.sampled_from([5e-324, 1.7e308])),
    st.tuples(st.just("bool"), st.booleans()),
    st.tuples(st.just("string"), st.text(max_size=3) | st.sampled_from(["llama", "gpt2", "qwen2", "qwen3", "linear"])),
)
ANY = SINGLE | SINGLE.flatmap(
    lambda one: st.integers(0, 3).map(lambda count: ("array", (one[0], [one[1]] * count)))
).flatmap(lambda array: st.sampled_from([array, ("array", ("array", [array[1]] * 2))]))


@given(
    architecture=st.sampled_from(["llama", "llama", "qwen2", "qwen3", "gpt2"]),
    fields=st.dictionaries(st.sampled_from(KEYS), ANY, max_size=3),
    others=st.dictionaries(st.sampled_from(OTHER_KEYS), ANY, max_size=1),
    factors=st.none() | st.lists(st.floats(width=32) | st.floats(1, 8, width=32), min_size=2, max_size=2),
)
@example(
    architecture="llama",
    fields={"rope.scaling.factor": ("f64", 1e308)},
    others={},
    factors=[1.0, 2.0],  # together more than a float
)
@settings(max_examples=300)
def test_no_metadata_break_the_reader(file, architecture, fields, others, factors):
    """Values of any type, where others are meant."""
    given = {key.replace("llama.", f"{architecture}."): value for key, value in GGUF_LLAMA.items()}
    given |= {"general.architecture": ("string", architecture)}
    given |= {f"{architecture}.{key}": value for key, value in fields.items()} | others
    arrays = tensors() | ({} if factors is None else {"rope_freqs.weight": np.array(factors, np.float32)})
    file.write_bytes(model_file(given, arrays))
    whole_or_refused(file)


@given(data=st.binary(max_size=300))
def test_no_other_file_breaks_the_reader(file, data):
    file.write_bytes(data)
    whole_or_refused(file)


def test_the_disk_is_full(tmp_path, monkeypatch):
    config = config_from_huggingface(LLAMA)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_huggingface(tmp_path / "a", config, parameters_of(config))
    with pytest.raises(OSError, match="No space"):
        write_gguf(tmp_path / "a.gguf", config, parameters_of(config), "F32")
    assert list(tmp_path.iterdir()) == []
