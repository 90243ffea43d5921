"""Whether a tokenizer fits a model, whose embedding must have a row for each token and may have more."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path

from .config import ModelConfig
from .errors import FormatError
from .small_files import brief
from .tokenizers import HuggingFaceTokenizer, Tokenizer


def fitting(path: Path, tokenizer: Tokenizer, config: ModelConfig) -> Tokenizer:
    """The tokenizer for the model at a path, without added tokens that the embedding has no rows for.

    Warns if it leaves any out. Raises FormatError where other tokens have no rows.
    """
    if tokenizer.vocab_size > config.vocab_size and isinstance(tokenizer, HuggingFaceTokenizer):
        tokenizer = _limited(path, tokenizer, config.vocab_size)
    check_vocabulary(path, tokenizer, config)
    return tokenizer


def _limited(path: Path, tokenizer: HuggingFaceTokenizer, size: int) -> HuggingFaceTokenizer:
    """The tokenizer without the added tokens from id `size` on; as it is where it can't do without them."""
    with contextlib.suppress(ValueError, TypeError):
        limited = tokenizer.limited(size)
        if limited.vocab_size <= size:
            surplus = [token for token in tokenizer.tokens[size:] if token]
            names = ", ".join(map(brief, surplus[:3])) + (f" and {len(surplus) - 3} more" if len(surplus) > 3 else "")
            warnings.warn(f"{path}: tokens that the model has no rows for are left out: {names}", stacklevel=9)
            return limited
    return tokenizer


def check_vocabulary(path: Path, tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Raise FormatError for a tokenizer with more tokens than the model has rows."""
    if tokenizer.vocab_size > config.vocab_size:
        raise FormatError(
            f"{path}: a tokenizer must have at most as many tokens as the model's vocab_size, {config.vocab_size}; got "
            f"{tokenizer.vocab_size}; use the tokenizer that the model was trained with"
        )
