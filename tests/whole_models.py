"""What the tests of whole models share: configurations, both backends, and how near is near."""

import numpy as np
import pytest
from model_switches import LLAMA3

import fastllm

# The same sums in another order: of the largest number. See test_model_switches.
TOLERANCE = 3e-5

CONFIG = fastllm.ModelConfig(
    vocab_size=19, width=12, hidden=11, layers=2, heads=6, kv_heads=2, context=9, norm="rms_norm",
    activation="swiglu", positions="rope", rope_scaling=LLAMA3,
)  # fmt: skip
POSITIONS = {
    kind: fastllm.ModelConfig(vocab_size=19, width=12, hidden=11, layers=2, heads=3, context=9, positions=kind)
    for kind in ("learned", "rope", "sinusoidal", "none")
}

backends = pytest.mark.parametrize("backend", ["numba", "numpy"])


def assert_close(got, expected, tolerance=TOLERANCE):
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())
