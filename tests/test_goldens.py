"""Forward, loss and gradients equal Hugging Face's for the same weights (made by goldens/make_goldens.py)."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import fastllm
from fastllm.formats.huggingface import from_huggingface, to_huggingface
from fastllm.formats.huggingface_config import config_from_huggingface

GOLDENS = Path(__file__).parent / "goldens"
NAMES = (
    "gpt2", "llama", "llama-tied-wide-heads", "llama-biases-linear-rope", "llama3-rope", "mistral", "qwen2", "qwen3",
    "qwen3-tied-biases",
)  # fmt: skip

# Of the largest number in a tensor. float32 rounds to 6e-8; some hundred sums and products one after another,
# on both sides, leave up to 7e-6 (where most of the key bias's gradient cancels). The smallest mistake that
# must not pass, GELU by erf instead of tanh, makes 2e-4.
TOLERANCE = 1e-4
# Of the loss, a mean of 31 numbers: a few of float32's last bits.
LOSS_TOLERANCE = 1e-6


def assert_close(got, expected, what):
    assert got.shape == expected.shape, what
    error = np.abs(got - expected).max() / np.abs(expected).max()
    assert error <= TOLERANCE, f"{what}: off by {error:.1e} of its largest number"


def arrays_under(golden, prefix):
    return {name.removeprefix(prefix): array for name, array in golden.items() if name.startswith(prefix)}


@pytest.fixture(params=NAMES)
def golden(request):
    with np.load(GOLDENS / f"{request.param}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(params=["numpy", "numba"])
def model(request, golden):
    config = config_from_huggingface(json.loads(str(golden["config"])))
    model = fastllm.Model(config, backend=request.param)
    model.parameters.load(from_huggingface(config, arrays_under(golden, "weight/")))
    return model


def test_logits(model, golden):
    assert_close(model.forward(golden["tokens"], golden["starts"]), golden["logits"], "logits")


def test_prefill_and_decode(model, golden):
    """All but the last token of each sequence read at once, the last alone, by way of the cache."""
    starts, tokens = golden["starts"], golden["tokens"]
    for begin, end in pairwise(starts):
        cache = model.new_cache()
        if end - begin > 1:
            logits = model.prefill(tokens[begin : end - 1], None, cache)
            assert_close(logits[0], golden["logits"][end - 2], f"logits of row {end - 2}")
            logits = model.decode(tokens[end - 1 : end], cache)
        else:
            logits = model.prefill(tokens[begin:end], None, cache)
        assert_close(logits[0], golden["logits"][end - 1], f"logits of row {end - 1}")


def test_loss_and_gradients(model, golden):
    batch = golden["tokens"], golden["targets"], golden["starts"]
    model.zero_gradients()
    assert model.loss_and_gradients(*batch) == pytest.approx(float(golden["loss"]), rel=LOSS_TOLERANCE)
    assert model.loss(*batch) == pytest.approx(float(golden["loss"]), rel=LOSS_TOLERANCE)
    # By their names, for GPT-2's query, key and value share one scale: the key bias's gradient alone is
    # exactly 0 (it shifts all scores of a row), so rounding is all there is of it.
    gradients = to_huggingface(model.config, model.gradients)
    expected = arrays_under(golden, "gradient/")
    assert gradients.keys() == expected.keys()
    for name in expected:
        assert_close(gradients[name], expected[name], f"gradient of {name}")


def test_weights_survive_the_round_trip(golden):
    config = config_from_huggingface(json.loads(str(golden["config"])))
    weights = arrays_under(golden, "weight/")
    back = to_huggingface(config, from_huggingface(config, weights))
    assert back.keys() == weights.keys()
    for name, weight in weights.items():
        np.testing.assert_array_equal(back[name], weight, err_msg=name)
        assert back[name].flags.c_contiguous, name
