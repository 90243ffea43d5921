"""A folder that transformers wrote opens with the same tensors and configuration, and one of ours opens there."""

import numpy as np
import pytest

from fastllm.config import ModelConfig
from fastllm.formats import open_model, write_huggingface
from fastllm.formats.bytes_of_file import mapped_file
from fastllm.formats.huggingface import to_huggingface
from fastllm.packed import Packed
from fastllm.parameters import Parameters, initialise, parameter_shapes

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

import huggingface_models as models  # noqa: E402

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def values(weight):
    """The weight in float32, by PyTorch."""
    if not isinstance(weight, Packed):
        assert weight.dtype == np.float32
        return weight
    raw = torch.frombuffer(bytearray(weight.data.tobytes()), dtype=getattr(torch, DTYPES[weight.kind.name]))
    return raw.float().reshape(weight.shape).numpy()


def check(opened, model, kind="F32"):
    decayed, others = parameter_shapes(opened.config)
    expected = models.expected(model)
    assert opened.weights.keys() == expected.keys() == (decayed | others).keys()
    for name, weight in opened.weights.items():
        is_matrix = expected[name].ndim == 2 and name != "embedding.position.weight"
        assert isinstance(weight, Packed) is is_matrix, name
        if is_matrix:
            assert weight.kind.name == kind
            assert weight.data.flags.c_contiguous
        np.testing.assert_array_equal(values(weight), expected[name], err_msg=name)


@pytest.mark.parametrize("name", models.CASES)
def test_every_tensor_and_the_configuration(name, tmp_path):
    model = models.make(name)
    model.save_pretrained(tmp_path)
    opened = open_model(tmp_path)
    check(opened, model)
    theirs, ours = model.config, opened.config
    assert (opened.source, opened.path) == ("huggingface", tmp_path)
    assert ours.tied_head is theirs.tie_word_embeddings
    if theirs.model_type == "gpt2":
        expected = {"width": 24, "hidden": theirs.n_inner or 96, "layers": 2, "heads": 3, "context": 24}
        expected |= {"norm": "layernorm", "activation": "gelu_tanh", "positions": "learned", "norm_eps": 1e-5}
    else:
        expected = {"width": 24, "hidden": 40, "layers": 2, "heads": 4, "kv_heads": 2, "context": 128}
        expected |= {"norm": "rms_norm", "activation": "swiglu", "positions": "rope", "norm_eps": 1e-3}
        expected |= {
            "head_size": getattr(theirs, "head_dim", None) or 6,
            "rope_theta": theirs.rope_parameters["rope_theta"],
            "rope_interleaved": False,
            "qk_norm": theirs.model_type == "qwen3",
            "attention_bias": "bias" in name or "qwen2" in name,
            "attention_output_bias": "bias" in name,
            "feed_forward_bias": name == "llama-tied-biases",
        }
    assert {field: getattr(ours, field) for field in expected} == expected
    assert opened.generation == {"end_ids": (2, 5) if theirs.model_type != "gpt2" else (2,)}


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3-tied-biases"])
@pytest.mark.parametrize(("kind", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_half_precision_stays_as_it_is(name, kind, dtype, tmp_path):
    model = models.make(name).to(dtype)
    model.save_pretrained(tmp_path)
    check(open_model(tmp_path), model, kind)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2-tied"])
def test_a_model_in_several_files(name, tmp_path):
    model = models.make(name)
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    check(open_model(tmp_path), model)


def test_opening_copies_no_matrix(tmp_path):
    models.make("llama").save_pretrained(tmp_path)
    for weight in open_model(tmp_path).weights.values():
        array = weight.data if isinstance(weight, Packed) else weight
        assert mapped_file(array) is not None
        assert not array.flags.writeable


@pytest.mark.parametrize("name", models.CASES)
def test_what_is_written_computes_the_same_there(name, tmp_path):
    model = models.make(name)
    model.save_pretrained(tmp_path / "theirs")
    opened = open_model(tmp_path / "theirs")
    write_huggingface(
        tmp_path / "ours", opened.config, opened.weights, generation=opened.generation,
        other_generation=opened.other_generation,
    )  # fmt: skip
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    np.testing.assert_array_equal(models.logits(back), models.logits(model))
    assert back.dtype == torch.float32
    assert back.generation_config.eos_token_id == model.config.eos_token_id
    assert back.generation_config.bos_token_id == model.config.bos_token_id
    again = open_model(tmp_path / "ours")
    assert again.config == opened.config
    assert again.generation == opened.generation
    check(again, model)
    assert {path.name for path in tmp_path.iterdir()} == {"theirs", "ours"}


@pytest.mark.parametrize("name", [name for name in models.CASES if "gpt2" not in name])
def test_rope_on_pairs_becomes_rope_on_halves(name, tmp_path):
    """Queries and keys by hand for pairs: row 2i of a head was row i, row 2i + 1 was row i + D/2."""
    model = models.make(name)
    model.save_pretrained(tmp_path / "theirs")
    opened = open_model(tmp_path / "theirs")
    half = opened.config.head_size // 2
    weights = dict(opened.weights)
    for key, weight in weights.items():
        if ".query" in key or ".key" in key:
            halves = values(weight)
            pairs = np.empty_like(halves)
            for head in range(0, len(halves), 2 * half):
                for i in range(half):
                    pairs[head + 2 * i] = halves[head + i]
                    pairs[head + 2 * i + 1] = halves[head + half + i]
            weights[key] = pairs
    config = ModelConfig.from_dict(opened.config.to_dict() | {"rope_interleaved": True})
    write_huggingface(tmp_path / "ours", config, weights)
    check(open_model(tmp_path / "ours"), model)
    tensors = to_huggingface(config, {key: values(weight) for key, weight in weights.items()})
    expected = model.state_dict()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, expected[key].numpy(), err_msg=key)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize(("kind", "dtype"), [("F16", "float16"), ("BF16", "bfloat16")])
def test_writing_half_precision(name, kind, dtype, tmp_path):
    model = models.make(name)
    model.save_pretrained(tmp_path / "theirs")
    opened = open_model(tmp_path / "theirs")
    write_huggingface(tmp_path / "ours", opened.config, opened.weights, dtype=dtype)
    check(open_model(tmp_path / "ours"), model.to(getattr(torch, dtype)), kind)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert back.dtype == getattr(torch, dtype)


def test_models_of_ours_that_have_a_name_there(tmp_path):
    """A width that heads do not divide is Mistral's alone; other activations are GPT-2's."""
    wide = ModelConfig(
        vocab_size=61, width=10, hidden=12, layers=1, heads=4, kv_heads=2, head_size=6, context=32, norm="rms_norm",
        activation="swiglu", positions="rope", attention_bias=False, feed_forward_bias=False, tied_head=False,
    )  # fmt: skip
    relu = ModelConfig(vocab_size=61, width=12, hidden=12, layers=1, heads=2, context=32, activation="relu")
    for config, kind in (wide, "mistral"), (relu, "gpt2"):
        parameters = Parameters(config)
        initialise(parameters, config, seed=0)
        write_huggingface(tmp_path / kind, config, parameters)
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / kind)
        assert model.config.model_type == kind
        opened = open_model(tmp_path / kind)
        assert opened.config == config
        for name, weight in opened.weights.items():
            np.testing.assert_array_equal(values(weight), parameters[name], err_msg=name)
        assert opened.generation == {"end_ids": ()}
