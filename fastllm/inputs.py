"""Checks of a model's inputs: tokens, where sequences start, targets, slots of a cache, seeds.

Each function raises TypeError for anything but whole numbers, ValueError for a number out of range or a wrong shape.
"""

from __future__ import annotations

from operator import sub

import numpy as np
from numpy.typing import ArrayLike

from .config import FLOAT32, ModelConfig, is_positive, whole_number
from .layers.batch import Batch
from .layers.kv_cache import KVCache


def array_of(numbers: ArrayLike, what: str) -> np.ndarray:
    """The numbers as an array. Raises ValueError for rows of different lengths, of which there is none."""
    try:
        return np.asarray(numbers)
    except ValueError:
        raise ValueError(
            f"{what} must be one row or rows of equal length; got {numbers!r:.40}; join sequences of different "
            "lengths to one row, and give starts"
        ) from None


def checked_tokens(config: ModelConfig, tokens: np.ndarray) -> np.ndarray:
    """Tokens (N,) or (B, T), checked and flattened."""
    if tokens.ndim not in (1, 2) or tokens.size == 0:
        raise ValueError(f"tokens must be (N,) or (B, T) with at least one token; got shape {tokens.shape}; "
                         "give at least one token")  # fmt: skip
    flat = int32_of(tokens, "tokens")
    if flat.view(np.uint32).max() >= config.vocab_size:  # as uint32, negative numbers are the largest
        at = int(np.flatnonzero((flat < 0) | (flat >= config.vocab_size))[0])
        raise ValueError(
            f"tokens must be from 0 to vocab_size - 1 = {config.vocab_size - 1}; got {flat[at]} at position "
            f"{at}; was the text encoded with another tokenizer?"
        )
    return flat


def checked_batch(config: ModelConfig, tokens: np.ndarray, starts: ArrayLike | None) -> Batch:
    """Tokens (N,) with starts, or (B, T), as packed rows with the position of each token."""
    flat = checked_tokens(config, tokens)
    if starts is None:
        length = tokens.shape[-1]
        bounds = np.arange(0, flat.size + 1, length, dtype=np.int32)
    elif tokens.ndim == 2:
        raise ValueError("starts goes with packed tokens (N,); got (B, T) tokens; leave starts out")
    else:
        bounds = int32_of(np.asarray(starts), "starts")
    places = bounds.tolist()
    lengths = list(map(sub, places[1:], places))
    if not lengths or places[0] != 0 or places[-1] != flat.size or min(lengths) < 1:
        raise ValueError(
            f"starts must rise from 0 to the number of tokens, {flat.size}; got {places[:8]}; "
            "give each sequence's first row, and the number of tokens last"
        )
    if max(lengths) > config.context:
        raise ValueError(
            f"a sequence may have at most context = {config.context} tokens; got {max(lengths)}; "
            "shorten it, or train a model with a longer context"
        )
    positions = np.arange(flat.size, dtype=np.int32)
    if len(lengths) > 1:
        positions -= np.repeat(bounds[:-1], lengths)
    return Batch(flat, bounds, positions)


def checked_targets(config: ModelConfig, targets: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """Targets for tokens of a shape, checked and flattened: the next id, or a negative number for none."""
    given = array_of(targets, "targets")
    flat = int32_of(given, "targets")
    if given.shape != shape:
        raise ValueError(
            f"targets must have the shape {shape} of the tokens, an entry for each; got {given.shape}; "
            "give -1 where a token has no target"
        )
    top = flat.max()
    if top >= config.vocab_size:
        raise ValueError(
            f"targets must be below vocab_size = {config.vocab_size}; got {top} at position "
            f"{int(flat.argmax())}; was the text encoded with another tokenizer?"
        )
    if top < 0:
        raise ValueError("a batch needs at least one target >= 0; got none; leave this batch out")
    return flat


def checked_normalizer(normalizer: float) -> float:
    """What a sum of losses is divided by. Raises ValueError unless its inverse is a float32 > 0."""
    if not is_positive(normalizer, *FLOAT32):
        raise ValueError(f"normalizer must be a number > 0; got {normalizer!r:.40}; None takes the number of targets")
    return float(normalizer)


def check_cache(config: ModelConfig, cache: KVCache, dtype: np.dtype) -> None:
    """Raise ValueError unless the cache fits a model of this configuration that computes in `dtype`."""
    is_alike = isinstance(cache, KVCache) and (cache.config is config or cache.config == config)
    if not is_alike or cache.dtype not in (dtype, np.float16):
        raise ValueError("a cache must be of a model like this one; got another; make it with model.new_cache()")


def checked_slots(cache: KVCache, slots: ArrayLike | None, count: int) -> np.ndarray:
    """The slots (count,) of tokens; None: 0, 1, 2, ..."""
    chosen = np.arange(count, dtype=np.int32) if slots is None else int32_of(np.asarray(slots), "slots")
    if chosen.shape != (count,):
        raise ValueError(
            f"slots must be {count} numbers here; got {chosen.size}; give one for each token of decode, or for each "
            "stretch of prefill"
        )
    if chosen.min() < 0 or chosen.max() >= cache.slots:
        raise ValueError(
            f"slots must be from 0 to {cache.slots - 1}; got {chosen.tolist()[:40]}; "
            "make a cache with more slots, or give fewer texts at once"
        )
    return chosen


def checked_seed(seed: int, what: str) -> int:
    """A seed of random numbers: a whole number from 0 to 2^63 - 1."""
    number = whole_number(seed, what)
    if not 0 <= number < 1 << 63:
        raise ValueError(f"{what} must be from 0 to 2^63 - 1; got {number}; use another")
    return number


def int32_of(array: np.ndarray, what: str) -> np.ndarray:
    """The array flattened, as int32. Raises if a value doesn't fit."""
    if array.dtype.kind not in "iu":
        raise TypeError(f"{what} must be whole numbers; got {array.dtype}; give an array of int32")
    flat = array.reshape(-1)
    if array.dtype == np.int32 and flat.flags.c_contiguous:
        return flat
    ids = np.ascontiguousarray(flat, np.int32)
    if (wrapped := ids != flat).any():  # 2^32 + 5 must not pass for 5
        at = int(wrapped.argmax())
        raise ValueError(f"{what} must fit into int32; got {flat[at]} at position {at}; give ids of the vocabulary")
    return ids
