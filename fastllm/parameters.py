"""All parameters of a model in one flat buffer, with a named view for each.

So the gradients' norm is one reduction, an optimizer's update one pass and a checkpoint one write. The matrices, to
which weight decay applies, come first in the buffer; norms, biases and embeddings follow. Query, key and value are
adjacent, as are gate and up, so that one matrix product computes them together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .config import ModelConfig
from .memory import aligned
from .packed import KINDS, Packed
from .quantize import dequantize

Shapes = dict[str, tuple[int, ...]]
POSITIONS = "embedding.position.weight"


def parameter_shapes(config: ModelConfig) -> tuple[Shapes, Shapes]:
    """Names and shapes in buffer order: the parameters that weight decay applies to, and the others."""
    c, f, d = config.width, config.hidden, config.head_size
    assert d is not None and config.kv_heads is not None
    queries, keys = config.heads * d, config.kv_heads * d
    decayed: Shapes = {}
    others: Shapes = {"embedding.token.weight": (config.vocab_size, c)}
    if config.positions == "learned":
        others[POSITIONS] = (config.context, c)

    def norm(name: str) -> None:
        others[f"{name}.weight"] = (c,)
        if config.norm == "layernorm" and config.norm_bias:
            others[f"{name}.bias"] = (c,)

    for i in range(config.layers):
        block = f"blocks.{i}"
        attention, feed_forward = f"{block}.attention", f"{block}.feed_forward"
        norm(f"{block}.attention_norm")
        for name, outputs in (("query", queries), ("key", keys), ("value", keys)):
            decayed[f"{attention}.{name}.weight"] = (outputs, c)
            if config.attention_bias:
                others[f"{attention}.{name}.bias"] = (outputs,)
        if config.qk_norm:
            others[f"{attention}.query_norm.weight"] = (d,)
            others[f"{attention}.key_norm.weight"] = (d,)
        if config.attention_output:
            decayed[f"{attention}.output.weight"] = (c, queries)
        if config.attention_output_bias:
            others[f"{attention}.output.bias"] = (c,)
        norm(f"{block}.feed_forward_norm")
        for name in ("gate", "up") if config.activation == "swiglu" else ("up",):
            decayed[f"{feed_forward}.{name}.weight"] = (f, c)
            if config.feed_forward_bias:
                others[f"{feed_forward}.{name}.bias"] = (f,)
        decayed[f"{feed_forward}.down.weight"] = (c, f)
        if config.feed_forward_bias:
            others[f"{feed_forward}.down.bias"] = (c,)
    if config.final_norm:
        norm("final_norm")
    if not config.tied_head:
        decayed["head.weight"] = (config.vocab_size, c)
    if config.head_bias:
        others["head.bias"] = (config.vocab_size,)
    return decayed, others


def shapes_of(config: ModelConfig) -> Shapes:
    """Names and shapes of all parameters, in buffer order."""
    decayed, others = parameter_shapes(config)
    return decayed | others


def count_parameters(config: ModelConfig) -> int:
    """Total number of floats in all parameters."""
    return sum(math.prod(shape) for shape in shapes_of(config).values())


def check_shapes(shapes: Shapes, arrays: Mapping[str, Any]) -> None:
    """Raise ValueError unless `arrays` has exactly these names and shapes."""
    missing = [name for name in shapes if name not in arrays]
    unknown = [name for name in arrays if name not in shapes]
    if missing or unknown:
        raise ValueError(
            f"a checkpoint must hold exactly this model's parameters; missing: {missing[:3] or 'none'}, "
            f"unknown: {unknown[:3] or 'none'}; use the configuration it was saved with"
        )
    for name, shape in shapes.items():
        received = np.shape(arrays[name])
        if received != shape:
            raise ValueError(f"{name} must have shape {shape}; got {received}; use the configuration it was saved with")


class FlatParameters(Mapping[str, np.ndarray]):
    """A flat buffer and its named views: `parameters[name] = x` and `parameters[name] *= x` write into them.

    flat     (P,)  the whole buffer
    decayed  number of floats at the beginning that weight decay applies to
    """

    def __init__(self, decayed: Shapes, others: Shapes, dtype: DTypeLike = np.float32) -> None:
        self.decayed = sum(math.prod(shape) for shape in decayed.values())
        size = self.decayed + sum(math.prod(shape) for shape in others.values())
        try:
            self.flat = aligned(size, dtype)
        except MemoryError:
            gigabytes = size * np.dtype(dtype).itemsize / 1e9
            raise MemoryError(
                f"parameters must fit into memory; got {size:,}, which take {gigabytes:.3g} GB (training takes four "
                "times that); make the model smaller"
            ) from None
        self.flat.fill(0)
        self._views: dict[str, np.ndarray] = {}
        self._offsets: dict[str, int] = {}
        offset = 0
        for name, shape in (decayed | others).items():
            stop = offset + math.prod(shape)
            self._views[name] = self.flat[offset:stop].reshape(shape)
            self._offsets[name] = offset
            offset = stop

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self)} arrays, {self.flat.size:,} numbers>"

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: the buffer, and only the shapes of the views."""
        return {**self.__dict__, "_views": {name: view.shape for name, view in self._views.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.flat = aligned(state["flat"].size, state["flat"].dtype)
        self.flat[...] = state["flat"]
        self._views = {}
        for name, shape in state["_views"].items():
            start = self._offsets[name]
            self._views[name] = self.flat[start : start + math.prod(shape)].reshape(shape)

    def joined(self, *names: str) -> np.ndarray:
        """One view of adjacent parameters, stacked along the first axis: (sum of outputs, inputs). No copy."""
        start = self._offsets[names[0]]
        stop = start + sum(self._views[name].size for name in names)
        return self.flat[start:stop].reshape(-1, *self._views[names[0]].shape[1:])

    def packed(self, name: str) -> Packed:
        """A matrix (O, I) in the form that decoding reads; only for float32 parameters. No copy."""
        return Packed(self._views[name].view(np.uint8), KINDS["F32"])

    def load(self, arrays: Mapping[str, Any]) -> None:
        """Copy arrays of the same names and shapes into the buffer; if one is wrong, nothing is copied.

        Raises ValueError for a missing or unknown name, a wrong shape, or a value that is not finite.
        """
        check_shapes({name: view.shape for name, view in self.items()}, arrays)
        for name in self:
            if not _is_finite(_floats(name, arrays[name])):
                raise ValueError(f"{name} must be finite; got NaN or infinity; the file is damaged: use another")
        for name, view in self.items():
            view[...] = arrays[name]

    def check_finite(self) -> None:
        """Raise ValueError for a value that is not finite, which `load` would refuse."""
        for name, view in self.items():
            if not _is_finite(view):
                raise ValueError(
                    f"{name} must be finite to be saved; got NaN or infinity; go back to the last good checkpoint, and "
                    "lower the learning rate or clip harder"
                )

    def operand(self, name: str) -> np.ndarray:
        """The array itself, as kernels read it."""
        return self._views[name]

    def __getitem__(self, name: str) -> np.ndarray:
        return self._views[name]

    def __setitem__(self, name: str, values: ArrayLike) -> None:
        self._views[name][...] = values

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)


def _floats(name: str, values: ArrayLike) -> np.ndarray:
    """A parameter's values as an array. Raises ValueError unless they are floats: whole numbers have a scale."""
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{name} must be floats; got {array.dtype}; is the file from another program?")
    return array


def _is_finite(array: np.ndarray) -> bool:
    """Whether all numbers are finite as float32, which can't hold all float64 values."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(array.astype(np.float32, copy=False)).all())


class Parameters(FlatParameters):
    """All parameters of a model, in the order of parameter_shapes."""

    def __init__(self, config: ModelConfig, dtype: DTypeLike = np.float32) -> None:
        super().__init__(*parameter_shapes(config), dtype)


class FileParameters(Mapping[str, np.ndarray]):
    """Read-only parameters as a file holds them: float32 vectors, and matrices that may be packed.

    `parameters[name]` is a read-only float32 array, unpacked if need be. Model.unfreeze makes writeable parameters.
    """

    def __init__(self, config: ModelConfig, arrays: Mapping[str, np.ndarray | Packed]) -> None:
        """Raises ValueError for a missing or unknown name, a wrong shape, or an array of anything but floats."""
        shapes = shapes_of(config)
        check_shapes(shapes, arrays)
        self._arrays = {
            name: array if isinstance(array, Packed) else np.ascontiguousarray(_floats(name, array), np.float32)
            for name, array in ((name, arrays[name]) for name in shapes)
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self)} arrays, read-only>"

    def packed(self, name: str) -> Packed:
        """A matrix in the file's format."""
        array = self._arrays[name]
        if isinstance(array, Packed):
            return array
        return Packed(array.view(np.uint8), KINDS["F32"])

    def operand(self, name: str) -> np.ndarray:
        """The array itself, as kernels read it; unpacked if need be."""
        array = self._arrays[name]
        return dequantize(array) if isinstance(array, Packed) else array

    def __getitem__(self, name: str) -> np.ndarray:
        view = self.operand(name).view()
        view.flags.writeable = False
        return view

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def initialise(parameters: Parameters, config: ModelConfig, seed: int) -> None:
    """Normally distributed weights; norms 1, biases 0.

    The standard deviation is config.initial_std or, if that is None, 1 / sqrt(inputs), and 0.02 for embeddings. In
    pre-norm models it is divided by sqrt(2 * layers) for matrices that write to the residual stream (GPT-2).
    """
    rng = np.random.default_rng(seed)
    for name, view in parameters.items():
        if name.endswith("bias"):
            view[...] = 0
        elif "norm" in name:
            view[...] = 1
        else:
            embedding = name.startswith("embedding.")
            std = config.initial_std or (0.02 if embedding else view.shape[1] ** -0.5)
            if config.norm_position == "pre" and name.endswith(("output.weight", "down.weight")):
                std *= (2 * config.layers) ** -0.5
            view[...] = rng.standard_normal(view.shape, dtype=np.float32) * np.float32(std)
