"""A training job as a file: data, tokenizer, model, optimizer and phases, in TOML.

    seed = 0

    [tokenizer]
    type = "word"

    [model]
    preset = "rustgpt"

    [optimizer]
    name = "adam"
    max_norm = 5.0

    [[phases]]
    name = "facts"
    data = "facts.jsonl"
    epochs = 100
    learning_rate = 5e-4

Each table's keys are the fields of a class below; an unknown key is an error that names the nearest.

An existing model is tuned, with its own tokenizer:

    [model]
    path = "SmolLM2-135M-Instruct.Q4_1.gguf"    # whatever fastllm.load opens

    [lora]                                      # low-rank matrices beside it; without this table, all parameters
    rank = 8
    targets = ["query", "value"]
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ..config import PRESETS, ModelConfig, preset, reject_unknown_keys
from ..errors import ConfigError
from ..lora import LoRAConfig
from ..optimizers import EPS, OPTIMIZERS, Optimizer
from ..schedules import KINDS, Schedule
from ..tokenizers import TOKENIZERS
from ..tokenizers.bpe import USUAL_COUNT, USUAL_SIZE


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


def _check_path(path: object, what: str) -> None:
    is_name = isinstance(path, str) and path != "" and "\0" not in path
    _check(is_name, f"{what} must name a file or folder; got {path!r}; name one")


class _Table:
    """A table of the file: its fields are the dataclass's."""

    @classmethod
    def from_table(cls, table: object, where: str) -> Self:
        _check(isinstance(table, Mapping), f"{where} must be a table; got {table!r}; write [{where}] and keys below")
        assert isinstance(table, Mapping)
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        reject_unknown_keys(table, [f.name for f in fields], where)
        for f in fields:
            _check(
                f.name in table or f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING,
                f"{where} needs {f.name}; got {', '.join(table) or 'nothing'}; add it",
            )
            if f.name in table:
                _check_kind(table[f.name], str(f.type), f"{where}: {f.name}")
        return cls(**table)


_KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}


def _check_kind(value: object, annotation: str, what: str) -> None:
    kinds = _KINDS.get(annotation.removesuffix(" | None"))
    if kinds and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
        raise ConfigError(f"{what} must be {' or '.join(kind.__name__ for kind in kinds)}; got {value!r}; change it")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{what} must be finite; got {value}; change it")


@dataclass(frozen=True)
class TokenizerConfig(_Table):
    """A tokenizer made from the data, or an existing one.

    type           "word", "character", "byte" or "bpe"
    max_size       most tokens in the vocabulary; None: 4096 for bpe, else no limit
    minimum_count  how often a word, a character or (bpe) a pair must occur; None: 2 for bpe, else 1
    path           of an existing tokenizer, or of a model that has one; then no other key may be given
    """

    type: str = "word"
    max_size: int | None = None
    minimum_count: int | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        _check(
            self.type in TOKENIZERS,
            f"tokenizer: type must be one of {', '.join(TOKENIZERS)}; got {self.type!r}; choose one",
        )
        if self.path is not None:
            _check_path(self.path, "tokenizer: path")
        _check(
            self.path is None or dataclasses.replace(self, path=None) == TokenizerConfig(),
            "tokenizer: path goes alone, that tokenizer is as it is; got other keys too; drop them",
        )
        usual = (USUAL_SIZE, USUAL_COUNT) if self.type == "bpe" else (None, 1)
        for name, value in zip(("max_size", "minimum_count"), usual, strict=True):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("max_size", "minimum_count"):
            value = getattr(self, name)
            _check(value is None or value >= 1, f"tokenizer: {name} must be 1 or more; got {value}; raise it")


# The options of each optimizer besides weight_decay, with their defaults.
_OPTIONS = {
    "adam": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    "adamw": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    "sgd": {"momentum": 0.9},
    "lion": {"beta1": 0.9, "beta2": 0.99},
}


