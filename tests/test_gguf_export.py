"""GGUF files that are written: read back, by the gguf package too, and never left half done."""

import numpy as np
import pytest
from gguf_bytes import model_file
from gguf_models import a_model, llama3

from fastllm import FormatError, ModelConfig
from fastllm.formats import open_model, write_gguf
from fastllm.formats.gguf_file import read_gguf_file
from fastllm.packed import Packed
from fastllm.parameters import parameter_shapes
from fastllm.quantize import dequantize, quantize


def values(weight):
    return dequantize(weight) if isinstance(weight, Packed) else weight


MODELS = {
    "llama": {},
    "llama, on halves, tied": {"rope_interleaved": False, "tied_head": True},
    "llama, biases": {"attention_bias": True, "feed_forward_bias": True, "head_size": 6},
    "llama, linear": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "qwen2": {"attention_bias": True, "attention_output_bias": False, "rope_interleaved": False},
    "llama, qkv biases": {"attention_bias": True, "attention_output_bias": False},
    "llama, qkv biases, on halves": {
        "attention_bias": True, "attention_output_bias": False, "rope_interleaved": False, "head_size": 6
    },
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
    assert read_gguf_file(path).metadata["general.architecture"] == name.partition(",")[0]
    is_turned = opened.config.rope_interleaved != config.rope_interleaved
    back = ModelConfig.from_dict({**opened.config.to_dict(), "rope_interleaved": config.rope_interleaved})
    assert back == config
    assert opened.weights.keys() == parameters.keys()
    for key, array in parameters.items():
        expected = on_pairs(config, key, array) if is_turned else array
        np.testing.assert_array_equal(values(opened.weights[key]), expected, err_msg=key)


def test_a_position_table_of_another_kind_becomes_float32(path):
    """As llama.cpp's converter writes it, in float16."""
    config, parameters = a_model(**MODELS["gpt2"])
    write_gguf(path, config, parameters, "F32")
    arrays = {
        name: tensor.data.view("<f4").reshape(tensor.shape) for name, tensor in read_gguf_file(path).tensors.items()
    }
    fields = {f"gpt2.{name}": ("u32", size) for name, size in (
        ("context_length", config.context), ("embedding_length", config.width), ("block_count", config.layers),
        ("feed_forward_length", config.hidden), ("attention.head_count", config.heads),
    )}  # fmt: skip
    fields |= {"general.architecture": ("string", "gpt2"), "gpt2.attention.layer_norm_epsilon": ("f32", 1e-5)}
    halves = arrays["position_embd.weight"].astype(np.float16)
    path.write_bytes(model_file(fields, {**arrays, "position_embd.weight": halves}))
    opened = open_model(path)
    assert opened.config == config
    assert opened.weights["embedding.position.weight"].dtype == np.float32
    np.testing.assert_array_equal(opened.weights["embedding.position.weight"], halves)


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


def test_positions_stay_float32(path):
    config, parameters = a_model(**MODELS["gpt2"])
    write_gguf(path, config, parameters, "F16")
    assert read_gguf_file(path).tensors["position_embd.weight"].kind.name == "F32"


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
    assert opened.generation == {"end_ids": (7,)}
    written = read_gguf_file(path).metadata
    assert (written["general.name"], written["general.file_type"]) == ("name", 1)


@pytest.mark.parametrize(
    ("change", "received"),
    [
        ({"head_bias": True}, "head_bias=False"),
        ({"norm_position": "post"}, "norm_position=pre"),
        ({"activation": "silu"}, "activation=swiglu"),
        ({"attention_output_bias": True}, "attention_output_bias=False"),
        ({"qk_norm": True, "attention_bias": True}, "the nearest, qwen3, has"),
        ({"qk_norm": True, "attention_bias": True, "attention_output_bias": False}, "qwen3, has attention_bias=False"),
        ({**MODELS["qwen2"], "feed_forward_bias": True}, "the nearest, qwen2, has feed_forward_bias=False"),
        ({**MODELS["gpt2"], "kv_heads": 2}, "the nearest, gpt2, has kv_heads=4"),
        ({"qk_norm": True, "rope_scaling": llama3()}, "rope_scaling=None"),
        ({"positions": "learned"}, "the nearest, gpt2, has norm=layernorm"),
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
        write_gguf(path, config, parameters, "F32", {"tokenizer.x": np.float16(1)})  # which GGUF lacks
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
    assert opened.generation == {"end_ids": (2,)}
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
