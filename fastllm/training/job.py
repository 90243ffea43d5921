"""A training job from data to checkpoint: what `fastllm demo` and `fastllm train` do."""

from __future__ import annotations

import dataclasses
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, Self

import numpy as np

from ..adapters import checksum_of, read_adapter
from ..checkpoint import find_checkpoint, load, load_its_tokenizer, load_progress, save_tuned
from ..datasets import Dataset, Examples, TokenStream
from ..errors import ConfigError, DataError, FastllmError, FormatError, TrainingError
from ..interrupts import ENDINGS
from ..layers.score import Score
from ..lora import additions_of
from ..model import Model
from ..tokenizers import TOKENIZERS
from ..tokenizers.base import Tokenizer
from .config import JobConfig, PhaseConfig
from .run import CONFIG, Run, check_progress
from .source import Reading, Source, resolve
from .trainer import Step, Trainer, scores

VALIDATION_TIME = 0.1  # share of training's time for all validations together, unless evaluate_every is given
FORWARD = 3  # this many tokens are validated in the time that training on one takes
LEAST_VALIDATION = 1 << 14  # tokens: fewer say too little


class Interrupted(FastllmError):
    """Training has stopped as asked, with the checkpoint up to date. `signal`: the number of what asked."""

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal = number


class _Stop(threading.Event):
    """Set once training should stop. `number`: of the signal that asked for it."""

    number: int = signal.SIGINT


class Reporter(Protocol):
    """What is told how training proceeds: a progress bar, or a test."""

    def begin(self, phase: PhaseConfig, done: int, steps: int) -> None:
        """A phase begins, or goes on after `done` of its steps."""

    def step(self, done: Step) -> None:
        """An update was made."""

    def log(self, record: dict[str, Any]) -> None:
        """A line was added to the metrics."""

    def end(self) -> None:
        """The phase ends."""


