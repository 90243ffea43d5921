"""The model: parameters, and what is computed with them by the layers of a network."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .config import ModelConfig, in_words
from .inputs import (
    array_of,
    check_cache,
    checked_batch,
    checked_normalizer,
    checked_seed,
    checked_slots,
    checked_targets,
    checked_tokens,
)
from .interrupts import uninterrupted
from .layers.backend import Backend
from .layers.batch import Batch
from .layers.block import Block
from .layers.embedding import Embedding
from .layers.head import Head
from .layers.kv_cache import KVCache
from .layers.network import Network
from .layers.norm import Norm
from .layers.rotary import Rotary
from .layers.score import Score
from .layers.shared import Shared
from .layers.workspace import Workspace
from .locking import Shareable, in_turn
from .lora import AdapterParameters, LoRAConfig, additions_of, linear_maps
from .memory import aligned
from .packed import Packed
from .parameters import FileParameters, FlatParameters, Parameters, count_parameters, initialise

# Rows of a prompt that are read at once: their activations take little memory, and products are at full speed.
PREFILL_ROWS = 256

# Rows whose activations are in memory at once. A larger batch is done in parts of whole sequences: the same sums, in
# less memory. A thousand rows keep the matrix products at full speed.
ROWS_AT_ONCE = 1024


class Model(Shareable):
    """A decoder-only transformer with its parameters, gradients and activations.

    config   what it is
    seed     of the random weights
    backend  "numba" (the compiled kernels) or "numpy" (their twins)
    dtype    float32; with backend "numpy" also float64, for gradient checks
    weights  in place of random ones: float32 arrays and packed matrices by name, as fastllm.formats opens them. They
             stay where they are, in a mapped file say, and are read only: see `unfreeze`

    Raises ValueError for a backend, a dtype or weights that don't go with it, TypeError for what is no ModelConfig,
    ConfigError where Numba is switched off.

    tokens are whole numbers from 0 to vocab_size - 1, (N,) packed rows or (B, T); starts (S+1,) says where sequences
    begin in packed rows. A target below 0 has no loss. Activations are the model's: threads that share it take turns.
    What takes tokens raises ValueError for an id or a target that is no token's, a sequence longer than the context,
    shapes that don't go together, and where there is no target at all; TypeError for numbers that are not whole.

        >>> import numpy as np, fastllm
        >>> model = fastllm.Model(fastllm.preset("nano", vocab_size=50), seed=0)
        >>> model.forward(np.array([[1, 2, 3], [4, 5, 6]])).shape
        (2, 3, 50)

    parameters          arrays by name, such as "blocks.0.attention.query.weight" (O, I): write into them in place
    gradients           of what is trained, by the same names
    adapter             low-rank maps beside the parameters, by name, or None
    cache_dtype         type of keys and values in caches made from then on: float32 (float64 in a float64 model), or
                        float16, which takes half the memory, is faster for long texts, and rounds to 11 bits
    generation_options  defaults for generating, fields of GenerationConfig, from the files that the model comes from
    other_generation    their other settings, as in transformers' generation_config.json: kept, and written by `save`
    origin              where fastllm.load opened it: an absolute path, or a name on a hub; None for a new one. With an
                        adapter, where the model without it is
    """

    parameters: Parameters | FileParameters
    adapter: AdapterParameters | None
    _gradients: FlatParameters | None
    _network: Network
    embedding: Embedding
    blocks: list[Block]
    final_norm: Norm | None
    head: Head

    def __init__(
        self,
        config: ModelConfig,
        seed: int = 0,
        backend: str = "numba",
        dtype: DTypeLike = np.float32,
        weights: Mapping[str, np.ndarray | Packed] | None = None,
    ) -> None:
        if not isinstance(config, ModelConfig):
            raise TypeError(f"config must be a ModelConfig; got {config!r:.40}; use one, or fastllm.preset(...)")
        self._prepare(config, backend, dtype)
        if weights is not None:
            self._build(FileParameters(config, weights))
        else:
            parameters = Parameters(config, self._backend.dtype)
            initialise(parameters, config, checked_seed(seed, "seed"))
            self._build(parameters)

    def _prepare(self, config: ModelConfig, backend: str, dtype: DTypeLike) -> None:
        """What there is before parameters."""
        assert config.head_size is not None
        self.config = config
        self.generation_options: dict[str, Any] = {}
        self.other_generation: dict[str, Any] = {}
        self.origin: str | None = None
        self._backend = Backend(backend, config.head_size, config.width, dtype)
        self._make_lock(is_common=not self._backend.calls_may_overlap)
        self._cache_dtype = self._backend.dtype
        self._rotary = Rotary(config, self._backend.dtype) if config.positions == "rope" else None

    def __setattr__(self, name: str, value: Any) -> None:
        """Layers hold views of config, parameters and adapter: replacing one would change nothing."""
        if name in ("config", "parameters", "adapter") and name in self.__dict__:
            raise AttributeError(f"a model's {name} can't be set; got another; write into arrays, or use its methods")
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: all but layers, activations and gradients."""
        names = ("config", "generation_options", "other_generation", "origin", "parameters", "adapter")
        own = {"backend": self.backend, "dtype": self._backend.dtype, "cache_dtype": self._cache_dtype}
        return {name: getattr(self, name) for name in names} | own

    def __deepcopy__(self, memo: dict[int, Any]) -> Model:
        with self._lock:
            copied = memo[id(self)] = type(self).__new__(type(self))
            copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._prepare(state["config"], state["backend"], state["dtype"])
        self.generation_options, self.other_generation = state["generation_options"], state["other_generation"]
        self.origin = state["origin"]
        self._cache_dtype = state["cache_dtype"]
        self._build(state["parameters"], adapter=state["adapter"])

    def _build(
        self,
        parameters: Parameters | FileParameters,
        gradients: FlatParameters | None = None,
        adapter: AdapterParameters | None = None,
    ) -> None:
        """Make the layers, which hold views of parameters and, once they are wanted, of gradients.

        They take the place of others all at once: whenever Ctrl-C comes, the model is the one or the other.
        """
        shared = Shared(
            self._backend,
            self.config,
            parameters,
            gradients if isinstance(gradients, Parameters) else None,
            Workspace(self._backend.dtype),
            adapter,
            gradients if isinstance(gradients, AdapterParameters) else None,
        )
        network = Network(shared, self._rotary)
        made = {
            "parameters": parameters,
            "adapter": adapter,
            "_gradients": gradients,
            "_network": network,
            "embedding": network.embedding,
            "blocks": network.blocks,
            "final_norm": network.final_norm,
            "head": network.head,
        }
        self.__dict__.update(made)

    @property
    def is_frozen(self) -> bool:
        """Whether the parameters are a file's, to be read only."""
        return isinstance(self.parameters, FileParameters)

    @in_turn
    def unfreeze(self) -> Parameters:
        """Copy parameters that a file holds to memory, as float32, so that they can be trained and written to.

        Returns them. What trains all parameters calls it by itself; what is in memory already stays there.
        """
        if not isinstance(self.parameters, Parameters):
            parameters = Parameters(self.config, self._backend.dtype)
            for name, view in parameters.items():
                view[...] = self.parameters[name]
            self._build(parameters, self._gradients, self.adapter)
        assert isinstance(self.parameters, Parameters)
        return self.parameters

    @property
    def trainable(self) -> FlatParameters:
        """What an optimizer updates: the adapter's parameters where there is one, else the model's own."""
        return self.adapter if self.adapter is not None else self.unfreeze()

    @property
    def gradients(self) -> FlatParameters:
        """Gradients of `trainable`, by the same names; there is memory for them from the first use on."""
        if self._gradients is None:
            self._make_gradients()
        assert self._gradients is not None
        return self._gradients

    @in_turn
    def _make_gradients(self) -> None:
        if self._gradients is not None:  # another thread has, meanwhile
            return
        trainable = self.trainable
        gradients: FlatParameters
        if isinstance(trainable, AdapterParameters):
            gradients = AdapterParameters(self.config, trainable.additions, self._backend.dtype)
        else:
            gradients = Parameters(self.config, self._backend.dtype)
        self._build(self.parameters, gradients, self.adapter)

    @in_turn
    def add_lora(self, config: LoRAConfig | None = None, seed: int = 0, **options: Any) -> AdapterParameters:
        """Train a small low-rank map beside linear maps instead of all parameters, which stay as they are.

        config   what is added; options are LoRAConfig's fields, in its place
        seed     of the random half of it

        The parameters may stay in a file, quantised or not. Raises ConfigError for a wrong value, TypeError for
        an unknown name, ValueError for config and options together, a model in float64 or one that has an adapter.

            >>> import fastllm
            >>> model = fastllm.Model(fastllm.preset("nano", vocab_size=50))
            >>> model.add_lora(rank=4, targets=("query", "value"))["blocks.0.attention.query.lora_a"].shape
            (4, 128)
        """
        if config is not None and options:
            raise ValueError("give a LoRAConfig or its fields; got both; leave one out")
        if not isinstance(config, LoRAConfig | None):
            raise TypeError(f"config must be a LoRAConfig; got {config!r:.40}; give one, or its fields by name")
        if self.adapter is not None:
            raise ValueError("a model has one adapter; got a second; merge_adapter() or remove_adapter() before")
        adapter = AdapterParameters(self.config, additions_of(self.config, config or LoRAConfig(**options)))
        adapter.initialise(checked_seed(seed, "seed"))
        self.set_adapter(adapter)
        return adapter

    @in_turn
    def set_adapter(self, adapter: AdapterParameters) -> None:
        """Use an adapter, in place of the present one if there is one.

        Raises ValueError for one of another kind of model, TypeError for what is none.
        """
        if not isinstance(adapter, AdapterParameters):
            raise TypeError(f"an adapter must be AdapterParameters; got {adapter!r:.40}; add_lora or load_adapter")
        if self._backend.dtype != np.float32:
            raise ValueError(f"an adapter goes with a model in float32; got {self._backend.dtype}; make another Model")
        maps = linear_maps(self.config)
        for name in adapter.additions:
            (_, inputs), (outputs, _) = (adapter[f"{name}.lora_{part}"].shape for part in "ab")
            if maps.get(name) != (outputs, inputs):
                raise ValueError(
                    f"an adapter must be of a model like this one, where {name} is {maps.get(name)}; got one for "
                    f"{(outputs, inputs)}; use the model that it was made for"
                )
        self._build(self.parameters, adapter=adapter)

    @in_turn
    def remove_adapter(self) -> None:
        """Compute without the adapter again; nothing happens where there is none."""
        if self.adapter is not None:
            self._build(self.parameters)

    @in_turn
    def merge_adapter(self) -> None:
        """Add what the adapter adds to the parameters themselves, which are float32 in memory from then on.

        The model is then no longer the one at `origin`, which becomes None. Raises ValueError where there is no
        adapter, MemoryError where there is no room, with the adapter as it was.
        """
        if self.adapter is None:
            raise ValueError("merge_adapter needs an adapter; got a model without; add_lora or load_adapter before")
        adapter, parameters = self.adapter, self.unfreeze()
        weights = {name: parameters[f"{name}.weight"] for name in adapter.additions}
        room = np.empty(max(weight.size for weight in weights.values()), np.float32)  # here memory may be lacking,
        with uninterrupted(is_short=True):  # in here no more
            self.remove_adapter()
            for name, weight in weights.items():
                weight += adapter.change(name, room[: weight.size].reshape(weight.shape))
            self.origin = None

    def __repr__(self) -> str:
        vocabulary = f"vocabulary {self.config.vocab_size:,}"
        return f"<Model: {in_words(self.config)}, {vocabulary}; {self.parameter_count:,} parameters>"

    @property
    def parameter_count(self) -> int:
        """How many numbers the parameters hold, without those of an adapter."""
        return count_parameters(self.config)

    @property
    def backend(self) -> str:
        """The name of the backend."""
        return self._backend.name

    @in_turn
    def forward(self, tokens: ArrayLike, starts: ArrayLike | None = None, keep: bool = False) -> np.ndarray:
        """Logits (N, V) of tokens (N,), or (B, T, V) of (B, T): a fresh array.

        keep  every layer keeps its activations, to be looked at, until the next call; else layers share memory
        """
        ids = array_of(tokens, "tokens")
        batch = self._batch(ids, starts)
        logits = aligned((ids.size, self.config.vocab_size), self._backend.dtype)
        for part in batch.parts(ids.size if keep else ROWS_AT_ONCE):
            self.head.forward(logits[part.rows], self._network.forward(part, keep))
        return logits.reshape(*ids.shape, -1)

    @in_turn
    def score(self, tokens: ArrayLike, targets: ArrayLike, starts: ArrayLike | None = None) -> Score:
        """Sum of losses, right answers and targets; no dropout."""
        ids = array_of(tokens, "tokens")
        batch = self._batch(ids, starts)
        batch.set_targets(checked_targets(self.config, targets, ids.shape))
        score = Score()
        for part in batch.parts(ROWS_AT_ONCE):
            if part.target_count:
                score += self._network.score(part)
        return score

    @in_turn
    def score_and_gradients(
        self,
        tokens: ArrayLike,
        targets: ArrayLike,
        starts: ArrayLike | None = None,
        normalizer: float | None = None,
        dropout_seed: int | None = None,
        accumulate: bool = True,
    ) -> Score:
        """As score; the gradients of sum(losses) / normalizer are added to `gradients`.

        normalizer    None: the number of targets here, so that the loss is a mean. When a step is split into
                      several batches, give the number of targets of them all
        dropout_seed  whole number >= 0 that the masks follow from; None: no dropout
        accumulate    False: gradients overwrite what is there, which is faster than zero_gradients before

        Raises ValueError for a normalizer or a seed out of range, too.
        """
        ids = array_of(tokens, "tokens")
        batch = self._batch(ids, starts)
        if dropout_seed is not None:
            batch.dropout = np.array([checked_seed(dropout_seed, "dropout_seed"), 0], np.uint64)
        batch.set_targets(checked_targets(self.config, targets, ids.shape))
        normalizer = checked_normalizer(batch.target_count if normalizer is None else normalizer)
        score, gradients = Score(), self.gradients
        if not accumulate:
            self._zero_sums(gradients)
        for part in batch.parts(ROWS_AT_ONCE):
            if part.target_count:
                part.accumulate = bool(accumulate) or score.targets > 0
                score += self._network.score_and_gradients(part, normalizer)
        return score

    def _zero_sums(self, gradients: FlatParameters) -> None:
        """Set the gradients to 0 that are always added to: norms', embeddings' but for a tied head's, adapters'."""
        if self.adapter is not None:
            self._backend.kernels.zero(gradients.flat)
            return
        begin = gradients.decayed
        if self.config.tied_head:
            begin += gradients["embedding.token.weight"].size
        self._backend.kernels.zero(gradients.flat[begin:])

    def loss(self, tokens: ArrayLike, targets: ArrayLike, starts: ArrayLike | None = None) -> float:
        """Mean cross-entropy over targets >= 0, in nats."""
        return self.score(tokens, targets, starts).loss

    def loss_and_gradients(self, tokens: ArrayLike, targets: ArrayLike, starts: ArrayLike | None = None) -> float:
        """The loss; its gradients are added to `gradients` (see zero_gradients).

        Without dropout: score_and_gradients takes a seed for that.
        """
        return self.score_and_gradients(tokens, targets, starts).loss

    @in_turn
    def zero_gradients(self) -> None:
        """Set all gradients to 0."""
        self._backend.kernels.zero(self.gradients.flat)

    @property
    def cache_dtype(self) -> np.dtype:
        """What new caches keep keys and values in. Setting it raises ValueError for what they can't be kept in."""
        return self._cache_dtype

    @cache_dtype.setter
    def cache_dtype(self, dtype: DTypeLike) -> None:
        known = {name: np.dtype(name) for name in (self._backend.dtype.name, "float16")}
        try:
            self._cache_dtype = known[np.dtype(dtype).name]
        except (TypeError, KeyError):
            raise ValueError(f"cache_dtype must be {' or '.join(known)}; got {dtype!r}; choose one of them") from None

    def new_cache(self, slots: int = 1) -> KVCache:
        """An empty cache for so many texts, which grows as they do, of `cache_dtype`."""
        return KVCache(self.config, slots, self._cache_dtype)

    @in_turn
    def prefill(
        self, tokens: ArrayLike, starts: ArrayLike | None, cache: KVCache, slots: ArrayLike | None = None
    ) -> np.ndarray:
        """Read stretches of text after what the cache's slots hold; logits (S, V) of each stretch's last token.

        slots  (S,) where each belongs, no two the same; None: 0, 1, 2, ...

        Up to 32 stretches at once, each gives the same bits as alone, in one piece or in several.
        """
        check_cache(self.config, cache, self._backend.dtype)
        batch = self._batch(array_of(tokens, "tokens"), starts)
        lengths = np.diff(batch.starts)
        chosen = checked_slots(cache, slots, len(lengths))
        if len(np.unique(chosen)) < len(chosen):
            raise ValueError(
                f"prefill takes each slot once; got slots {chosen.tolist()}; read one stretch after another"
            )
        new = dict(zip(chosen.tolist(), lengths.tolist(), strict=True))
        cache.reserve(new)
        before = cache.lengths[chosen]
        positions = batch.positions + np.repeat(before, lengths)
        places = cache.places(np.repeat(chosen, lengths), positions)
        if self._rotary:
            self._rotary.reserve(int(positions.max()) + 1)
        last = np.empty((len(lengths), self.config.width), self._backend.dtype)
        for begin in range(0, len(places), PREFILL_ROWS):
            end = min(begin + PREFILL_ROWS, len(places))
            low = int(np.searchsorted(batch.starts, begin, side="right")) - 1
            high = int(np.searchsorted(batch.starts, end, side="left"))
            bounds = np.clip(batch.starts[low : high + 1], begin, end)
            part = Batch(
                batch.tokens[begin:end],
                bounds - np.int32(begin),
                positions[begin:end],
                cache=cache,
                places=places[begin:end],
                slots=chosen[low:high],
                before=before[low:high] + (bounds[:-1] - batch.starts[low:high]),
            )
            out = self._network.forward(part)
            ended = np.flatnonzero(bounds[1:] == batch.starts[low + 1 : high + 1])
            last[low + ended] = out[part.starts[1:][ended] - 1]
        cache.advance(new)
        return self.head.logits(last)

    @in_turn
    def decode(self, tokens: ArrayLike, cache: KVCache, slots: ArrayLike | None = None) -> np.ndarray:
        """Append one token (N,) after another to the cache's slots; logits (N, V) of what follows each.

        slots  (N,) the slot of each; None: 0, 1, 2, ... A slot named several times gets its tokens in that order

        Up to 32 tokens at once, each gives the same bits as alone.
        """
        check_cache(self.config, cache, self._backend.dtype)
        ids = array_of(tokens, "tokens")
        if ids.ndim != 1:
            raise ValueError(f"decode takes tokens (N,), one for each slot named; got shape {ids.shape}; give a row")
        ids = checked_tokens(self.config, ids)
        chosen = checked_slots(cache, slots, ids.size)
        before, after = cache.lengths.tolist(), cache.lengths.tolist()
        seen = []  # tokens that each row sees
        for slot in chosen.tolist():
            after[slot] += 1
            seen.append(after[slot])
        new = {slot: after[slot] - before[slot] for slot in chosen.tolist()}
        cache.reserve(new)
        lengths = np.array(seen, np.int32)
        positions = lengths - np.int32(1)
        batch = Batch(
            ids,
            np.arange(ids.size + 1, dtype=np.int32),
            positions,
            cache=cache,
            places=cache.places(chosen, positions),
            slots=chosen,
            is_decode=True,
            lengths=lengths,
        )
        if self._rotary:
            self._rotary.reserve(max(seen))
        logits = self.head.logits(self._network.forward(batch))
        cache.advance(new)
        return logits

    def _batch(self, tokens: np.ndarray, starts: ArrayLike | None) -> Batch:
        """The rows to compute; angles are there for their positions."""
        batch = checked_batch(self.config, tokens, starts)
        if self._rotary:
            self._rotary.reserve(int(np.diff(batch.starts).max()))
        return batch
