"""Options shared by the commands that load a model or generate with it."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..generation import GenerationConfig
from ..generation.config import FIELDS

if TYPE_CHECKING:
    from ..model import Model
    from ..tokenizers import Tokenizer


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a run or checkpoint folder, a Hugging Face folder, a GGUF "
                        "file, or org/model (docs/models.md)")  # fmt: skip
    parser.add_argument("--backend", choices=("numba", "numpy"), default="numba",
                        help="compiled kernels or their NumPy twins (default: numba)")  # fmt: skip


def add_option(parser: argparse._ActionsContainer, name: str, kind: Any, metavar: str, text: str) -> None:
    """An option named like a field of GenerationConfig; if it isn't given, it is absent from the arguments."""
    parser.add_argument(name, type=kind, metavar=metavar, default=argparse.SUPPRESS, help=text)


def or_none(text: str) -> int | None:
    """A whole number, or none."""
    return None if text.lower() == "none" else int(text)


def decoded(word: str) -> str:
    """A text from the command line. If the system couldn't decode it, as in the C locale, it is decoded as UTF-8.

    Not for file names: these must stay as the system has decoded them, to be encoded again.
    """
    try:
        word.encode()
    except UnicodeEncodeError:
        with contextlib.suppress(UnicodeError):  # invalid UTF-8 is refused where the text is used
            return os.fsencode(word).decode()
    return word


or_none.__name__ = "int"  # the name that argparse shows in an error


# Control characters -> pictures of them. "\r" is dropped, as lines may end with "\r\n".
_PICTURES = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t\r"},
    ord("\r"): None, 0x7F: 0x2421, **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
}  # fmt: skip


def harmless(text: str) -> str:
    """A model's text without control characters, which could garble or overwrite what a terminal shows."""
    return text.translate(_PICTURES)


def without_mark(text: str) -> str:
    """A text without the byte order mark that some programs write; it is ignored in files, too."""
    return text.removeprefix("\ufeff")


def add_generation(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """A group of options named like GenerationConfig's fields."""
    group = parser.add_argument_group(
        "generation", "Defaults are the model's own settings; if it has none, the values in parentheses."
    )
    add_option(group, "--max-tokens", or_none, "N", "most tokens to generate (none: until the context is full)")
    add_option(group, "--temperature", float, "T", "0: always the most probable token; above 0: sample (0)")
    add_option(group, "--top-k", or_none, "K", "sample from the K most probable tokens (none: from all)")
    add_option(group, "--top-p", float, "P", "sample from the most probable tokens that together reach P (1: all)")
    add_option(group, "--min-p", float, "P", "leave out tokens less probable than P times the most probable (0)")
    add_option(group, "--typical-p", float, "P", "sample from the most typical tokens that together reach P (1: all)")
    add_option(group, "--repetition-penalty", float, "X", "for tokens in the prompt or text, divide positive logits by "
               "X and multiply negative ones by it (1)")  # fmt: skip
    add_option(group, "--presence-penalty", float, "X",
               "subtract X from the logits of tokens generated before (0)")  # fmt: skip
    add_option(group, "--frequency-penalty", float, "X", "subtract X from a token's logit for each time it was "
               "generated before (0)")  # fmt: skip
    add_option(group, "--speculate", int, "N", "at temperature 0, draft up to N tokens from earlier places in the "
               "text: gives the same text, faster where it repeats itself (0)")  # fmt: skip
    add_option(group, "--seed", or_none, "S", "the same seed gives the same text; none: a new seed each time (0)")
    group.add_argument("--stop", action="append", type=decoded, metavar="TEXT", default=argparse.SUPPRESS,
                       help="end before this text; may be repeated")  # fmt: skip
    group.add_argument("--cache-dtype", choices=("float32", "float16"), default="float32", help="number type of "
                       "the KV cache: float16 takes half the memory, is faster for long texts, and rounds to 11 bits "
                       "(float32)")  # fmt: skip
    return group


def load_to_generate(arguments: argparse.Namespace) -> tuple[Model, Tokenizer]:
    """The model that was asked for, with compiled kernels, and its tokenizer."""
    from ..checkpoint import load
    from ..compilation import Uses, compile_kernels

    model, tokenizer = load(arguments.model, arguments.backend)
    model.cache_dtype = arguments.cache_dtype
    compile_kernels(model, Uses(generates=True))
    return model, tokenizer


def note_what_does_nothing(asked: GenerationConfig, model: Model) -> None:
    """Print a note on stderr for given options that have no effect, considering the model's own defaults."""
    given, config = asked.given, GenerationConfig.of(asked, {}, model.generation_options)
    sampling = [name for name in ("top_k", "top_p", "min_p", "typical_p") if name in given and getattr(config, name)]
    searching = [name for name in ("length_penalty", "early_stopping") if name in given]
    drafting = [name for name in ("speculate", "speculate_ngram") if given.get(name)]
    for names, is_off, fix in (
        (sampling, config.beams > 1, "with beams; leave --beams out and add --temperature 0.8"),
        (sampling, config.beams == 1 and config.temperature == 0, "at temperature 0; add --temperature 0.8"),
        (searching, config.beams == 1, "with one beam; add --beams 4"),
        (drafting, config.beams > 1, "with beams; leave --beams out"),
        (drafting, config.temperature > 0, "above temperature 0; add --temperature 0"),
    ):
        if names and is_off:
            options = " and ".join(f"--{name.replace('_', '-')}" for name in names)
            print(f"fastllm: note: {options}: without effect {fix}", file=sys.stderr, flush=True)


def generation_config(arguments: argparse.Namespace) -> GenerationConfig:
    """The configuration that was asked for. Raises ConfigError, so that a wrong value counts as wrong usage."""
    try:
        return GenerationConfig(**{name: value for name, value in vars(arguments).items() if name in FIELDS})
    except ValueError as error:
        raise ConfigError(str(error)) from None
