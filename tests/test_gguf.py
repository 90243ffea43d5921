"""GGUF files: read as the gguf package and llama.cpp read them, and written so that they do."""

import struct

import gguf_bytes as by_hand
import numpy as np
import pytest
from gguf_bytes import LLAMA, entry, gguf_file, info, model_file, string, tensors

from fastllm import FormatError, ModelConfig
from fastllm.formats import open_model, write_gguf
from fastllm.formats.gguf_file import MAX_DEPTH, MAX_ITEMS, read_gguf_file
from fastllm.layers.rotary import rope_frequencies
from fastllm.packed import KINDS, Packed
from fastllm.parameters import Parameters, initialise, parameter_shapes
from fastllm.quantize import dequantize, quantize

FACTORS = np.array([1.0, 1.5, 7.0, 8.0], np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.gguf"


def values(weight):
    return dequantize(weight) if isinstance(weight, Packed) else weight


def a_model(seed=0, **changes):
    """A configuration of Llama's and random parameters, no two alike."""
    fields = {
        "vocab_size": 61, "width": 64, "hidden": 96, "layers": 2, "heads": 4, "kv_heads": 2, "context": 128,
        "norm": "rms_norm", "activation": "swiglu", "positions": "rope", "rope_interleaved": True,
        "attention_bias": False, "feed_forward_bias": False, "tied_head": False,
    }  # fmt: skip
    config = ModelConfig(**{**fields, **changes})
    parameters = Parameters(config)
    initialise(parameters, config, seed)
    parameters.flat += np.random.default_rng(seed).standard_normal(len(parameters.flat), np.float32) / 100
    return config, parameters


# The container


def test_every_type_of_metadata(path):
    whole = {"u8": 200, "i8": -3, "u16": 60000, "i16": -7, "u32": 2**32 - 1, "i32": -(2**31), "u64": 2**64 - 1}
    single = {**whole, "i64": -(2**63), "f32": 0.5, "f64": 0.1, "bool": True, "string": "é\0\n"}
    entries = [entry(f"one.{kind}", kind, content) for kind, content in single.items()]
    entries += [entry(f"many.{kind}", "array", (kind, [content] * 3)) for kind, content in single.items()]
    entries += [entry("none", "array", ("string", [])), entry("", "array", ("f32", []))]
    entries += [entry("nested", "array", ("array", [("i8", [1, 2]), ("string", ["a"]), ("array", [("u8", [])])]))]
    path.write_bytes(gguf_file(entries))
    metadata = read_gguf_file(path).metadata
    for kind, content in single.items():
        assert metadata[f"one.{kind}"] == content
        assert type(metadata[f"one.{kind}"]) is type(content)
        many = metadata[f"many.{kind}"]
        assert isinstance(many, list if kind == "string" else np.ndarray)
        assert list(many) == [content] * 3
    assert metadata["none"] == []
    assert metadata[""].tolist() == []
    numbers, strings, deep = metadata["nested"]
    assert (numbers.tolist(), strings, [inner.tolist() for inner in deep]) == ([1, 2], ["a"], [[]])


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [8, 32, 256])
def test_a_file_by_hand_is_a_model(path, version, alignment):
    path.write_bytes(
        model_file({**LLAMA, "general.alignment": ("u32", alignment)}, alignment=alignment, version=version)
    )
    opened = open_model(path)
    expected = {"vocab_size": 5, "width": 8, "hidden": 6, "layers": 1, "heads": 2, "kv_heads": 2, "head_size": 4}
    expected |= {"context": 16, "norm": "rms_norm", "norm_eps": 1e-5, "activation": "swiglu", "positions": "rope"}
    expected |= {"rope_theta": 10000.0, "rope_interleaved": True, "rope_scaling": None, "tied_head": True}
    expected |= {"attention_bias": False, "attention_output_bias": False, "feed_forward_bias": False}
    assert {field: getattr(opened.config, field) for field in expected} == expected
    assert (opened.source, opened.path) == ("gguf", path)
    assert opened.generation == {"end_ids": (2,), "begin_id": 1}
    assert opened.metadata == {"general.architecture": "llama", "general.alignment": alignment}
    assert opened.tokenizer_metadata["tokenizer.ggml.tokens"][3] == "▁a"
    assert opened.tokenizer_metadata["tokenizer.ggml.scores"].tolist() == [0, 0, 0, -1, -2]
    decayed, others = parameter_shapes(opened.config)
    assert opened.weights.keys() == (decayed | others).keys()
    arrays = tensors()
    for ours, theirs in (
        ("embedding.token.weight", "token_embd.weight"),
        ("blocks.0.attention.query.weight", "blk.0.attn_q.weight"),
        ("blocks.0.feed_forward.down.weight", "blk.0.ffn_down.weight"),
    ):
        weight = opened.weights[ours]
        assert isinstance(weight, Packed) and not weight.data.flags.owndata and not weight.data.flags.writeable
        np.testing.assert_array_equal(dequantize(weight), arrays[theirs])
    norm = opened.weights["blocks.0.attention_norm.weight"]
    np.testing.assert_array_equal(norm, arrays["blk.0.attn_norm.weight"])
    assert norm.dtype == np.float32


