"""Text from a model: sampling, beam search, streaming, chat. Imports NumPy only."""

from fastllm.generation.beam import Hypothesis
from fastllm.generation.chat import Chat
from fastllm.generation.config import GenerationConfig
from fastllm.generation.generate import beam_search, generate, generate_tokens, stream
from fastllm.generation.sampling import Sampler

__all__ = [
    "Chat",
    "GenerationConfig",
    "Hypothesis",
    "Sampler",
    "beam_search",
    "generate",
    "generate_tokens",
    "stream",
]
