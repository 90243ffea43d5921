"""A run folder: config.toml, metrics.jsonl, checkpoint/, loss.svg."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..atomic import make_parent, replacing, write_text
from ..checkpoint import JOB
from ..errors import ConfigError, FormatError
from .config import JobConfig

try:
    import fcntl
except ImportError:  # Windows: nothing keeps a second process away
    fcntl = None  # type: ignore[assignment]

CONFIG, METRICS, CHECKPOINT, PLOT = JOB, "metrics.jsonl", "checkpoint", "loss.svg"
TOKENS = ".tokens.npy"  # how names of encoded texts end


class Run:
    """The folder of one training run. Made by `create` or `open`."""

    def __init__(self, folder: Path, config: JobConfig) -> None:
        self.folder = folder
        self.config = config

    @classmethod
    def create(cls, folder: str | os.PathLike[str], config: JobConfig) -> Run:
        """A new run in a folder that is not there or empty. Raises ConfigError if it is in use, OSError."""
        path, text = Path(folder), config.to_toml()
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            line = text[: error.start].rpartition("\n")[2] + text[error.start :].partition("\n")[0]
            raise ConfigError(f"names in a job must be UTF-8, which {CONFIG} is; got {line!a}; rename it") from None
        try:
            make_parent(path)
            if not os.path.lexists(path):
                path.mkdir()
        except OSError as error:
            if error.errno is None:  # our own, and complete
                raise
            reason = os.strerror(error.errno)
            raise OSError(error.errno, f"{path} can't be created: {reason}; choose another with --run") from error
        if not path.is_dir() or any(path.iterdir()):  # looked at now: of new/.. one can't tell before
            hint = "add --resume to go on with it, or " if (path / CONFIG).is_file() else ""
            raise ConfigError(f"a new run needs an empty folder; {path} is in use; {hint}choose another with --run")
        run = cls(path, config)
        try:
            with replacing(path / CONFIG) as temporary:
                temporary.write_bytes(data)
        except BaseException:
            run.discard()
            raise
        return run

    def discard(self) -> None:
        """Take back what `create` and the reading of data have written: the next attempt wants an empty folder."""
        with contextlib.suppress(OSError):  # something else is in it, or it can't be written
            for path in [self.folder / CONFIG, *self.folder.glob(f"*{TOKENS}")]:
                path.unlink(missing_ok=True)
            self.folder.rmdir()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A block in which no other process trains in this folder. Raises ConfigError where one does."""
        with open(self.folder / CONFIG, "rb") as file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                        raise ConfigError(
                            f"one process at a time trains in a run folder; got {self.folder}, where another does; "
                            "wait for it, or stop it"
                        ) from None  # other errors: a disk that has no locks
            yield

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """The run in a folder. Raises FileNotFoundError, ConfigError."""
        path = Path(folder)
        if not (path / CONFIG).is_file():
            raise FileNotFoundError(f"a run folder holds {CONFIG}; there is none in {path}; check the name")
        return cls(path, JobConfig.read(path / CONFIG))

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT

    @property
    def metrics(self) -> Path:
        return self.folder / METRICS

    def keep(self) -> None:
        """Make the folder anew where it was moved or removed while it is trained in: one can resume in it."""
        if not (self.folder / CONFIG).exists():
            make_parent(self.folder / CONFIG)
            write_text(self.folder / CONFIG, self.config.to_toml())

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl, whole or not at all."""
        self.keep()
        line = (json.dumps(record) + "\n").encode()
        with open(self.metrics, "ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                file.truncate(size)
                raise OSError(error.errno, f"{self.metrics} could not be written: {error.strerror}") from None

    def forget_metrics_after(self, phases: list[str], phase: str, step: int) -> None:
        """Drop lines later than a step of a phase: they were written after the checkpoint it goes on from."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
                is_earlier = (phases.index(record["phase"]), record["step"]) <= (phases.index(phase), step)
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # a line cut short when its writer was killed
            if is_earlier:
                kept.append(line + "\n")
        write_text(self.metrics, "".join(kept))


def free_folder(base: str | os.PathLike[str]) -> Path:
    """base, or base-2, base-3, ...: the first that is not there."""
    path, number = Path(base), 1
    while path.exists():
        number += 1
        path = Path(f"{base}-{number}")
    return path


def check_progress(progress: Mapping[str, Any], phases: list[str]) -> tuple[int, int]:
    """The phase's number and step of a checkpoint's progress. Raises FormatError if it is not of this job."""
    phase, step = progress.get("phase"), progress.get("step")
    if phase not in phases or not isinstance(step, int) or step < 0:
        raise FormatError(
            f"a checkpoint's progress must name a phase of {phases} and a step; got {phase!r} and {step!r}; start "
            "a new run"
        )
    return phases.index(phase), step