@dataclass(frozen=True)
class OptimizerConfig(_Table):
    """name: adam, adamw, sgd or lion.

    beta1, beta2  None: 0.9; 0.99 for lion, else 0.999. Not for sgd
    eps           of adam and adamw; None: 1e-8
    momentum      of sgd; None: 0.9
    weight_decay  of matrices only; must be 0 for adam
    max_norm      gradients are clipped to this global L2 norm; 0: no clipping
    """

    name: str = "adamw"
    beta1: float | None = None
    beta2: float | None = None
    eps: float | None = None
    momentum: float | None = None
    weight_decay: float = 0.0
    max_norm: float = 1.0

    def __post_init__(self) -> None:
        _check(
            self.name in OPTIMIZERS,
            f"optimizer: name must be one of {', '.join(OPTIMIZERS)}; got {self.name!r}; choose one of them",
        )
        _check(
            self.name != "adam" or not self.weight_decay,
            f"optimizer: adam takes no weight_decay; got {self.weight_decay}; use adamw",
        )
        usual = _OPTIONS[self.name]
        for name in ("beta1", "beta2", "eps", "momentum"):
            value = getattr(self, name)
            if value is None:
                object.__setattr__(self, name, usual.get(name))
                continue
            _check(name in usual, f"optimizer: {self.name} takes no {name}; got {value}; drop it")
            if name == "eps":
                _check(
                    EPS[0] <= value <= EPS[1],
                    f"optimizer: eps must be from {EPS[0]} to {EPS[1]}; got {value}; usual is 1e-8",
                )
            else:
                _check(0 <= value < 1, f"optimizer: {name} must be at least 0 and below 1; got {value}; usual is 0.9")
        for name in ("weight_decay", "max_norm"):
            value = getattr(self, name)
            _check(value >= 0, f"optimizer: {name} must not be negative; got {value}; 0 turns it off")

    def make(self, model: Any) -> Optimizer:
        """A new optimizer for a model."""
        options: dict[str, Any] = {"weight_decay": self.weight_decay} if self.name != "adam" else {}
        if self.name == "sgd":
            options["momentum"] = self.momentum
        else:
            options["betas"] = (self.beta1, self.beta2)
        if self.name in ("adam", "adamw"):
            options["eps"] = self.eps
        return OPTIMIZERS[self.name](model, **options)


