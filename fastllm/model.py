"""The model: embedding, blocks, final norm, head; and backward in reverse."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .config import ModelConfig
from .layers.backend import Backend
from .layers.batch import Batch
from .layers.block import Block
from .layers.embedding import Embedding
from .layers.head import Head
from .layers.kv_cache import KVCache
from .layers.norm import Norm
from .layers.rotary import rope_tables
from .layers.score import Score
from .layers.workspace import Workspace
from .memory import aligned
from .parameters import Parameters, initialise

# Rows whose activations are in memory at once. A larger batch is done in parts of whole sequences: the same sums, in
# less memory. A thousand rows keep the matrix products at full speed.
ROWS_AT_ONCE = 1024


class Model:
    """A decoder-only transformer with its parameters, gradients and activations.

    config   what it is
    seed     of the random weights
    backend  "numba" (the compiled kernels) or "numpy" (their twins)
    dtype    float32; with backend "numpy" also float64, for gradient checks

    tokens are int32 ids, (N,) packed rows or (B, T); starts (S+1,) says where sequences begin in packed rows.
    A target below 0 has no loss. One thread at a time: activations belong to the model.

        >>> import numpy as np, fastllm
        >>> model = fastllm.Model(fastllm.preset("nano", vocab_size=50), seed=0)
        >>> model.forward(np.array([[1, 2, 3], [4, 5, 6]])).shape
        (2, 3, 50)
    """

    def __init__(
        self, config: ModelConfig, seed: int = 0, backend: str = "numba", dtype: DTypeLike = np.float32
    ) -> None:
        assert config.head_size is not None
        self.config = config
        self._backend = Backend(backend, config.head_size, config.width, dtype)
        self.parameters = Parameters(config, self._backend.dtype)
        self.gradients = Parameters(config, self._backend.dtype)
        initialise(self.parameters, config, seed)
        self._workspace = Workspace(self._backend.dtype)
        shared = (self._backend, config, self.parameters, self.gradients, self._workspace)
        self.embedding = Embedding(*shared)
        angles = rope_tables(config, self._backend.dtype)
        self.blocks = [Block(*shared, layer, angles) for layer in range(config.layers)]
        self.final_norm = Norm(*shared, "final_norm") if config.final_norm else None
        self.head = Head(*shared)
        self._dstream = self._workspace.rows(config.width)
        self._dnormed = self._workspace.rows(config.width)

    @property
    def backend(self) -> str:
        """The name of the backend."""
        return self._backend.name

    def forward(self, tokens: ArrayLike, starts: ArrayLike | None = None) -> np.ndarray:
        """Logits (N, V) of tokens (N,), or (B, T, V) of (B, T): a fresh array."""
        ids = np.asarray(tokens)
        logits = aligned((ids.size, self.config.vocab_size), self._backend.dtype)
        for part in self._batch(ids, starts).parts(ROWS_AT_ONCE):
            self.head.forward(logits[part.rows], self._run(part))
        return logits.reshape(*ids.shape, -1)

    def score(self, tokens: ArrayLike, targets: ArrayLike, starts: ArrayLike | None = None) -> Score:
        """Sum of losses, right answers and targets; no dropout."""
        ids = np.asarray(tokens)
        batch = self._batch(ids, starts)
        wanted = self._targets(targets, ids.shape)
        score = Score()
        for part in batch.parts(ROWS_AT_ONCE):
            if (wanted[part.rows] >= 0).any():
                score += self.head.score(self._run(part), wanted[part.rows])
        return score

    def score_and_gradients(
        self,
        tokens: ArrayLike,
        targets: ArrayLike,
        starts: ArrayLike | None = None,
        normalizer: float | None = None,
        dropout_seed: int | None = None,
        accumulate: bool = True,
    ) -> Score:
        """As score, and the gradients of sum of losses / normalizer are added to `gradients`.

        normalizer    None: the number of targets here, so that the loss is a mean. When a step is split into
                      several batches, give the number of targets of them all
        dropout_seed  whole number >= 0 that the masks follow from; None: no dropout
        accumulate    False: gradients take the place of what is there. Quicker than zero_gradients before
        """
        ids = np.asarray(tokens)
        batch = self._batch(ids, starts)
        batch.dropout = dropout_seed
        wanted = self._targets(targets, ids.shape)
        normalizer = float((wanted >= 0).sum()) if normalizer is None else float(normalizer)
        score = Score()
        if not accumulate:
            self._zero_sums()
        for part in batch.parts(ROWS_AT_ONCE):
            if (wanted[part.rows] >= 0).any():
                part.accumulate = accumulate or score.targets > 0
                score += self._score_and_gradients(part, wanted[part.rows], normalizer)
        return score

    def _zero_sums(self) -> None:
        """Set the gradients to 0 that are always added to: norms', and embeddings' but for a tied head's."""
        begin = self.gradients.decayed
        if self.config.tied_head:
            begin += self.gradients["embedding.token.weight"].size
        self.gradients.flat[begin:] = 0

    def _score_and_gradients(self, batch: Batch, targets: np.ndarray, normalizer: float) -> Score:
        """Forward and backward of a part of a batch, at least one of whose tokens has a target."""
        out = self._run(batch)
        dstream = self._dstream.array
        if self.final_norm:
            score = self.head.score_and_gradients(self._dnormed.array, out, targets, normalizer, batch.accumulate)
            self.final_norm.backward(dstream, self._dnormed.array, self._before_final_norm)
        else:
            score = self.head.score_and_gradients(dstream, out, targets, normalizer, batch.accumulate)
        for i in reversed(range(len(self.blocks))):
            self.blocks[i].backward(dstream, self._streams[i], batch)
        self.embedding.backward(dstream, batch)
        return score

    def loss(self, tokens: ArrayLike, targets: ArrayLike, starts: ArrayLike | None = None) -> float:
        """Mean cross-entropy over targets >= 0, in nats."""
        return self.score(tokens, targets, starts).loss

    def loss_and_gradients(self, tokens: ArrayLike, targets: ArrayLike, starts: ArrayLike | None = None) -> float:
        """The loss; its gradients are added to `gradients` (see zero_gradients)."""
        return self.score_and_gradients(tokens, targets, starts).loss

    def zero_gradients(self) -> None:
        """Set all gradients to 0."""
        self.gradients.flat.fill(0)

    def new_cache(self, batch: int = 1, capacity: int | None = None) -> KVCache:
        """An empty cache for `batch` sequences of at most `capacity` tokens (None: the context)."""
        return KVCache(self.config, batch, self.config.context if capacity is None else capacity, self._backend.dtype)

    def prefill(self, tokens: ArrayLike, starts: ArrayLike | None, cache: KVCache) -> np.ndarray:
        """Read prompts into the cache's slots from position 0; logits (S, V) of each prompt's last token."""
        batch = self._batch(np.asarray(tokens), starts)
        lengths = np.diff(batch.starts)
        if len(lengths) > cache.batch or lengths.max() > cache.capacity:
            raise ValueError(
                f"prompts must fit the cache of {cache.batch} x {cache.capacity} tokens; got {len(lengths)} "
                f"prompts, the longest of {lengths.max()}; make a larger cache or shorten them"
            )
        batch.cache = cache
        batch.slots = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        out = self._run(batch)
        cache.lengths[:] = 0
        cache.lengths[: len(lengths)] = lengths
        return self.head.logits(out[batch.starts[1:] - 1])

    def decode(self, tokens: ArrayLike, cache: KVCache) -> np.ndarray:
        """Append tokens (B,), one to each slot of the cache; logits (B, V) of what follows."""
        ids = np.asarray(tokens)
        if ids.shape != (cache.batch,):
            raise ValueError(
                f"decode takes one token for each of the cache's {cache.batch} slots; got shape {ids.shape}; "
                "give an array of that length"
            )
        if cache.lengths.max() >= cache.capacity:
            raise ValueError(
                f"the cache holds {cache.capacity} tokens a slot and is full; got one more; stop, or make the "
                f"cache larger (the model's context is {self.config.context})"
            )
        batch = self._batch(ids, np.arange(cache.batch + 1))
        batch.positions = cache.lengths.copy()
        batch.cache, batch.is_decode = cache, True
        batch.slots = np.arange(cache.batch, dtype=np.int32)
        cache.lengths += 1
        return self.head.logits(self._run(batch))

    def _run(self, batch: Batch) -> np.ndarray:
        """Rows (N, C) that the head takes. Keeps what backward needs."""
        self._workspace.resize(len(batch.tokens))
        x = self.embedding.forward(batch)
        self._streams = []
        for block in self.blocks:
            self._streams.append(x)
            x = block.forward(x, batch)
        self._before_final_norm = x
        return self.final_norm.forward(x) if self.final_norm else x

    def _batch(self, tokens: np.ndarray, starts: ArrayLike | None) -> Batch:
        """Check tokens and starts, and find the position of each token."""
        if tokens.ndim not in (1, 2) or tokens.size == 0:
            raise ValueError(f"tokens must be (N,) or (B, T) with at least one token; got shape {tokens.shape}; "
                             "give at least one token")  # fmt: skip
        flat = _ids(tokens, "tokens")
        if flat.min() < 0 or flat.max() >= self.config.vocab_size:
            at = int(np.flatnonzero((flat < 0) | (flat >= self.config.vocab_size))[0])
            raise ValueError(
                f"tokens must be from 0 to vocab_size - 1 = {self.config.vocab_size - 1}; got {flat[at]} at position "
                f"{at}; was the text encoded with another tokenizer?"
            )
        if starts is None:
            length = tokens.shape[-1]
            bounds = np.arange(0, flat.size + 1, length, dtype=np.int32)
        elif tokens.ndim == 2:
            raise ValueError("starts goes with packed tokens (N,); got (B, T) tokens; leave starts out")
        else:
            bounds = _ids(np.asarray(starts), "starts")
        lengths = np.diff(bounds)
        if bounds.size < 2 or bounds[0] != 0 or bounds[-1] != flat.size or lengths.min() < 1:
            raise ValueError(
                f"starts must rise from 0 to the number of tokens, {flat.size}; got {bounds[:8].tolist()}; "
                "give each sequence's first row, and the number of tokens last"
            )
        if lengths.max() > self.config.context:
            raise ValueError(
                f"a sequence may have at most context = {self.config.context} tokens; got {lengths.max()}; "
                "shorten it, or train a model with a longer context"
            )
        positions = np.arange(flat.size, dtype=np.int32)
        if len(lengths) > 1:
            positions -= np.repeat(bounds[:-1], lengths)
        return Batch(flat, bounds, positions)

    def _targets(self, targets: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
        """Check targets for tokens of a shape."""
        given = np.asarray(targets)
        flat = _ids(given, "targets")
        if given.shape != shape:
            raise ValueError(
                f"targets must have the shape {shape} of the tokens, an entry for each; got {given.shape}; "
                "give -1 where a token has no target"
            )
        top = flat.max()
        if top >= self.config.vocab_size:
            raise ValueError(
                f"targets must be below vocab_size = {self.config.vocab_size}; got {top} at position "
                f"{int(flat.argmax())}; was the text encoded with another tokenizer?"
            )
        if top < 0:
            raise ValueError("a batch needs at least one target >= 0; got none; leave such a batch out")
        return flat


def _ids(array: np.ndarray, what: str) -> np.ndarray:
    """The whole numbers of an array as flat int32."""
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{what} must be whole numbers; got {array.dtype}; give an array of int32")
    flat = array.reshape(-1)
    ids = np.ascontiguousarray(flat, np.int32)
    if array.dtype != np.int32 and (wrapped := ids != flat).any():  # 2^32 + 5 must not pass for 5
        at = int(wrapped.argmax())
        raise ValueError(f"{what} must fit into int32; got {flat[at]} at position {at}; give ids of the vocabulary")
    return ids