TOO_DEEP = ("u8", [])
for _ in range(MAX_DEPTH + 1):
    TOO_DEEP = ("array", [TOO_DEEP])
ENTRY = entry("general.alignment", "u32", 32)


@pytest.mark.parametrize(
    ("data", "received"),
    [
        (b"", "got b''"),
        (b"GGML" + bytes(100), "got b'GGML'"),
        (b"GGUF", "got an end at 4"),
        (gguf_file(version=1), "got 1;"),
        (gguf_file(version=4), "got 4;"),
        (gguf_file(version=3 << 24), "got a big-endian file"),
        (gguf_file(counts=(1, 0))[:24], "got an end at 24"),
        (gguf_file(counts=(2**63, 0)), f"got {2**63}"),
        (gguf_file(counts=(0, 2**40)), f"got {2**40}"),
        (gguf_file([string(b"\xff") + ENTRY[25:]]), "must be UTF-8"),
        (gguf_file([struct.pack("<Q", 2**63)], counts=(0, 1)), f"got {2**63}"),
        (gguf_file([struct.pack("<Q", 65535)], counts=(0, 1)), "go on for 65535 bytes"),
        (gguf_file([ENTRY, ENTRY]), "got 'general.alignment' twice"),
        (gguf_file([string("a") + struct.pack("<I", 13)]), "got 13;"),
        (gguf_file([string("a") + struct.pack("<IIQ", 9, 6, 2**61)]), f"go on for {2**63} bytes"),
        (gguf_file([string("a") + struct.pack("<IIQ", 9, 8, 2**61)]), f"at most {MAX_ITEMS} items"),
        (gguf_file([string("a") + struct.pack("<IIQ", 9, 9, 2**61)]), f"at most {MAX_ITEMS} items"),
        (gguf_file([string("a") + struct.pack("<IIQ", 9, 8, 2**20)]), "an array must hold strings"),
        (gguf_file([string("a") + struct.pack("<IIQQ", 9, 8, 1, 2**64 - 1)]), "a string must lie within the file"),
        (gguf_file([string("a") + struct.pack("<IIQ", 9, 8, 1) + string(b"\xc3")]), "strings of UTF-8"),
        (gguf_file([entry("a", "array", TOO_DEEP)]), f"at most {MAX_DEPTH} deep"),
        (gguf_file([entry("a", "string", "")], counts=(0, 9)), "go on for 8 bytes"),
        (gguf_file([string("a") + struct.pack("<IB", 7, 2)]), "boolean must be 0 or 1"),
        (gguf_file([entry("general.alignment", "u32", 0)]), "power of 2 from 8; got 0"),
        (gguf_file([entry("general.alignment", "u32", 24)]), "power of 2 from 8; got 24"),
        (gguf_file([entry("general.alignment", "u32", 1 << 31)]), f"got {1 << 31}"),
        (gguf_file([entry("general.alignment", "string", "32")]), "got '32'"),
        (gguf_file([], [info("a", (), 0, 0)], bytes(64)), "1 to 4 dimensions; got 0"),
        (gguf_file([], [info("a", (1,) * 5, 0, 0)], bytes(64)), "1 to 4 dimensions; got 5"),
        (gguf_file([], [info("a", (2, 0), 0, 0)], bytes(64)), "got (2, 0)"),
        (gguf_file([], [info("a", (2, 33), 8, 0)], bytes(640)), "a multiple of 32 weights, as Q8_0 has; got (2, 33)"),
        (gguf_file([], [info("a", (4,), 16, 0)], bytes(64)), "got IQ2_XXS; use a file of one of these"),
        (gguf_file([], [info("a", (4,), 99, 0)], bytes(64)), "got number 99"),
        (gguf_file([], [info("a", (4,), 0, 4)], bytes(64)), "a multiple of 32; got bytes 4 to 20"),
        (gguf_file([], [info("a", (4,), 0, 32)], bytes(32)), "got bytes 32 to 48 of 32"),
        (gguf_file([], [info("a", (2**63, 2**63, 2**63, 2**63), 0, 0)], bytes(32)), f"got bytes 0 to {2**254} of 32"),
        (gguf_file([], [info("a", (4,), 0, 2**64 - 32)], bytes(32)), f"got bytes {2**64 - 32}"),
        (gguf_file([], [info("a", (4,), 0, 0), info("a", (4,), 0, 32)], bytes(64)), "got 'a' twice"),
        (gguf_file([], [info("a", (9,), 0, 0), info("b", (4,), 0, 32)], bytes(64)), "must not overlap; got 'b'"),
        (gguf_file([], [info("a", (9,), 0, 0), info("b", (4,), 0, 0)], bytes(64)), "must not overlap"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(path, data, received):
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        read_gguf_file(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert received in message
    assert "\n" not in message


# What the metadata say of a model


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"llama.attention.head_count_kv": ("u32", 1)}, {"kv_heads": 1}),
        ({"llama.attention.head_count": ("array", ("i32", [2]))}, {"heads": 2}),
        ({"llama.rope.freq_base": ("f32", 5e5)}, {"rope_theta": 5e5}),
        ({"llama.attention.layer_norm_rms_epsilon": ("f64", 1e-300)}, {"norm_eps": 1e-300}),
        ({"llama.rope.freq_base": ("f64", 1e300)}, {"rope_theta": 1e300}),
        ({"llama.attention.sliding_window": ("u32", 7)}, {"context": 7}),
        ({"llama.attention.sliding_window": ("u32", 99)}, {"context": 16}),
        ({"llama.expert_count": ("u32", 0)}, {"layers": 1}),
        ({"llama.rope.scaling.type": ("string", "none"), "llama.rope.scaling.factor": ("f32", 4)}, {}),
        ({"llama.rope.scaling.type": ("string", "linear")}, {"rope_scaling": None}),
        (
            {"llama.rope.scaling.type": ("string", "linear"), "llama.rope.scaling.factor": ("f32", 2.5)},
            {"rope_scaling": {"type": "linear", "factor": 2.5}},
        ),
        ({"llama.rope.scale_linear": ("f32", 4)}, {"rope_scaling": {"type": "linear", "factor": 4.0}}),
        ({"general.architecture": ("string", "qwen2")}, {"rope_interleaved": False, "qk_norm": False}),
    ],
)
def test_metadata(path, fields, expected):
    architecture = fields.get("general.architecture", ("string", "llama"))[1]
    given = {key.replace("llama.", f"{architecture}."): content for key, content in {**LLAMA, **fields}.items()}
    arrays = tensors()
    if "llama.attention.head_count_kv" in fields:
        arrays |= {f"blk.0.attn_{name}.weight": arrays[f"blk.0.attn_{name}.weight"][:4] for name in "kv"}
    path.write_bytes(model_file(given, arrays))
    config = open_model(path).config
    assert {field: getattr(config, field) for field in expected} == expected


