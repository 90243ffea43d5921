"""Text from a model: sampling, batches, beam search, streaming, chat. Neither Numba nor `tokenizers` is imported."""

from fastllm.generation.beam import Hypothesis
from fastllm.generation.chat import Chat
from fastllm.generation.config import GenerationConfig
from fastllm.generation.engine import Engine, Generation
from fastllm.generation.generate import (
    beam_search,
    completions,
    generate,
    generate_batch,
    generate_tokens,
    stream,
    stream_pieces,
)
from fastllm.generation.sampling import Sampler, TokenLogprobs
from fastllm.generation.text import Completion, Piece

__all__ = [
    "Chat",
    "Completion",
    "Engine",
    "Generation",
    "GenerationConfig",
    "Hypothesis",
    "Piece",
    "Sampler",
    "TokenLogprobs",
    "beam_search",
    "completions",
    "generate",
    "generate_batch",
    "generate_tokens",
    "stream",
    "stream_pieces",
]
