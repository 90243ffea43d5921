"""How another project stores our parameters: the names of its modules and ours, and the tensors of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from ..config import ModelConfig
from ..errors import FormatError
from ..parameters import Shapes, shapes_of
from ..small_files import brief


class Module(NamedTuple):
    """The name of another project's module, and of ours that it holds, stacked along the outputs. "{}" is the layer.

    Its tensors are .weight and .bias, if the model has them.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False  # the weight is (in, out)


class Tensor(NamedTuple):
    """One tensor of a file: a module's weight or bias in one layer.

    name, shape  as in the file
    ours         names of our parameters in it
    rows         first row of each of them but the first
    transposed   whether the file has it as (in, out)
    """

    name: str
    shape: tuple[int, ...]
    ours: tuple[str, ...]
    rows: list[int]
    transposed: bool


class _Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


def layout_of(modules: Sequence[Module], config: ModelConfig) -> list[Tensor]:
    """The tensors of these modules for a model."""
    shapes = shapes_of(config)
    layout = []
    for theirs, ours, transposed in modules:
        for layer in range(config.layers if "{}" in theirs else 1):
            for kind in ("weight", "bias"):
                names = tuple(f"{name.format(layer)}.{kind}" for name in ours)
                if names[0] not in shapes:
                    continue
                ends = [sum(shapes[name][0] for name in names[: i + 1]) for i in range(len(names))]
                shape = (ends[-1], *shapes[names[0]][1:])
                layout.append(
                    Tensor(
                        name=f"{theirs.format(layer)}.{kind}",
                        shape=shape[::-1] if transposed else shape,
                        ours=names,
                        rows=ends[:-1],
                        transposed=transposed,
                    )
                )
    return layout


def check_layers(config: ModelConfig, given: Mapping[str, object]) -> None:
    """Raise FormatError for more layers than tensors: after damage, the names of all layers alone could fill memory."""
    if config.layers > len(given):
        raise FormatError(
            f"a model of {config.layers} layers must have more tensors than that; got {len(given)}; "
            "use the configuration that belongs to the weights"
        )


def check(given: Mapping[str, _Shaped], shapes: Shapes) -> None:
    """Raise FormatError unless the given tensors have exactly these names and shapes."""
    missing = [name for name in shapes if name not in given]
    unknown = [name for name in given if name not in shapes]
    for names, fault in (missing, "missing"), (unknown, "unknown"):
        if names:
            raise FormatError(
                f"the weights must be those of the configuration; got {len(names)} {fault}, "
                f"{', '.join(map(brief, names[:3]))}; use the configuration that belongs to them"
            )
    for name, shape in shapes.items():
        if given[name].shape != shape:
            raise FormatError(
                f"{name} must be of shape {shape}; got {given[name].shape}; "
                "use the configuration that belongs to the weights"
            )