@pytest.mark.parametrize(
    ("fields", "received"),
    [
        ({"general.architecture": None}, "one of llama, qwen2, qwen3, gpt2; got None"),
        ({"general.architecture": ("string", "mamba")}, "got 'mamba'"),
        ({"general.architecture": ("u32", 7)}, "got 7"),
        ({"general.type": ("string", "adapter")}, "general.type 'adapter'"),
        ({"general.type": ("array", ("u8", [1, 2]))}, "general.type must be a single value"),
        ({"split.count": ("u16", 3)}, "one of 3 parts; join them"),
        ({"llama.block_count": None}, "llama.block_count must be a whole number > 0; got None"),
        ({"llama.block_count": ("u32", 0)}, "got 0"),
        ({"llama.block_count": ("f32", 1)}, "got 1.0"),
        ({"llama.block_count": ("u32", 2**31)}, "layers must be a whole number"),
        ({"llama.block_count": ("u32", 10**9)}, "must have more tensors than that"),
        ({"llama.block_count": ("u32", 2)}, "missing, 'blk.1."),
        ({"llama.attention.head_count": ("u32", 8)}, "RoPE turns pairs"),
        ({"llama.attention.head_count": ("u32", 9)}, "attention.key_length must be"),
        ({"llama.attention.head_count": ("array", ("u32", [2, 4]))}, "llama.attention.head_count must be"),
        ({"llama.attention.head_count": ("array", ("u32", []))}, "llama.attention.head_count must be"),
        ({"llama.attention.head_count": ("array", ("string", ["2"]))}, "llama.attention.head_count must be"),
        ({"llama.attention.key_length": ("u32", 8)}, "must be of shape"),
        ({"llama.attention.value_length": ("u32", 8)}, "value_length must be the head's size, 4; got 8"),
        ({"llama.rope.dimension_count": ("u32", 2)}, "dimension_count must be the head's size, 4; got 2"),
        ({"llama.attention.layer_norm_rms_epsilon": ("f32", float("nan"))}, "a finite number > 0; got nan"),
        ({"llama.attention.layer_norm_rms_epsilon": ("f32", 0)}, "got 0.0"),
        ({"llama.rope.freq_base": ("bool", True)}, "a finite number > 0; got True"),
        ({"llama.rope.freq_base": ("f64", float("inf"))}, "a finite number > 0; got inf"),
        ({"llama.rope.scaling.type": ("string", "yarn")}, "none or linear; got 'yarn'"),
        ({"llama.expert_count": ("u32", 8)}, "llama.expert_count must not be given; got 8"),
        ({"llama.logit_scale": ("array", ("f32", [1, 2]))}, "llama.logit_scale must be a single value"),
        ({"llama.attention.causal": ("bool", False)}, "attention.causal must be true"),
        ({"tokenizer.ggml.eos_token_id": ("string", "2")}, "ids of tokens as whole numbers; got '2'"),
        ({"general.sampling.temp": ("f32", -1)}, "temperature as a number >= 0; got -1.0"),
    ],
)
def test_what_is_refused_is_named(path, fields, received):
    path.write_bytes(model_file({**LLAMA, **fields}))
    with pytest.raises(FormatError) as caught:
        open_model(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert received in message
    assert "\n" not in message


def test_wrong_tensors_are_named(path):
    arrays = tensors()
    for damaged, received in (
        ({name: array for name, array in arrays.items() if name != "blk.0.attn_v.weight"}, "missing, 'blk.0.attn_v"),
        (arrays | {"blk.0.attn_v.weight": arrays["blk.0.attn_v.weight"][:4]}, "blk.0.attn_v.weight must be of shape"),
        (arrays | {"blk.0.ffn_gate_exps.weight": np.ones((2, 2), np.float32)}, "unknown, 'blk.0.ffn_gate_exps"),
        ({"output_norm.weight": np.ones(8, np.float32)}, "token_embd.weight"),
        ({}, "token_embd.weight"),
        (arrays | {"rope_freqs.weight": np.ones(3, np.float32)}, "rope_freqs.weight must be F32, of shape (2,)"),
        (arrays | {"rope_freqs.weight": np.zeros(2, np.float32)}, "finite numbers > 0"),
        (arrays | {"rope_freqs.weight": np.full(2, np.nan, np.float32)}, "finite numbers > 0"),
    ):
        path.write_bytes(model_file(arrays=damaged))
        with pytest.raises(FormatError) as caught:
            open_model(path)
        assert received in str(caught.value)


def test_generation(path):
    fields = {
        "tokenizer.ggml.eot_token_id": ("u32", 4),
        "tokenizer.ggml.eom_token_id": ("u32", 4000),  # beyond the vocabulary
        "general.sampling.temp": ("f32", 0.5),
        "general.sampling.top_k": ("i32", 20),
        "general.sampling.penalty_repeat": ("f32", 1.5),
    }
    path.write_bytes(model_file({**LLAMA, **fields}))
    assert open_model(path).generation == {
        "end_ids": (2, 4), "begin_id": 1, "temperature": 0.5, "top_k": 20, "repetition_penalty": 1.5
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_every_kind(path, kind):
    """A position table and a bias in a kind of blocks are taken for what they are."""
    width = 256
    shapes = by_hand.SHAPES | {"output.weight": (by_hand.VOCABULARY, width)}
    rng = np.random.default_rng(0)
    infos, data, expected = [], b"", {}
    for name, shape in shapes.items():
        shape = tuple({by_hand.WIDTH: width, by_hand.HIDDEN: width}.get(size, size) for size in shape)
        raw = rng.integers(0, 60, (shape[0] if len(shape) == 2 else 1, KINDS[kind].row_bytes(width)), np.uint8)
        infos.append(info(name, shape, KINDS[kind].number, len(data)))
        expected[name] = dequantize(Packed(raw, KINDS[kind]))
        data += raw.tobytes()
        data += bytes(-len(data) % 32)
    fields = {**LLAMA, "llama.embedding_length": ("u32", width), "llama.feed_forward_length": ("u32", width)}
    path.write_bytes(gguf_file([entry(key, *content) for key, content in fields.items()], infos, data))
    opened = open_model(path)
    assert opened.weights["head.weight"].kind == KINDS[kind]
    np.testing.assert_array_equal(dequantize(opened.weights["head.weight"]), expected["output.weight"])
    np.testing.assert_array_equal(opened.weights["final_norm.weight"], expected["output_norm.weight"][0])


# RoPE's factors


def test_factors_that_are_not_llama_3s_are_taken_one_by_one(path):
    fields = LLAMA | {"llama.embedding_length": ("u32", 8), "llama.attention.head_count": ("u32", 1)}
    path.write_bytes(model_file(fields, {**tensors(), "rope_freqs.weight": FACTORS}))
    config = open_model(path).config
    assert config.rope_scaling == {"type": "factors", "factors": FACTORS.tolist()}
    plain = ModelConfig.from_dict({**config.to_dict(), "rope_scaling": None})
    np.testing.assert_allclose(rope_frequencies(config) * FACTORS, rope_frequencies(plain), rtol=1e-15)


def llama3(**changes):
    scaling = {
        "type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    return scaling | changes


@pytest.mark.parametrize(
    ("head_size", "theta", "scaling"),
    [
        (128, 5e5, llama3()),  # Llama 3.1
        (64, 5e5, llama3(factor=32.0)),  # Llama 3.2
        (16, 1e4, llama3(original_max_position_embeddings=64)),
    ],
)
def test_llama_3s_factors_are_known_again(path, head_size, theta, scaling):
    """They are written as float32 divisors, and the numbers they were made of are found."""
    config, parameters = a_model(head_size=head_size, rope_theta=theta, rope_scaling=scaling)
    write_gguf(path, config, parameters, "F32")
    assert open_model(path).config == config
    stored = read_gguf_file(path).tensors["rope_freqs.weight"].data.view("<f4")
    plain = ModelConfig.from_dict({**config.to_dict(), "rope_scaling": None})
    np.testing.assert_allclose(rope_frequencies(plain) / stored, rope_frequencies(config), rtol=1e-7)


def test_other_numbers_of_llama_3s_kind_stay_exact(path):
    config, parameters = a_model(rope_scaling=llama3(high_freq_factor=5.0, original_max_position_embeddings=64))
    write_gguf(path, config, parameters, "F32")
    opened = open_model(path).config
    assert opened.rope_scaling["type"] == "factors"
    np.testing.assert_allclose(rope_frequencies(opened), rope_frequencies(config), rtol=1e-7)


# Writing

MODELS = {
    "llama": {},
    "llama, on halves, tied": {"rope_interleaved": False, "tied_head": True},
    "llama, biases": {"attention_bias": True, "feed_forward_bias": True, "head_size": 6},
    "llama, linear": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "qwen2": {"attention_bias": True, "attention_output_bias": False, "rope_interleaved": False},
    "llama, qkv biases": {"attention_bias": True, "attention_output_bias": False},
    "qwen3": {"qk_norm": True, "rope_interleaved": False, "head_size": 8},
    "qwen3, on pairs": {"qk_norm": True, "rope_interleaved": True},
    "gpt2": {
        "norm": "layernorm", "activation": "gelu_tanh", "positions": "learned", "rope_interleaved": False,
        "attention_bias": True, "feed_forward_bias": True, "kv_heads": 4, "tied_head": True,
    },
}  # fmt: skip


def on_pairs(config, name, array):
    """By hand: row 2i of a head from row i, row 2i + 1 from row i + D/2, and the other way round."""
    if config.positions != "rope" or not any(part in name for part in (".query", ".key")):
        return array
    heads = array.reshape(-1, config.head_size, *array.shape[1:])
    out = np.empty_like(heads)
    half = config.head_size // 2
    for i in range(half):
        if config.rope_interleaved:
            out[:, i], out[:, half + i] = heads[:, 2 * i], heads[:, 2 * i + 1]
        else:
            out[:, 2 * i], out[:, 2 * i + 1] = heads[:, i], heads[:, half + i]
    return out.reshape(array.shape)


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(path, name):
    config, parameters = a_model(**MODELS[name])
    write_gguf(path, config, parameters, "F32")
    opened = open_model(path)
    assert opened.metadata["general.architecture"] == name.partition(",")[0]
    is_turned = opened.config.rope_interleaved != config.rope_interleaved
    back = ModelConfig.from_dict({**opened.config.to_dict(), "rope_interleaved": config.rope_interleaved})
    assert back == config
    assert opened.weights.keys() == parameters.keys()
    for key, array in parameters.items():
        expected = on_pairs(config, key, array) if is_turned else array
        np.testing.assert_array_equal(values(opened.weights[key]), expected, err_msg=key)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("tied", [True, False])
def test_kinds(path, kind, tied):
    config, parameters = a_model(tied_head=tied, hidden=70)
    write_gguf(path, config, parameters, kind)
    weights = open_model(path).weights
    higher = "embedding.token.weight" if tied else "head.weight"
    for name, array in parameters.items():
        if array.ndim == 1:
            np.testing.assert_array_equal(weights[name], array)
            continue
        expected = kind
        if kind.startswith("Q4") and name == higher:
            expected = "Q8_0"
        if kind.startswith("Q") and name.endswith("down.weight"):  # rows of 70
            expected = "F16"
        np.testing.assert_array_equal(weights[name].data, quantize(array, expected).data, err_msg=name)
        assert weights[name].kind.name == expected


def test_kept_kinds_keep_their_bytes(path):
    config, parameters = a_model(seed=1)
    weights = {name: quantize(array, "Q4_1") if array.ndim == 2 else array for name, array in parameters.items()}
    weights["head.weight"] = quantize(parameters["head.weight"], "BF16")
    for kind in None, "Q4_1":
        write_gguf(path, config, weights, kind)
        opened = open_model(path)
        for name, weight in weights.items():
            if name != "head.weight" and isinstance(weight, Packed):
                assert opened.weights[name].kind == weight.kind
                np.testing.assert_array_equal(opened.weights[name].data, weight.data)
        assert opened.weights["head.weight"].kind.name == ("BF16" if kind is None else "Q8_0")


def test_tokenizer_and_other_metadata(path):
    config, parameters = a_model()
    tokenizer = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a", "é"],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.scores": np.array([0.5, -1], np.float32),
        "tokenizer.ggml.token_type": [1, 3],
        "tokenizer.ggml.eos_token_id": 7,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.large": 2**40,
        "tokenizer.negative": -1,
        "tokenizer.byte": np.uint8(3),
        "tokenizer.double": np.float64(0.1),
        "tokenizer.flags": [True, False],
    }
    write_gguf(path, config, parameters, "F16", tokenizer, metadata={"general.name": "name"})
    opened = open_model(path)
    assert opened.tokenizer_metadata.keys() == tokenizer.keys()
    for key, value in tokenizer.items():
        received = opened.tokenizer_metadata[key]
        assert list(received) == list(value) if isinstance(value, (list, np.ndarray)) else received == value
    assert opened.tokenizer_metadata["tokenizer.ggml.token_type"].dtype == np.int32
    assert opened.metadata["general.name"] == "name"
    assert opened.metadata["general.file_type"] == 1
    assert opened.generation == {"end_ids": (7,)}


@pytest.mark.parametrize(
    ("change", "received"),
    [
        ({"head_bias": True}, "head_bias=False"),
        ({"norm_position": "post"}, "norm_position=pre"),
        ({"activation": "silu"}, "activation=swiglu"),
        ({"attention_output_bias": True}, "attention_output_bias=False"),
        ({"qk_norm": True, "attention_bias": True}, "qwen3, the nearest, has"),
        ({"qk_norm": True, "rope_scaling": llama3()}, "rope_scaling=None"),
        ({"positions": "learned"}, "gpt2, the nearest, has norm=layernorm"),
    ],
)
def test_a_model_unknown_to_llama_cpp_is_refused(path, change, received):
    config, parameters = a_model(**change)
    with pytest.raises(FormatError) as caught:
        write_gguf(path, config, parameters, "F32")
    assert received in str(caught.value)
    assert not path.exists()


def test_what_can_not_be_written_leaves_what_was_there(path):
    config, parameters = a_model()
    path.write_text("before")
    with pytest.raises(ValueError, match="kind must be one of"):
        write_gguf(path, config, parameters, "Q6_K")
    with pytest.raises(ValueError, match=r"keys tokenizer\.\* of their own; got 'model'"):
        write_gguf(path, config, parameters, "F32", {"model": 1})
    with pytest.raises(ValueError, match=r"keys general\.\* of their own; got 'general.architecture'"):
        write_gguf(path, config, parameters, "F32", metadata={"general.architecture": "x"})
    with pytest.raises(ValueError, match=r"tokenizer.x must be a number, a string"):
        write_gguf(path, config, parameters, "F32", {"tokenizer.x": {}})
    with pytest.raises(FormatError, match=r"missing, 'head\.weight'"):
        write_gguf(path, config, {name: array for name, array in parameters.items() if name != "head.weight"}, "F32")
    parameters["head.weight"][3, 3] = np.inf
    with pytest.raises(FormatError, match=r"output.weight can't be written: numbers must be finite"):
        write_gguf(path, config, parameters, "Q8_0")
    assert path.read_text() == "before"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_the_gguf_package_reads_it(path, kind):
    gguf = pytest.importorskip("gguf")
    config, parameters = a_model(rope_scaling=llama3(original_max_position_embeddings=64))
    write_gguf(path, config, parameters, kind, {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "é"]})
    reader = gguf.GGUFReader(path)
    ours = open_model(path).weights
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["llama.rope.dimension_count"].contents() == 16
    assert reader.fields["tokenizer.ggml.tokens"].contents() == ["a", "é"]
    theirs = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    for name, key in (
        ("token_embd.weight", "embedding.token.weight"),
        ("blk.1.attn_k.weight", "blocks.1.attention.key.weight"),
        ("blk.1.ffn_down.weight", "blocks.1.feed_forward.down.weight"),
        ("output_norm.weight", "final_norm.weight"),
        ("output.weight", "head.weight"),
    ):
        np.testing.assert_array_equal(theirs[name], values(ours[key]), err_msg=name)
    assert len(theirs) == len(ours) + 1


def test_a_file_of_the_gguf_package(path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(16)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(5e5)
    writer.add_rope_dimension_count(8)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "c"])
    writer.add_token_types([1, 1, 3])
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(0)
    sizes = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
    sizes |= {"ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}
    arrays = {f"blk.0.{name}.weight": rng.standard_normal(shape, np.float32) for name, shape in sizes.items()}
    arrays |= {"token_embd.weight": rng.standard_normal((3, 32), np.float32)}
    for name in "blk.0.attn_norm", "blk.0.ffn_norm", "output_norm":
        writer.add_tensor(f"{name}.weight", rng.standard_normal(32, np.float32))
    for name, array in arrays.items():
        quantized = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q5_0)
        writer.add_tensor(name, quantized, raw_dtype=gguf.GGMLQuantizationType.Q5_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    opened = open_model(path)
    assert (opened.config.head_size, opened.config.kv_heads, opened.config.norm_eps) == (8, 2, 1e-6)
    assert opened.config.rope_theta == 5e5
    key = opened.weights["blocks.0.attention.key.weight"]
    theirs = gguf.quants.quantize(arrays["blk.0.attn_k.weight"], gguf.GGMLQuantizationType.Q5_0)
    np.testing.assert_array_equal(key.data, theirs)


def test_smollm2(smollm2):
    """A published file: llama.cpp's own converter and quantiser made it."""
    opened = open_model(smollm2)
    config = opened.config
    assert (config.vocab_size, config.width, config.hidden, config.layers) == (49152, 576, 1536, 30)
    assert (config.heads, config.kv_heads, config.context, config.tied_head) == (9, 3, 8192, True)
    assert (config.rope_theta, config.norm_eps, config.rope_interleaved) == (100000.0, 1e-5, True)
    assert opened.generation == {"end_ids": (2,), "begin_id": 1}
    assert len(opened.tokenizer_metadata["tokenizer.ggml.tokens"]) == 49152
    assert opened.tokenizer_metadata["tokenizer.ggml.merges"][0] == "Ġ t"
    decayed, others = parameter_shapes(config)
    assert opened.weights.keys() == (decayed | others).keys()
    assert opened.weights["embedding.token.weight"].kind.name == "Q8_0"
    for name, weight in opened.weights.items():
        data = weight.data if isinstance(weight, Packed) else weight
        assert not (isinstance(weight, Packed) and data.flags.owndata), name
    gguf = pytest.importorskip("gguf")
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(smollm2).tensors}["blk.17.ffn_down.weight"]
    ours = opened.weights["blocks.17.feed_forward.down.weight"]
    np.testing.assert_array_equal(dequantize(ours), gguf.quants.dequantize(theirs.data, theirs.tensor_type))
