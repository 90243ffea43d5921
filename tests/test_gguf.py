"""What a GGUF file's metadata and tensors say of a model."""

import gguf_bytes as by_hand
import numpy as np
import pytest
from gguf_bytes import LLAMA, entry, gguf_file, info, model_file, tensors
from gguf_models import a_model, llama3
from refusals import refusal

from fastllm import FormatError, ModelConfig
from fastllm.formats import open_model, write_gguf
from fastllm.formats.gguf_file import read_gguf_file
from fastllm.packed import KINDS, Packed
from fastllm.quantize import dequantize
from fastllm.rope import rope_frequencies

FACTORS = np.array([1.0, 1.5, 7.0, 8.0], np.float32)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"llama.attention.head_count_kv": ("u32", 1)}, {"kv_heads": 1}),
        ({"llama.attention.head_count": ("array", ("i32", [2]))}, {"heads": 2}),
        ({"llama.rope.freq_base": ("f32", 5e5)}, {"rope_theta": 5e5}),
        ({"llama.attention.layer_norm_rms_epsilon": ("f64", 1e-30)}, {"norm_eps": 1e-30}),
        ({"llama.rope.freq_base": ("f64", 1e300)}, {"rope_theta": 1e300}),
        ({"llama.attention.sliding_window": ("u32", 7)}, {"context": 7}),
        ({"llama.attention.sliding_window": ("u32", 99)}, {"context": 16}),
        ({"llama.expert_count": ("u32", 0)}, {"layers": 1}),
        (
            {"llama.rope.scaling.type": ("string", "none"), "llama.rope.scaling.factor": ("f32", 4)},
            {"rope_scaling": None},
        ),
        ({"llama.rope.scaling.type": ("string", "linear")}, {"rope_scaling": None}),
        (
            {"llama.rope.scaling.type": ("string", "linear"), "llama.rope.scaling.factor": ("f32", 2.5)},
            {"rope_scaling": {"type": "linear", "factor": 2.5}},
        ),
        ({"llama.rope.scale_linear": ("f32", 4)}, {"rope_scaling": {"type": "linear", "factor": 4.0}}),
        (
            {"llama.rope.scale_linear": ("f32", 4), "llama.rope.scaling.factor": ("f32", 2.5)},
            {"rope_scaling": {"type": "linear", "factor": 2.5}},
        ),
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
        ({"llama.rope.scaling.attn_factor": ("f32", 2)}, "attn_factor must be 1; got 2.0"),
        ({"llama.expert_count": ("u32", 8)}, "llama.expert_count must not be given; got 8"),
        ({"llama.logit_scale": ("array", ("f32", [1, 2]))}, "llama.logit_scale must be a single value"),
        ({"llama.attention.causal": ("bool", False)}, "attention.causal must be true"),
        ({"tokenizer.ggml.eos_token_id": ("string", "2")}, "ids of tokens as whole numbers; got '2'"),
        ({"general.sampling.temp": ("f32", -1)}, "temperature as a number >= 0; got -1.0"),
        ({"general.sampling.top_k": ("array", ("u8", [1, 2]))}, "top_k as a whole number >= 0"),
    ],
)
def test_what_is_refused_is_named(path, fields, received):
    path.write_bytes(model_file({**LLAMA, **fields}))
    assert received in refusal(path, open_model)


def test_wrong_tensors_are_named(path):
    arrays = tensors()
    for damaged, received in (
        ({name: array for name, array in arrays.items() if name != "blk.0.attn_v.weight"}, "missing, 'blk.0.attn_v"),
        (arrays | {"blk.0.attn_v.weight": arrays["blk.0.attn_v.weight"][:4]}, "blk.0.attn_v.weight must be of shape"),
        (arrays | {"blk.0.ffn_gate_exps.weight": np.ones((2, 2), np.float32)}, "unknown, 'blk.0.ffn_gate_exps"),
        ({"output_norm.weight": np.ones(8, np.float32)}, "token_embd.weight"),
        ({}, "token_embd.weight"),
        (arrays | {"rope_freqs.weight": np.ones(3, np.float32)}, "rope_freqs.weight must be F32, of shape (2,)"),
        (arrays | {"rope_freqs.weight": np.ones(2, np.float16)}, "got F16, (2,)"),
        (arrays | {"rope_freqs.weight": np.zeros(2, np.float32)}, "finite numbers > 0"),
        (arrays | {"rope_freqs.weight": np.full(2, np.nan, np.float32)}, "finite numbers > 0"),
        (arrays | {"rope_freqs.weight": np.full(2, np.inf, np.float32)}, "finite number > 0; got inf"),
    ):
        path.write_bytes(model_file(arrays=damaged))
        with pytest.raises(FormatError) as caught:
            open_model(path)
        assert received in str(caught.value)


def test_generation(path):
    fields = {
        "tokenizer.ggml.eot_token_id": ("u32", 4),
        "tokenizer.ggml.eom_token_id": ("u32", 3),
        "tokenizer.ggml.padding_token_id": ("u32", 0),
        "general.sampling.temp": ("f32", 0.7),
        "general.sampling.top_k": ("i32", 20),
        "general.sampling.penalty_repeat": ("f32", 1.5),
    }
    path.write_bytes(model_file({**LLAMA, **fields}))
    assert open_model(path).generation == {
        "end_ids": (2, 4, 3), "temperature": 0.7, "top_k": 20, "repetition_penalty": 1.5
    }  # fmt: skip
    assert open_model(path).other_generation == {"bos_token_id": 1, "pad_token_id": 0}
    fields = {f"tokenizer.ggml.{name}_token_id": ("u32", 5) for name in ("eot", "padding")}  # beyond the vocabulary
    fields |= {"general.sampling.top_k": ("i32", -1)}  # from a folder that says so
    path.write_bytes(model_file({**LLAMA, **fields}))
    assert open_model(path).other_generation == {"bos_token_id": 1}
    assert open_model(path).generation == {"end_ids": (2,), "top_k": 0}


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_every_kind(path, kind):
    """A norm in a kind of blocks is taken for what it is."""
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


LLAMA3_FACTORS = np.array([1.0, 8.0, 8.0, 8.0], np.float32)


@pytest.mark.parametrize(("factors", "scale"), [(FACTORS, 1), (FACTORS, 2.5), (LLAMA3_FACTORS, 2.5)])
def test_factors_that_are_not_llama_3s_are_taken_one_by_one(path, factors, scale):
    """A linear scale beside them counts too, as in llama.cpp."""
    fields = LLAMA | {"llama.attention.head_count": ("u32", 1), "llama.rope.scaling.factor": ("f32", scale)}
    path.write_bytes(model_file(fields, {**tensors(), "rope_freqs.weight": factors}))
    config = open_model(path).config
    assert config.rope_scaling == {"type": "factors", "factors": (factors * scale).tolist()}
    plain = ModelConfig.from_dict({**config.to_dict(), "rope_scaling": None})
    np.testing.assert_allclose(rope_frequencies(config) * factors * scale, rope_frequencies(plain), rtol=1e-15)


@pytest.mark.parametrize(
    ("head_size", "theta", "scaling"),
    [
        (128, 5e5, llama3()),  # Llama 3.1
        (64, 5e5, llama3(factor=32.0)),  # Llama 3.2
        (16, 1e4, llama3(original_max_position_embeddings=64)),
        (16, 5e5, llama3(original_max_position_embeddings=32)),  # no divisor between 1 and the factor
        (16, 5e5, llama3(original_max_position_embeddings=91643)),  # the least that the divisors allow
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
