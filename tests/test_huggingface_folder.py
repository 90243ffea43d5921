"""A folder that transformers wrote opens with the same tensors and configuration, and one of ours opens there."""

import numpy as np
import pytest

from fastllm.formats import open_model
from fastllm.packed import Packed
from fastllm.parameters import parameter_shapes

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
    assert opened.generation == {"end_ids": (2, 5) if theirs.model_type != "gpt2" else (2,), "begin_id": 1}
