"""The cases of the race: models, batches, and attention by itself. Independent of the contenders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..config import ModelConfig, preset
from ..datasets import Example, make_examples
from ..records import read_records, record_texts
from ..tokenizers import WordTokenizer

SEED = 0
LEARNING_RATE, MAX_NORM, WEIGHT_DECAY, BETAS, EPS = 1e-4, 1.0, 0.1, (0.9, 0.999), 1e-8
DIALOGUES = "fastllm:en/dialogues.jsonl"  # shipped with the library


def random_examples(vocabulary: int, lengths: Iterable[int], seed: int) -> list[Example]:
    """Sequences of random ids, of which a model reads `lengths` tokens; the target of each is the next token."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, vocabulary, length + 1, dtype=np.int32) for length in lengths]
    return [Example(row[:-1], row[1:]) for row in rows]


@dataclass(frozen=True)
class TrainingCase:
    """A training step: forward, loss, backward, clipping, AdamW.

    lengths  tokens of each sequence; if they differ, PyTorch gets rows padded to the longest
    """

    config: ModelConfig
    lengths: Sequence[int]

    @property
    def flops(self) -> int:
        """6 x matrix parameters x tokens, plus causal attention's products: two forward, four backward."""
        c = self.config
        assert c.kv_heads is not None and c.head_size is not None
        attention = c.width * c.qkv_width + (c.heads * c.head_size * c.width if c.attention_output else 0)
        feed_forward = c.width * c.hidden * (3 if c.activation == "swiglu" else 2)
        matrices = c.layers * (attention + feed_forward) + c.vocab_size * c.width
        visible = sum(length * (length + 1) // 2 for length in self.lengths)
        return 6 * matrices * sum(self.lengths) + 12 * visible * c.layers * c.heads * c.head_size

    def examples(self) -> list[Example]:
        """The sequences: random, but the same for all contenders."""
        return random_examples(self.config.vocab_size, self.lengths, SEED)


@dataclass(frozen=True)
class AttentionCase:
    """Causal attention, forward and backward, of one sequence."""

    heads: int
    head_size: int
    length: int

    @property
    def flops(self) -> int:
        """Two products forward, four backward, for the pairs that the causal mask lets through."""
        return 12 * self.length * (self.length + 1) // 2 * self.heads * self.head_size

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Queries, keys and values side by side (T, 3 * H * D), and the gradient (T, H * D) of the output."""
        rng = np.random.default_rng(SEED)
        width = self.heads * self.head_size
        return (
            rng.standard_normal((self.length, 3 * width), dtype=np.float32),
            rng.standard_normal((self.length, width), dtype=np.float32),
        )


Case = TrainingCase | AttentionCase


def dialogue_lengths(count: int, context: int) -> list[int]:
    """Numbers of tokens in the first shipped dialogues, one token per word."""
    from ..training.source import resolve  # not above, as a contender's process doesn't need it

    records = read_records(resolve(DIALOGUES))[:count]
    tokenizer = WordTokenizer.build(record_texts(records))
    return [len(example.tokens) for example in make_examples(records, tokenizer, context)]


def cases() -> dict[str, tuple[Case, float]]:
    """Each case by name, with the target: how many times as fast as the better PyTorch it should be."""
    tiny, gpt2 = preset("rustgpt", vocab_size=533), preset("gpt2")
    nano = partial(preset, "gpt2", vocab_size=65)
    return {
        "tiny, one row": (TrainingCase(tiny, [24]), 8.0),
        "tiny, real lengths": (TrainingCase(tiny, dialogue_lengths(32, tiny.context)), 4.0),
        "nanoGPT CPU": (
            TrainingCase(nano(width=128, hidden=512, layers=4, heads=4, context=64), [64] * 12), 2.0,
        ),
        "nanoGPT char": (
            TrainingCase(nano(width=384, hidden=1536, layers=6, heads=6, context=256), [256] * 16), 1.6,
        ),
        "GPT-2 124M, short": (TrainingCase(gpt2, [64] * 4), 1.5),
        "GPT-2 124M, long": (TrainingCase(gpt2, [1024]), 1.5),
        "Llama-style 15M": (TrainingCase(preset("llama"), [256] * 4), 1.6),
        "attention alone": (AttentionCase(12, 64, 4096), 1.5),
    }  # fmt: skip
