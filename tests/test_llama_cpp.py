"""llama.cpp opens the GGUF files that are written here and computes what transformers computes."""

import numpy as np
import pytest

from fastllm import Model, ModelConfig
from fastllm.formats import open_model, write_gguf
from fastllm.packed import Packed
from fastllm.parameters import Parameters, initialise
from fastllm.peers.generation import silence
from fastllm.quantize import dequantize

llama_cpp = pytest.importorskip("llama_cpp")

import huggingface_models as models  # noqa: E402

TOKENS = np.random.default_rng(0).integers(0, models.VOCABULARY, 20).tolist()
CASES = [name for name in models.CASES if name != "qwen3-tied-biases"]  # biases, which llama.cpp's Qwen3 has not

# Of the largest logit. float32 on both sides; llama.cpp takes GELU from a table of float16.
TOLERANCE, GELU_TOLERANCE = 1e-5, 1e-3
# It rounds the activations, too: to float16, bfloat16, or blocks of 8 bits, which leave 6e-4, 5e-3 and 3e-2.
TOLERANCES = {"F32": TOLERANCE, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 6e-2, "Q4_0": 6e-2, "Q4_1": 6e-2}


def logits(path):
    """Of TOKENS, (20, V)."""
    with silence():
        model = llama_cpp.Llama(
            str(path), n_ctx=64, logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0  # float32 caches
        )  # fmt: skip
        try:
            model.eval(TOKENS)
            return np.array(model.scores[: len(TOKENS)])
        finally:
            model.close()


def assert_close(got, expected, tolerance):
    error = np.abs(got - expected).max() / np.abs(expected).max()
    assert error <= tolerance, f"off by {error:.1e} of the largest"


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_transformers(name, tmp_path):
    pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    model = models.make(name)
    model.save_pretrained(tmp_path / "theirs")
    opened = open_model(tmp_path / "theirs")
    write_gguf(tmp_path / "model.gguf", opened.config, opened.weights, "F32")
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([TOKENS])).logits[0].numpy()
    assert_close(logits(tmp_path / "model.gguf"), expected, GELU_TOLERANCE if "gpt2" in name else TOLERANCE)


@pytest.mark.parametrize("kind", TOLERANCES)
def test_every_kind(kind, tmp_path):
    config = ModelConfig(
        vocab_size=models.VOCABULARY, width=64, hidden=96, layers=2, heads=4, kv_heads=2, context=64, norm="rms_norm",
        activation="swiglu", positions="rope", attention_bias=False, feed_forward_bias=False, rope_interleaved=True,
        initial_std=None,
    )  # fmt: skip
    parameters = Parameters(config)
    initialise(parameters, config, seed=0)
    write_gguf(tmp_path / "model.gguf", config, parameters, kind)
    opened = open_model(tmp_path / "model.gguf")
    model = Model(config, backend="numpy")
    model.parameters.load(
        {name: dequantize(weight) if isinstance(weight, Packed) else weight for name, weight in opened.weights.items()}
    )
    assert_close(logits(tmp_path / "model.gguf"), model.forward(np.array(TOKENS)), TOLERANCES[kind])
