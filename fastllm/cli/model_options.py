"""The options that commands share which load a model and generate with it."""

from __future__ import annotations

import argparse
import dataclasses

from ..errors import ConfigError
from ..generation import GenerationConfig


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a run folder or a checkpoint folder")
    parser.add_argument("--backend", choices=("numba", "numpy"), default="numba",
                        help="compiled kernels or their NumPy twins (default: numba)")  # fmt: skip


def add_generation(parser: argparse.ArgumentParser) -> None:
    """Options named like GenerationConfig's fields; those that aren't given keep its defaults."""

    def add(name: str, kind: type, metavar: str, text: str) -> None:
        parser.add_argument(name, type=kind, metavar=metavar, default=argparse.SUPPRESS, help=text)

    add("--max-tokens", int, "N", "most tokens to generate (default: until the context is full)")
    add("--temperature", float, "T", "0: always the most probable token; above: draw (default: 0)")
    add("--top-k", int, "K", "draw from the K most probable tokens (default: all)")
    add("--top-p", float, "P", "draw from the most probable tokens that add up to P (default: 1, all)")
    add("--seed", int, "S", "the same seed gives the same text (default: 0)")
    parser.add_argument("--stop", action="append", metavar="TEXT", default=argparse.SUPPRESS,
                        help="end before this text; may be repeated")  # fmt: skip


def generation_config(arguments: argparse.Namespace) -> GenerationConfig:
    """The configuration that was asked for. Raises ConfigError, so that a wrong value is wrong use."""
    known = [field.name for field in dataclasses.fields(GenerationConfig)]
    try:
        return GenerationConfig(**{name: value for name, value in vars(arguments).items() if name in known})
    except ValueError as error:
        raise ConfigError(str(error)) from None
