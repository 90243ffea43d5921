"""fastllm: train, tune, run and understand language models on a CPU.

Every gradient is written by hand, every hot loop compiled by Numba, and every kernel has a NumPy twin.

    import fastllm

    model = fastllm.Model(fastllm.preset("nano", vocab_size=256), seed=0)
    loss = model.loss_and_gradients(tokens, targets)
    fastllm.AdamW(model).step(learning_rate=1e-3)

Names are imported when they are first used, so that `import fastllm` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> module that defines it
_HOME = {
    "AdamW": "optimizers",
    "Adam": "optimizers",
    "BPETokenizer": "tokenizers",
    "ByteTokenizer": "tokenizers",
    "CharacterTokenizer": "tokenizers",
    "Chat": "generation",
    "Completion": "generation",
    "ConfigError": "errors",
    "DataError": "errors",
    "FastllmError": "errors",
    "FormatError": "errors",
    "GenerationConfig": "generation",
    "LoRAConfig": "lora",
    "Lion": "optimizers",
    "Model": "model",
    "ModelConfig": "config",
    "SGD": "optimizers",
    "Schedule": "schedules",
    "Score": "layers.score",
    "Trainer": "training",
    "TrainingError": "errors",
    "WordTokenizer": "tokenizers",
    "beam_search": "generation",
    "clip_gradients": "optimizers",
    "generate": "generation",
    "generate_batch": "generation",
    "load": "checkpoint",
    "load_adapter": "adapters",
    "load_progress": "checkpoint",
    "load_tokenizer": "tokenizers",
    "preset": "config",
    "save": "checkpoint",
    "save_adapter": "adapters",
    "stream": "generation",
}

_MODULES = (
    "datasets",
    "errors",
    "generation",
    "kernels",
    "layers",
    "optimizers",
    "records",
    "schedules",
    "tokenizers",
    "training",
)

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "BPETokenizer",
    "ByteTokenizer",
    "CharacterTokenizer",
    "Chat",
    "Completion",
    "ConfigError",
    "DataError",
    "FastllmError",
    "FormatError",
    "GenerationConfig",
    "Lion",
    "LoRAConfig",
    "Model",
    "ModelConfig",
    "Schedule",
    "Score",
    "Trainer",
    "TrainingError",
    "WordTokenizer",
    "__version__",
    "beam_search",
    "clip_gradients",
    "datasets",
    "errors",
    "generate",
    "generate_batch",
    "generation",
    "kernels",
    "layers",
    "load",
    "load_adapter",
    "load_progress",
    "load_tokenizer",
    "optimizers",
    "preset",
    "records",
    "save",
    "save_adapter",
    "schedules",
    "stream",
    "tokenizers",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'fastllm' has no attribute {name!r}")


def __dir__() -> list[str]:
    own = {name for name in globals() if name.startswith("__") and name.endswith("__")}
    return sorted({*own, *_HOME, *_MODULES})


if TYPE_CHECKING:
    from . import datasets, errors, generation, kernels, layers, optimizers, records, schedules, tokenizers, training
    from .adapters import load_adapter, save_adapter
    from .checkpoint import load, load_progress, save
    from .config import ModelConfig, preset
    from .errors import ConfigError, DataError, FastllmError, FormatError, TrainingError
    from .generation import Chat, Completion, GenerationConfig, beam_search, generate, generate_batch, stream
    from .layers.score import Score
    from .lora import LoRAConfig
    from .model import Model
    from .optimizers import SGD, Adam, AdamW, Lion, clip_gradients
    from .schedules import Schedule
    from .tokenizers import BPETokenizer, ByteTokenizer, CharacterTokenizer, WordTokenizer, load_tokenizer
    from .training import Trainer
