"""Text generation: sampling, batches, beam search, streaming, chat. Imports neither Numba nor `tokenizers`."""

from .beam import Hypothesis
from .chat import Chat
from .config import GenerationConfig, GenerationOptions
from .engine import Engine, Generation
from .generate import (
    beam_search,
    completions,
    generate,
    generate_batch,
    generate_tokens,
    stream,
    stream_pieces,
)
from .sampling import Sampler, TokenLogprobs
from .text import Completion, Piece

__all__ = [
    "Chat",
    "Completion",
    "Engine",
    "Generation",
    "GenerationConfig",
    "GenerationOptions",
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
