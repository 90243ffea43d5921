"""Keys and values of the tokens so far, so that a new token costs one row instead of the whole text."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from ..config import ModelConfig


class KVCache:
    """Memory for `batch` sequences of at most `capacity` tokens.

    keys, values  for each layer, (batch, capacity, K*D)
    lengths       (batch,) int32, tokens in each slot
    """

    def __init__(self, config: ModelConfig, batch: int, capacity: int, dtype: DTypeLike = np.float32) -> None:
        if batch < 1:
            raise ValueError(f"a cache needs at least one slot; got batch={batch}; give batch=1 or more")
        if not 1 <= capacity <= config.context:
            raise ValueError(
                f"a cache's capacity must be between 1 and the model's context of {config.context} tokens; "
                f"got {capacity}; shorten the prompt or ask for fewer tokens"
            )
        assert config.kv_heads is not None and config.head_size is not None
        shape = (batch, capacity, config.kv_heads * config.head_size)
        self.keys = [np.zeros(shape, dtype) for _ in range(config.layers)]
        self.values = [np.zeros(shape, dtype) for _ in range(config.layers)]
        self.lengths = np.zeros(batch, np.int32)
        self.capacity = capacity

    @property
    def batch(self) -> int:
        """Number of slots."""
        return len(self.lengths)

    def reorder(self, indices: np.ndarray) -> None:
        """Let slot b hold what slot indices[b] held; indices (batch,) may repeat (beam search)."""
        indices = np.asarray(indices)
        if indices.shape != (self.batch,) or indices.min() < 0 or indices.max() >= self.batch:
            raise ValueError(
                f"reorder takes {self.batch} slot numbers from 0 to {self.batch - 1}; got {indices.tolist()}; "
                "give one for each slot"
            )
        used = int(self.lengths.max(initial=0))
        for layer in (*self.keys, *self.values):
            layer[:, :used] = layer[indices, :used]
        self.lengths[:] = self.lengths[indices]
