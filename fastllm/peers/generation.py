"""Generating text with fastllm, llama.cpp and transformers, each as its users would run it, in its own process.

All get the same ids and always take the most probable token. Each loads the model, reads a prompt, and continues token
by token. As each has its own process, peak memory can be measured for each.
"""

from __future__ import annotations

import importlib
import inspect
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

SEED = 0
STEPS_CHECKED = 4  # tokens that are decoded before logits are compared


@dataclass(frozen=True)
class GenerationCase:
    """A model in a file, and the numbers of tokens.

    path     a GGUF file, or a Hugging Face folder
    vocab    upper bound of ids
    context  tokens that a contender must have room for
    prompt   tokens of the prompt after which decoding is timed
    new      tokens that are decoded
    read     tokens of the prompt whose reading is timed
    together prompts that are decoded side by side
    cache_dtype  number type of fastllm's KV cache
    """

    path: str
    vocab: int
    context: int = 1024
    prompt: int = 128
    new: int = 64
    read: int = 512
    together: int = 8
    cache_dtype: str = "float32"

    def tokens(self, count: int, seed: int = SEED) -> np.ndarray:
        """`count` random ids, the same for all contenders."""
        return np.random.default_rng(seed).integers(0, self.vocab, count, dtype=np.int32)


class Generator(ABC):
    """A contender in generation. Making it loads the model."""

    def __init__(self, case: GenerationCase) -> None:
        self.case = case
        self.prompt, self.long = case.tokens(case.prompt), case.tokens(case.read)

    @abstractmethod
    def read(self, tokens: np.ndarray) -> np.ndarray:
        """Read a text from its beginning; logits (V,) after it."""

    @abstractmethod
    def step(self, token: int) -> np.ndarray:
        """Decode one more token; logits (V,) after it."""

    @abstractmethod
    def cache_bytes(self) -> int:
        """Memory of the KV cache."""

    def logits(self) -> np.ndarray:
        """Logits after the prompt, whose last tokens are decoded one by one; a copy."""
        some = min(STEPS_CHECKED, len(self.prompt) - 1)
        logits = self.read(self.prompt[: len(self.prompt) - some])
        for token in self.prompt[len(self.prompt) - some :].tolist():
            logits = self.step(token)
        return np.array(logits, np.float32)

    def reading(self) -> float:
        """Seconds to read the long prompt, until the logits of its last token."""
        began = time.perf_counter()
        self.read(self.long)
        return time.perf_counter() - began

    def decoding(self) -> float:
        """Seconds per token decoded after the prompt."""
        token = int(self.read(self.prompt).argmax())
        began = time.perf_counter()
        for _ in range(self.case.new):
            token = int(self.step(token).argmax())
        return (time.perf_counter() - began) / self.case.new

    def memory(self) -> dict[str, int]:
        """Bytes: the process's peak, and its KV cache."""
        from .worker import peak_memory

        return {"peak": peak_memory(), "cache": self.cache_bytes()}


class Fastllm(Generator):
    """Model.prefill and Model.decode on a GGUF file's weights."""

    def __init__(self, case: GenerationCase) -> None:
        super().__init__(case)
        from ..formats import open_model
        from ..model import Model

        opened = open_model(case.path)
        self.model = Model(opened.config, weights=opened.weights)
        self.model.cache_dtype = case.cache_dtype
        self.cache = self.model.new_cache()

    def read(self, tokens: np.ndarray) -> np.ndarray:
        self.cache.release(0)
        return self.model.prefill(tokens, None, self.cache)[0]

    def step(self, token: int) -> np.ndarray:
        return self.model.decode(np.array([token], np.int32), self.cache)[0]

    def cache_bytes(self) -> int:
        return self.cache.nbytes

    def together(self, count: int) -> float:
        """Seconds per step in which `count` texts are decoded side by side."""
        return self._decode(range(count))[0]

    def same_alone(self, count: int) -> bool:
        """Whether `count` texts side by side get the same tokens and last logits, to the bit, as each does alone."""
        tokens, logits = self._decode(range(count))[1:]
        for seed in range(count):
            alone, last = self._decode([seed])[1:]
            if not (np.array_equal(alone[:, 0], tokens[:, seed]) and np.array_equal(last[0], logits[seed])):
                return False
        return True

    def _decode(self, seeds: Sequence[int]) -> tuple[float, np.ndarray, np.ndarray]:
        """For texts side by side: seconds per step, tokens (new, texts) and the last logits (texts, V)."""
        cache, length = self.model.new_cache(len(seeds)), self.case.prompt
        tokens = np.concatenate([self.case.tokens(length, seed) for seed in seeds])
        logits = self.model.prefill(tokens, np.arange(0, len(tokens) + 1, length), cache)
        chosen = []
        began = time.perf_counter()
        for _ in range(self.case.new):
            chosen.append(logits.argmax(axis=1))
            logits = self.model.decode(chosen[-1], cache)
        return (time.perf_counter() - began) / self.case.new, np.array(chosen), np.array(logits)