@dataclass
class Phase:
    """A phase's configuration with its data.

    seed   of its batches and dropout masks; another one in each phase
    every  a validation reads every second, third, ... batch; 1: all
    """

    config: PhaseConfig
    seed: int
    dataset: Dataset
    validation: Dataset | None
    every: int = 1

    @property
    def steps(self) -> int:
        """Updates in all."""
        if self.config.steps is not None:
            return self.config.steps
        assert self.config.epochs is not None
        return self.config.epochs * self.dataset.steps_per_epoch

    @property
    def validate_every(self) -> int:
        """Steps between validations."""
        return self.config.evaluate_every or max(1, self.steps // 20)


class Job:
    """Everything a run needs: its folder, tokenizer, model and phases. Made by `start` or `resume`."""

    def __init__(self, run: Run, model: Model, tokenizer: Tokenizer, sources: dict[str, Source]) -> None:
        self.run = run
        self.config = run.config
        self.model = model
        self.tokenizer = tokenizer
        self.notes: list[str] = []  # what a person should know of the data
        self._base = None if self.config.lora is None else checksum_of(model)  # what an adapter is for
        self._place: tuple[str, int] | None = None  # phase and step of the checkpoint that this goes on from
        self.phases = [self._phase(number, phase, sources) for number, phase in enumerate(self.config.phases)]
        self._checksums = [sources[phase.data].checksum for phase in self.config.phases]
        self._at = 0  # phase to train next
        self._sums = Sums()
        self._trainer: Trainer | None = None

    @classmethod
    def start(cls, folder: str | Path, config: JobConfig) -> Job:
        """A new run: read the data, build or open model and vocabulary. Nothing is written if the data is no good."""
        sources = _read_sources(config, is_new=True)
        tokenizer, model = build(config, sources)
        run = Run.create(folder, config)
        try:
            return cls(run, model, tokenizer, sources)
        except BaseException:
            run.discard()
            raise

    @classmethod
    def resume(cls, folder: str | Path) -> Job:
        """Go on with the run in a folder, from its checkpoint; from the start if it has none yet.

        Raises ConfigError where another process trains in it, DataError where the data isn't what it was.
        """
        run = Run.open(folder)
        with run.alone():
            return cls._resume(run)

    @classmethod
    def _resume(cls, run: Run) -> Job:
        sources = _read_sources(run.config, is_new=False)
        try:
            find_checkpoint(run.checkpoint)
        except FileNotFoundError:
            run.metrics.unlink(missing_ok=True)
            tokenizer, model = build(run.config, sources)
            return cls(run, model, tokenizer, sources)
        model, tokenizer = load(run.checkpoint, run.config.backend)
        if (model.adapter is None) != (run.config.lora is None):
            there, given = ("none", "one") if model.adapter is None else ("one", "none")
            raise ConfigError(
                f"a run must keep its [lora]; got {given} in {CONFIG}, where there was {there}; put that back as it "
                "was, or start a new run"
            )
        if run.config.lora is not None:  # as the optimizer's state has it, and to the bit
            additions = additions_of(model.config, run.config.lora)
            model.set_adapter(read_adapter(model.config, find_checkpoint(run.checkpoint), additions))
        job = cls(run, model, tokenizer, sources)
        job._note_changes()
        names = [phase.config.name for phase in job.phases]
        progress = load_progress(run.checkpoint)
        job._at, step = check_progress(progress, names)
        job._check_data(progress.get("data", job._checksums), progress.get("base", job._base))
        try:
            job._sums = Sums.of(progress["since_last_line"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise FormatError(
                f"{run.checkpoint}: its progress must hold the sums of its metrics; got an error: {error}; start a new "
                "run"
            ) from None
        trainer = job._make_trainer(job.phases[job._at])
        load_progress(run.checkpoint, trainer.optimizer)
        trainer.step = step
        job._trainer, job._place = trainer, (names[job._at], step)
        run.forget_metrics_after(names, names[job._at], step)
        return job

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to train."""
        trainer, is_last = self._trainer, self._at == len(self.phases) - 1
        is_trained = is_last and trainer is not None and trainer.step >= trainer.steps
        return self._at == len(self.phases) or (is_trained and not self._sums.updates)

    def train(self, reporter: Reporter) -> None:
        """Train what is left of all phases.

        Raises Interrupted after Ctrl-C, SIGTERM or SIGHUP, with the checkpoint up to date, TrainingError if the
        loss is no longer finite: the last checkpoint is then from before. Raises ConfigError where another process
        trains in the folder.
        """
        with self.run.alone(), _stop_request() as stopping:
            self._check_place()
            while self._at < len(self.phases):
                phase = self.phases[self._at]
                trainer = self._trainer or self._make_trainer(phase)
                self._trainer = trainer
                reporter.begin(phase.config, trainer.step, phase.steps)
                try:
                    self._train_phase(phase, trainer, reporter, stopping)
                finally:
                    reporter.end()
                self._at += 1
                self._trainer = None

    def _train_phase(self, phase: Phase, trainer: Trainer, reporter: Reporter, stopping: _Stop) -> None:
        calendar = _Calendar(phase)
        saved = time.monotonic()
        trainer.callbacks = [reporter.step, lambda done: self._sums.add(done)]  # to those of the line to come
        self._log_what_is_due(calendar, phase, trainer, reporter, stopping)  # the last time, it was stopped in that
        while not stopping.is_set() and trainer.step < trainer.steps:
            trainer.train(trainer.step + 1)
            self._log_what_is_due(calendar, phase, trainer, reporter, stopping)
            if time.monotonic() - saved > self.config.checkpoint_seconds:
                self._save(phase, trainer)
                saved = time.monotonic()
        self._save(phase, trainer)
        if stopping.is_set() and not self.is_done:
            raise Interrupted(
                f"stopped at step {trainer.step} of phase {phase.config.name}; the checkpoint is in "
                f"{self.run.checkpoint}; go on with --run {self.run.folder} --resume",
                stopping.number,
            )

    def _log_what_is_due(
        self, calendar: _Calendar, phase: Phase, trainer: Trainer, reporter: Reporter, stopping: _Stop
    ) -> None:
        """Write a line of metrics where one is due; none where its validation is stopped before the end."""
        if not self._sums.updates or not calendar.is_due(trainer.step):
            return
        record = {
            "phase": phase.config.name,
            "epoch": round(trainer.step / phase.dataset.steps_per_epoch, 3),
            "step": trainer.step,
            **self._sums.record(),
        }
        if phase.validation and calendar.is_validation_due(trainer.step):
            score = Score()
            for part in scores(self.model, phase.validation, phase.every):
                if stopping.is_set():
                    return
                score += part
            if not math.isfinite(score.loss):
                raise TrainingError(
                    f"the validation loss must stay finite; got {score.loss} after step {trainer.step}; lower "
                    "the learning rate or clip harder"
                )
            record |= {f"validation_{name}": value for name, value in _figures(score).items()}
        self.run.log(record)
        self._sums = Sums()
        reporter.log(record)

    def _save(self, phase: Phase, trainer: Trainer) -> None:
        if not np.isfinite(self.model.trainable.flat).all():
            raise TrainingError(
                f"parameters must stay finite; got NaN or infinity after step {trainer.step}; "
                "lower the learning rate or clip harder"
            )
        progress = {
            "phase": phase.config.name, "step": trainer.step, "since_last_line": dataclasses.asdict(self._sums),
            "data": self._checksums, "base": self._base,
        }  # fmt: skip
        save_tuned(self.run.checkpoint, self.model, self.tokenizer, trainer.optimizer, progress)
        self.run.keep()
        self._place = phase.config.name, trainer.step

    def _note_changes(self) -> None:
        """What has been changed in config.toml and can't be in a model that has begun."""
        if self.config.path is not None:
            return
        asked = self.config.tokenizer
        if asked.path is None and self.tokenizer.name != asked.type:
            self.notes.append(
                f"the run's tokenizer stays {self.tokenizer.name}, not {asked.type}: [tokenizer] is for a new run"
            )
        there, given = self.model.config, self.config.model_config(self.model.config.vocab_size)
        names = [field.name for field in dataclasses.fields(there)]
        changed = [name for name in names if getattr(there, name) != getattr(given, name)]
        if changed:
            said = ", ".join(f"{name} = {getattr(there, name)}, not {getattr(given, name)}" for name in changed)
            self.notes.append(f"the run's model stays as it is, with {said}: [model] is for a new run")

    def _check_data(self, before: object, base: object) -> None:
        """Raise DataError where files are not what they were: other batches would follow, which were in no run."""
        if not isinstance(before, list):
            raise FormatError(
                f"{self.run.checkpoint}: its progress must have a checksum for each phase's data; start a new run"
            )
        if len(before) != len(self._checksums):
            raise ConfigError(
                f"a run must keep its phases; got {len(self._checksums)} in {CONFIG}, where there were {len(before)}; "
                f"put them back as they were, or begin a new run from this one with --model {self.run.folder}"
            )
        changed = [
            phase.data for phase, checksum, now in zip(self.config.phases, before, self._checksums, strict=True)
            if checksum != now
        ]  # fmt: skip
        if base != self._base:
            changed.insert(0, f"the model {self.config.path}")
        if changed:
            anew = "begin a new run from this one with --model"
            if self.config.lora is not None:
                anew = "`fastllm merge` this run and begin a new one from that"
            advice = f"bring it back, or {anew} {self.run.folder}" if base == self._base else "bring it back"
            raise DataError(
                f"the data of a run must stay as it is; got {changed[0]}, which has changed since the run read it, or "
                f"is read in another way than by the version that began it; {advice}"
            )

    def _check_place(self) -> None:
        """Raise ConfigError where another process has trained since this job was made."""
        try:
            progress = load_progress(self.run.checkpoint)
        except FileNotFoundError:
            place = None
        else:
            place = progress.get("phase"), progress.get("step")
        if place != self._place:
            raise ConfigError(
                f"one process at a time trains in a run folder; got {self.run.folder}, where another has since; go on "
                "with --resume"
            )

    def _make_trainer(self, phase: Phase) -> Trainer:
        return Trainer(
            self.model,
            self.config.optimizer.make(self.model),
            phase.dataset,
            phase.config.make_schedule(phase.steps),
            phase.steps,
            self.config.optimizer.max_norm,
            phase.config.accumulate,
            phase.seed,
        )

    def _phase(self, number: int, config: PhaseConfig, sources: dict[str, Source]) -> Phase:
        seed = self.config.seed
        if number:  # the first has the job's own; another must not see the same windows again, in the same order
            seed = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
        reading = Reading(config, self.tokenizer, self.model.config.context, seed, self.run.folder)
        dataset, validation = sources[config.data].datasets(reading)
        if isinstance(dataset, TokenStream) and dataset.length < reading.length:
            reading.notes.append(
                f"{config.data} is too short for sequences of {reading.length} tokens: they have {dataset.length}, and "
                "what comes at later positions is not learnt"
            )
        if config.validation is not None:
            validation = sources[config.validation].whole(reading)
        if validation is None and config.evaluate_every is not None:
            reading.notes.append(f"evaluate_every does nothing in phase {config.name!r}: it has no validation data")
        phase = Phase(config, seed, dataset, validation)
        if validation is not None and config.evaluate_every is None:
            tokens = validation.token_count
            trained = phase.validate_every * len(dataset.batch(0).tokens)
            phase.every = math.ceil(tokens / max(LEAST_VALIDATION, VALIDATION_TIME * FORWARD * trained))
            if phase.every > 1:
                reading.notes.append(
                    f"a validation reads one batch in {phase.every} of {tokens:,} tokens, for a tenth of the time; all "
                    "where evaluate_every is given; `fastllm eval` reads all, too"
                )
        self.notes += [note for note in reading.notes if note not in self.notes]
        return phase


def build(config: JobConfig, sources: dict[str, Source]) -> tuple[Tokenizer, Model]:
    """Vocabulary and random model, the vocabulary of the data of all phases, with what is held back of a text; or the
    model to be tuned."""
    if config.path is not None:
        model, tokenizer = load(config.path, config.backend)
        if model.adapter is not None:
            raise ConfigError(
                f"a model to be tuned must have no adapter; got {config.path} with one; `fastllm merge` it before"
            )
        if config.lora is not None:
            model.add_lora(config.lora, config.seed)
        return tokenizer, model
    tokenizer = _tokenizer(config, sources)
    return tokenizer, Model(config.model_config(tokenizer.vocab_size), config.seed, config.backend)


def _tokenizer(config: JobConfig, sources: dict[str, Source]) -> Tokenizer:
    options = config.tokenizer
    if options.path is not None:
        return load_its_tokenizer(options.path)
    texts = [text for phase in config.phases for text in sources[phase.data].texts()]
    try:
        assert options.minimum_count is not None
        return TOKENIZERS[options.type].build(texts, options.max_size, options.minimum_count)
    except DataError:
        raise
    except ValueError as error:  # of a limit that leaves no room
        raise ConfigError(f"tokenizer: {error}") from None


def _read_sources(config: JobConfig, is_new: bool) -> dict[str, Source]:
    names = {name for phase in config.phases for name in (phase.data, phase.validation) if name is not None}
    return {name: Source(resolve(name), is_new) for name in sorted(names)}


def _figures(score: Score) -> dict[str, float]:
    return {
        "loss": score.loss,
        "perplexity": min(score.perplexity, sys.float_info.max),  # JSON has no infinity
        "accuracy": score.accuracy,
    }


@dataclass
class Sums:
    """What the updates since the last line of metrics add up to. Kept in checkpoints."""

    updates: int = 0
    tokens: int = 0
    loss: float = 0.0
    correct: int = 0
    targets: int = 0
    gradient_norm: float = 0.0
    learning_rate: float = 0.0  # of the last
    seconds: float = 0.0

    @classmethod
    def of(cls, saved: Any) -> Self:
        """As they were saved. Raises TypeError or ValueError where they are none."""
        for name, value in dict(saved).items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value!r:.40}")
        return cls(**saved)

    def add(self, done: Step) -> None:
        self.updates += 1
        self.tokens += done.tokens
        self.loss += done.score.total
        self.correct += done.score.correct
        self.targets += done.score.targets
        self.gradient_norm += done.gradient_norm
        self.learning_rate = done.learning_rate
        self.seconds += done.seconds

    def record(self) -> dict[str, Any]:
        """Their means, for a line of metrics."""
        return {
            "tokens": self.tokens,
            **_figures(Score(self.loss, self.correct, self.targets)),
            "gradient_norm": self.gradient_norm / self.updates,
            "learning_rate": self.learning_rate,
            "tokens_per_second": self.tokens / self.seconds,
            "seconds": self.seconds,
        }


class _Calendar:
    """When a phase's metrics are due: each epoch of examples, every two-hundredth of a text's steps."""

    def __init__(self, phase: Phase) -> None:
        self._steps = phase.steps
        per_epoch = phase.dataset.steps_per_epoch
        self._every = per_epoch if isinstance(phase.dataset, Examples) else max(1, self._steps // 200)
        self._validate_every = phase.validate_every
        self._has_validation = phase.validation is not None

    def is_due(self, step: int) -> bool:
        return step % self._every == 0 or step == self._steps or self.is_validation_due(step)

    def is_validation_due(self, step: int) -> bool:
        return self._has_validation and (step % self._validate_every == 0 or step == self._steps)


@contextmanager
def _stop_request() -> Iterator[_Stop]:
    """An event that Ctrl-C and ENDINGS set, so that an update is finished first; Ctrl-C is immediate after that.

    Not so another SIGHUP: who closes a terminal sends two, milliseconds apart.
    """
    stopping = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stopping  # signals reach the main thread only
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if not stopping.is_set():
            stopping.number = number
            stopping.set()
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    # Who is started in the background ignores Ctrl-C, which is for the program in front; with nohup, SIGHUP.
    numbers = [n for n in (signal.SIGINT, *ENDINGS) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