@dataclass(frozen=True)
class PhaseConfig(_Table):
    """One pass of training over one data set.

    name                 in progress bars, metrics and plots
    data                 a .jsonl, .ndjson or .json file of texts, dialogues or instructions, a text file or a folder of
                         them; "fastllm:en/facts.jsonl" is a file that comes with the library
    validation           the same, for validation; of a text, None takes the last tenth
    epochs or steps      how long; one of the two
    learning_rate, schedule, warmup, final_learning_rate   see Schedule; warmup in steps, half of all at most
    rows_per_update      sequences in a batch
    sequence_length      tokens in a window of a text, and the most in an example; None: the model's context
    join                 dialogues of a batch follow one another in one sequence as far as the context goes, so that
                         the model learns to answer after other turns
    accumulate           parts a batch is computed in, to save memory
    evaluate_every       steps between validations; None: about twenty times in all
    """

    name: str
    data: str
    learning_rate: float
    validation: str | None = None
    epochs: int | None = None
    steps: int | None = None
    schedule: str = "constant"
    warmup: int = 0
    final_learning_rate: float = 0.0
    rows_per_update: int = 16
    sequence_length: int | None = None
    join: bool = False
    accumulate: int = 1
    evaluate_every: int | None = None

    def __post_init__(self) -> None:
        where = f"phase {self.name!r}"
        _check(self.name.strip() != "", f"a phase must have a name to be shown by; got {self.name!r}; write one")
        _check(
            (self.epochs is None) != (self.steps is None),
            f"{where} needs epochs or steps, not both; got epochs={self.epochs}, steps={self.steps}; give one",
        )
        for name in ("epochs", "steps", "rows_per_update", "sequence_length", "accumulate", "evaluate_every"):
            value = getattr(self, name)
            _check(value is None or value >= 1, f"{where}: {name} must be 1 or more; got {value}; raise it")
            _check(value is None or value < 1 << 40, f"{where}: {name} must be below 2^40; got {value}; lower it")
        for name in ("data", "validation"):
            if getattr(self, name) is not None:
                _check_path(getattr(self, name), f"{where}: {name}")
        _check(
            self.schedule in KINDS,
            f"{where}: schedule must be one of {', '.join(KINDS)}; got {self.schedule!r}; choose one of them",
        )
        try:
            self.make_schedule(max(self.warmup, self.steps or 10**9))
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None

    def make_schedule(self, steps: int) -> Schedule:
        """The learning rate over so many steps."""
        warmup = min(self.warmup, steps // 2)
        return Schedule(self.schedule, self.learning_rate, steps, warmup, self.final_learning_rate)


@dataclass(frozen=True)
class JobConfig(_Table):
    """A whole job.

    model  ModelConfig's fields but vocab_size, perhaps with a preset to start from; or path alone: a model to be tuned,
           which fastllm.load opens
    lora   what is trained beside that model; None: the model itself
    """

    phases: tuple[PhaseConfig, ...]
    model: Mapping[str, Any] = field(default_factory=lambda: {"preset": "nano"})
    lora: LoRAConfig | None = None
    tokenizer: TokenizerConfig = TokenizerConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    seed: int = 0
    backend: str = "numba"
    checkpoint_seconds: float = 30.0

    def __post_init__(self) -> None:
        _check(len(self.phases) > 0, "a job needs at least one phase; got none; write [[phases]] and keys below")
        names = [phase.name for phase in self.phases]
        _check(len(set(names)) == len(names), f"phases must have different names; got {names}; rename one")
        _check(0 <= self.seed < 1 << 32, f"seed must be from 0 to 2^32 - 1; got {self.seed}; change it")
        _check(
            self.checkpoint_seconds >= 0,
            f"checkpoint_seconds must not be negative; got {self.checkpoint_seconds}; 0 saves after each update",
        )
        _check(self.backend in ("numba", "numpy"), f"backend must be numba or numpy; got {self.backend!r}; change it")
        _check("vocab_size" not in self.model, "vocab_size follows from the data; got one under [model]; leave it out")
        if "path" in self.model:
            _check_path(self.model["path"], "model: path")
            others = [key for key in self.model if key != "path"]
            _check(not others, f"model: path goes alone, the model is as it is; got {', '.join(others)} too; drop them")
            _check(
                self.tokenizer == TokenizerConfig(), "a model with a path has its own tokenizer; drop the [tokenizer]"
            )
            return
        _check(self.lora is None, "[lora] is trained beside a model that is there; got none; name it as [model] path")
        self.model_config(vocab_size=1)  # fails early, before any data is read

    @property
    def path(self) -> str | None:
        """Of the model to be tuned; None for a new one."""
        return self.model.get("path")

    def model_config(self, vocab_size: int) -> ModelConfig:
        """The model for a vocabulary."""
        fields = dict(self.model)
        name = fields.pop("preset", None)
        if name is None:
            return ModelConfig.from_dict({**fields, "vocab_size": vocab_size})
        _check(isinstance(name, str), f"model: preset must be one of {', '.join(PRESETS)}; got {name!r}; choose one")
        return preset(name, **{**fields, "vocab_size": vocab_size})

    @classmethod
    def from_dict(cls, tables: Mapping[str, Any]) -> JobConfig:
        """From the tables of a TOML file. Raises ConfigError."""
        tables = dict(tables)
        phases = tables.get("phases", ())
        _check(isinstance(phases, (list, tuple)), "phases must be tables; write [[phases]] and keys below")
        tables["phases"] = tuple(PhaseConfig.from_table(phase, "phases") for phase in phases)
        for name, kind in (("tokenizer", TokenizerConfig), ("optimizer", OptimizerConfig)):
            if name in tables:
                tables[name] = kind.from_table(tables[name], name)
        if "lora" in tables:
            tables["lora"] = _lora(tables["lora"])
        _check(isinstance(tables.get("model", {}), Mapping), "model must be a table; write [model] and keys below")
        return cls.from_table(tables, "the job")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> JobConfig:
        """From a TOML file. Raises ConfigError naming the file, OSError if it can't be read."""
        if Path(path).is_dir():
            raise IsADirectoryError(f"there must be a job's TOML file at {path}; got a folder; name a file in it")
        try:
            return cls.from_dict(tomllib.loads(Path(path).read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise FileNotFoundError(f"there must be a job's TOML file at {path}; got nothing; check the name") from None
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, endless numbers, or a thousand brackets
            raise ConfigError(f"{path} must be TOML; got an error: {error}; see `fastllm train --help`") from None

    def to_toml(self) -> str:
        """The file that makes this job again."""
        fields = dataclasses.asdict(self)
        phases = fields.pop("phases")
        tables = {name: fields.pop(name) for name in ("tokenizer", "model", "lora", "optimizer")}
        if self.path is not None:
            del tables["tokenizer"]
        elif self.tokenizer.path is not None:
            tables["tokenizer"] = {"path": self.tokenizer.path}
        if self.lora is None:
            del tables["lora"]
        parts = [_toml_lines(fields)]
        parts += [f"[{name}]\n{_toml_lines(table)}" for name, table in tables.items()]
        parts += [f"[[phases]]\n{_toml_lines(phase)}" for phase in phases]
        return "\n".join(parts)


def _lora(table: object) -> LoRAConfig:
    _check(isinstance(table, Mapping), f"lora must be a table; got {table!r}; write [lora] and keys below")
    assert isinstance(table, Mapping)
    reject_unknown_keys(table, [f.name for f in dataclasses.fields(LoRAConfig)], "lora")
    try:
        return LoRAConfig(**table)
    except ConfigError as error:
        raise ConfigError(f"lora: {error}") from None


def _toml_lines(table: Mapping[str, Any]) -> str:
    """Keys and values; None is left out, as TOML has no such value."""
    return "".join(f"{key} = {_toml_value(value)}\n" for key, value in table.items() if value is not None)


def _toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml_value(inner)}" for key, inner in value.items()) + "}"
    # JSON's numbers, booleans and strings are TOML's too, once DEL is escaped
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
