"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): linear maps are frozen, small ones added to them are trained.

    out = x @ weight.T + scale * x @ a.T @ b.T          a (R, I), b (O, R), scale = alpha / R

a begins random and b as zeros, so that the model is unchanged at first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from .config import ModelConfig
from .errors import ConfigError
from .parameters import FlatParameters, Shapes, parameter_shapes

TARGETS = ("query", "key", "value", "output", "gate", "up", "down")


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """The small maps that are added to a model.

    rank             R, rank of the added maps
    alpha            the addition is scaled by alpha / rank. The default is 16 whatever the rank; the command
                     `fastllm train` uses twice the rank
    targets          which linear maps of each block: names from query, key, value, output, gate, up, down
    rank_stabilized  the addition is scaled by alpha / sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732)

    Raises ConfigError, which names rule, value and fix.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] | list[str] = TARGETS
    rank_stabilized: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.rank, Integral) or isinstance(self.rank, bool) or not 0 < int(self.rank) < 1 << 16:
            raise ConfigError(f"rank must be a whole number from 1 to 65535; got {self.rank!r}; 8 is usual")
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, Real) or not 0 < self.alpha < 1e30:
            raise ConfigError(f"alpha must be a finite number > 0; got {self.alpha!r:.40}; twice the rank is usual")
        given = self.targets
        if not isinstance(given, (tuple, list)) or not given or any(name not in TARGETS for name in given):
            raise ConfigError(f"targets must be names from {', '.join(TARGETS)}; got {given!r}; leave it out for all")
        if len(set(given)) < len(given):
            raise ConfigError(f"targets must be different names; got {given!r}; name each once")
        if not isinstance(self.rank_stabilized, bool):
            raise ConfigError(
                f"rank_stabilized must be true or false; got {self.rank_stabilized!r}; leave it out for false"
            )
        object.__setattr__(self, "targets", tuple(given))
        object.__setattr__(self, "rank", int(self.rank))
        object.__setattr__(self, "alpha", float(self.alpha))

    @property
    def scale(self) -> float:
        """The factor of the addition."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


class Addition(NamedTuple):
    """The rank of what is added to one linear map, and its factor."""

    rank: int
    scale: float


class AdapterParameters(FlatParameters):
    """The small maps' parameters in one buffer: "blocks.0.attention.query.lora_a" (R, I), ".lora_b" (O, R), ...

    additions  by the names of the linear maps, such as "blocks.0.attention.query"
    """

    def __init__(self, config: ModelConfig, additions: Mapping[str, Addition], dtype: DTypeLike = np.float32) -> None:
        """Raises ConfigError for a map that the model doesn't have."""
        maps = linear_maps(config)
        shapes: Shapes = {}
        for name, addition in additions.items():
            if name not in maps:
                raise ConfigError(f"an adapter adds to linear maps of the model; got {name!r}; its maps are "
                                  f"{', '.join(list(maps)[:8])}, ...")  # fmt: skip
            outputs, inputs = maps[name]
            shapes[f"{name}.lora_a"] = (addition.rank, inputs)
            shapes[f"{name}.lora_b"] = (outputs, addition.rank)
        super().__init__(shapes, {}, dtype)
        self.additions = dict(additions)

    def initialise(self, seed: int = 0) -> None:
        """a: uniform between -1 / sqrt(I) and 1 / sqrt(I); b: zeros."""
        rng = np.random.default_rng(seed)
        for name, view in self.items():
            bound = view.shape[1] ** -0.5
            view[...] = 0 if name.endswith("lora_b") else rng.uniform(-bound, bound, view.shape)

    def change(self, name: str, out: np.ndarray | None = None) -> np.ndarray:
        """What is added to a map's weight (O, I), written to `out` if that is given."""
        out = np.matmul(self[f"{name}.lora_b"], self[f"{name}.lora_a"], out=out)
        out *= self.additions[name].scale
        return out


def linear_maps(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of each linear map in the blocks, by name."""
    decayed, _ = parameter_shapes(config)
    return {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in decayed.items()
        if name.startswith("blocks.")
    }


def additions_of(config: ModelConfig, lora: LoRAConfig) -> dict[str, Addition]:
    """What a configuration adds to a model: an addition to each map in the blocks that `lora.targets` names.

    Names that the model doesn't have are ignored; raises ConfigError if it has none of them.
    """
    names = [name for name in linear_maps(config) if name.rpartition(".")[2] in lora.targets]
    if not names:
        there = {name.rpartition(".")[2]: None for name in linear_maps(config)}
        raise ConfigError(
            f"targets must name maps of the model; it has none of {', '.join(lora.targets)}; it has {', '.join(there)}"
        )
    return dict.fromkeys(names, Addition(lora.rank, lora.scale))
