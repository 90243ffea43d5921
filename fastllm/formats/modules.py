"""Where another project keeps our parameters: its modules' names and ours, and the tensors that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from ..config import ModelConfig
from ..errors import FormatError
from ..parameters import Shapes, shapes_of
from ..small_files import brief


class Module(NamedTuple):
    """A module of theirs, by its name, and ours that it holds, stacked along the outputs. "{}" is the layer.

    Its tensors are .weight and .bias, as far as the model has them.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False  # the weight is (in, out)


class Tensor(NamedTuple):
    """One tensor of a file: a module's weight or bias in one layer.

    name, shape  as the file has it
    ours         names of the parameters in it
    rows         where each of them but the first begins
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
    """The tensors in which these modules keep a model's parameters."""
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
    """Raise FormatError where a damaged file speaks of so many layers that their names alone would fill the memory."""
    if config.layers > len(given):
        raise FormatError(
            f"a model of {config.layers} layers must have more tensors than that; got {len(given)}; "
            "use the configuration that belongs to the weights"
        )


def check(given: Mapping[str, _Shaped], shapes: Shapes) -> None:
    """Raise FormatError unless given are tensors with exactly these names and shapes."""
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