class LlamaCpp(Generator):
    """llama_cpp.Llama: eval, and the largest logit.

    With flash attention, which is llama.cpp's default, but not its Python package's.
    """

    def __init__(self, case: GenerationCase) -> None:
        super().__init__(case)
        llama_cpp: Any = importlib.import_module("llama_cpp")

        from .worker import threads

        with silence():
            self.llama = llama_cpp.Llama(
                case.path, n_threads=threads(), n_threads_batch=threads(), n_ctx=case.context, flash_attn=True,
                verbose=False,
            )  # fmt: skip
        self._get = llama_cpp.llama_get_logits_ith

    def _logits(self) -> np.ndarray:
        return np.ctypeslib.as_array(self._get(self.llama.ctx, -1), shape=(self.case.vocab,))

    def read(self, tokens: np.ndarray) -> np.ndarray:
        self.llama.reset()
        self.llama.eval(tokens.tolist())
        return self._logits()

    def step(self, token: int) -> np.ndarray:
        self.llama.eval([token])
        return self._logits()

    def cache_bytes(self) -> int:
        """Keys and values for the whole context, in float16."""
        from ..formats import open_model

        config = open_model(self.case.path).config
        assert config.kv_heads is not None and config.head_size is not None
        return 2 * 2 * self.llama.n_ctx() * config.layers * config.kv_heads * config.head_size


class Transformers(Generator):
    """AutoModelForCausalLM in float32, with its cache; not compiled."""

    def __init__(self, case: GenerationCase) -> None:
        super().__init__(case)
        torch: Any = importlib.import_module("torch")
        transformers: Any = importlib.import_module("transformers")

        from .worker import threads

        torch.set_num_threads(threads())
        transformers.utils.logging.disable_progress_bar()
        self.torch = torch
        self.model = transformers.AutoModelForCausalLM.from_pretrained(case.path, dtype=torch.float32)
        self.model.eval()
        parameters = inspect.signature(self.model.forward).parameters
        self._name = "cache" if "cache" in parameters else "past_key_values"  # the older name
        self.past: Any = None

    def _run(self, tokens: Any, past: Any) -> np.ndarray:
        with self.torch.inference_mode():
            out = self.model(
                input_ids=self.torch.tensor([tokens]), use_cache=True, logits_to_keep=1, **{self._name: past}
            )
        self.past = out[self._name]
        return out.logits[0, -1].numpy()

    def read(self, tokens: np.ndarray) -> np.ndarray:
        return self._run(tokens.tolist(), None)

    def step(self, token: int) -> np.ndarray:
        return self._run([token], self.past)

    def cache_bytes(self) -> int:
        """Keys and values of the tokens read and decoded, in float32."""
        config = self.model.config
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        tokens = max(self.case.read, self.case.prompt + self.case.new)
        return 2 * 4 * tokens * config.num_hidden_layers * heads * head_size


GENERATORS: dict[str, type[Generator]] = {"fastllm": Fastllm, "llama.cpp": LlamaCpp, "transformers": Transformers}
NEEDS = {"llama.cpp": ("llama_cpp",), "transformers": ("torch", "transformers")}
PACKAGES = {"llama.cpp": "llama-cpp-python", "transformers": "torch transformers"}


@contextmanager
def silence() -> Iterator[None]:
    """A block in which nothing is written to the process's stderr, not even by C code."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
