"""What layers need to know of a batch beyond its rows: where sequences begin, where tokens stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .kv_cache import KVCache


@dataclass(slots=True)
class Batch:
    """Packed rows: the tokens of all sequences one after another.

    tokens     (N,)    int32
    starts     (S+1,)  int32; sequence s has rows starts[s] .. starts[s+1]-1
    positions  (N,)    int32; place of each token in its sequence
    cache      where keys and values are kept, or None
    slots      (N,)    int32; the cache's slot of each row
    is_decode  one new token for each slot, attending to the cache; else whole sequences, to themselves
    dropout    seed of this step's dropout masks, or None outside training
    """

    tokens: np.ndarray
    starts: np.ndarray
    positions: np.ndarray
    cache: KVCache | None = None
    slots: np.ndarray | None = None
    is_decode: bool = False
    dropout: int | None = None
