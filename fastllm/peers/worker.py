"""A contender in a process of its own, so that each has its own threads, compiler and peak memory.

The process that runs the race sends (method, arguments); the worker answers with the method's result, or with the
exception's text. Between requests it waits on the pipe and uses no CPU.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from .cases import BETAS, EPS, LEARNING_RATE, MAX_NORM, SEED, WEIGHT_DECAY, AttentionCase, Case, TrainingCase
from .generation import GENERATORS, GenerationCase


class Contender(ABC):
    """A way to do a case's work."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Load the weights from the folder where the race has put them."""

    @abstractmethod
    def gradients(self, folder: Path) -> float:
        """Write the gradients of the case's batch to the folder, flat and in our order; return the loss."""

    def weights(self, folder: Path) -> bool:
        """Write the parameters likewise; returns whether there are any."""
        return False

    @abstractmethod
    def step(self) -> float:
        """Do the work once; returns the loss before the update, or 0 if there is none."""

    def steps(self, count: int) -> tuple[float, float]:
        """Do `count` steps; returns mean seconds per step, and the last loss."""
        began = time.perf_counter()
        for _ in range(count):
            loss = self.step()
        return (time.perf_counter() - began) / count, loss

    def peak_memory(self) -> int:
        """Peak resident memory of this process, in bytes."""
        return peak_memory()


def peak_memory() -> int:
    """Peak resident memory of this process, in bytes; 0 where the system doesn't tell."""
    if os.path.exists("/proc/self/status"):  # ru_maxrss would count the process that this one was forked from
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts in bytes


def read_floats(path: Path, start: int, array: np.ndarray) -> None:
    """Fill a float32 array from a file's float number `start` on. Not memory-mapped: that would count as memory."""
    with path.open("rb") as file:
        file.seek(start * 4)
        file.readinto(array.reshape(-1).view(np.uint8).data)


def write_floats(path: Path, start: int, array: np.ndarray) -> None:
    """The reverse of read_floats."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.seek(start * 4)
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


class FastllmTraining(Contender):
    """A Trainer's step."""

    def __init__(self, case: TrainingCase) -> None:
        from ..datasets import OneBatch, pack
        from ..model import Model
        from ..optimizers import AdamW
        from ..schedules import Schedule
        from ..training.trainer import Trainer

        self.batch = pack(case.examples())
        self.model = Model(case.config, seed=SEED)
        self.trainer = Trainer(
            self.model,
            AdamW(self.model, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY),
            OneBatch(self.batch),
            Schedule(peak=LEARNING_RATE),
            steps=sys.maxsize,
            max_norm=MAX_NORM,
            callbacks=[self._note],
        )

    def load(self, folder: Path) -> None:
        read_floats(folder / "weights", 0, self.model.unfreeze().flat)

    def gradients(self, folder: Path) -> float:
        self.model.zero_gradients()
        loss = self.model.loss_and_gradients(self.batch.tokens, self.batch.targets, self.batch.starts)
        write_floats(folder / "fastllm", 0, self.model.gradients.flat)
        return loss

    def weights(self, folder: Path) -> bool:
        write_floats(folder / "fastllm", 0, self.model.unfreeze().flat)
        return True

    def step(self) -> float:
        self.trainer.train(until=self.trainer.step + 1)
        return self._loss

    def _note(self, done: Any) -> None:
        self._loss = done.score.loss


class TorchTraining(Contender):
    """zero_grad, forward, backward, clip_grad_norm_, AdamW(fused=True)."""

    def __init__(self, case: TrainingCase, compiled: bool) -> None:
        import torch

        from .torch_model import Transformer, our_names

        self.name = "compiled" if compiled else "eager"
        torch.set_num_threads(threads())
        self.torch, self.config = torch, case.config
        self.plain = Transformer(case.config)
        self.model = torch.compile(self.plain) if compiled else self.plain
        self.names = {name: our_names(case.config, name) for name, _ in self.plain.named_parameters()}
        longest = max(case.lengths)
        tokens = torch.zeros((len(case.lengths), longest), dtype=torch.long)
        targets = torch.full((len(case.lengths), longest), -1)
        for i, example in enumerate(case.examples()):
            tokens[i, : len(example.tokens)] = torch.from_numpy(example.tokens)
            targets[i, : len(example.targets)] = torch.from_numpy(example.targets)
        self.tokens, self.targets = tokens, targets
        decayed: list[Any] = []
        others: list[Any] = []
        for name, parameter in self.plain.named_parameters():
            is_matrix = parameter.dim() == 2 and name not in ("tokens.weight", "positions.weight")
            (decayed if is_matrix else others).append(parameter)
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPS, fused=True)

    def load(self, folder: Path) -> None:
        with self.torch.no_grad():
            for parameter, start in self._placed():
                read_floats(folder / "weights", start, parameter.numpy())

    def gradients(self, folder: Path) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model(self.tokens, self.targets)
        loss.backward()
        for parameter, start in self._placed():
            write_floats(folder / self.name, start, parameter.grad.numpy())
        return loss.item()

    def weights(self, folder: Path) -> bool:
        for parameter, start in self._placed():
            write_floats(folder / self.name, start, parameter.detach().numpy())
        return True

    def _placed(self) -> list[tuple[Any, int]]:
        """Each parameter with its place in our flat buffer. Parameters that one of theirs joins are adjacent."""
        from ..parameters import shapes_of

        offsets, offset = {}, 0
        for name, shape in shapes_of(self.config).items():
            offsets[name] = offset
            offset += math.prod(shape)
        return [(parameter, offsets[self.names[name][0]]) for name, parameter in self.plain.named_parameters()]

    def step(self) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model(self.tokens, self.targets)
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.plain.parameters(), MAX_NORM)
        self.optimizer.step()
        return loss.item()


class FastllmAttention(Contender):
    """attention_forward and attention_backward."""

    def __init__(self, case: AttentionCase) -> None:
        from ..kernels import attention_backward, attention_forward, attention_pieces, attention_scratch

        self.forward, self.backward = attention_forward, attention_backward
        self.case = case
        self.qkv, self.dout = case.arrays()
        self.out, self.dqkv = np.empty_like(self.dout), np.empty_like(self.qkv)
        self.lse = np.empty((case.length, case.heads), np.float32)
        self.starts = np.array([0, case.length], np.int32)
        self.dq_pieces = np.empty((case.length, attention_pieces(self.dout.shape[1])), np.float32)
        self.scratch = attention_scratch(case.head_size)

    def load(self, folder: Path) -> None:
        pass

    def gradients(self, folder: Path) -> float:
        self.step()
        write_floats(folder / "fastllm", 0, self.dqkv)
        return float((self.out * self.dout).sum(dtype=np.float64))

    def step(self) -> float:
        case, scale = self.case, self.case.head_size**-0.5
        shared = (self.qkv, self.starts, case.heads, case.heads, scale)
        self.forward(self.out, self.lse, *shared, self.scratch)
        self.backward(self.dqkv, self.dout, self.out, self.lse, *shared, self.dq_pieces, self.scratch)
        return 0.0


class TorchAttention(Contender):
    """scaled_dot_product_attention and its backward; each head is contiguous, which is its fastest layout."""

    def __init__(self, case: AttentionCase, compiled: bool) -> None:
        import torch

        self.name = "compiled" if compiled else "eager"
        torch.set_num_threads(threads())
        qkv, dout = case.arrays()
        shape = (1, case.length, -1, case.head_size)
        parts = torch.from_numpy(qkv).view(shape).transpose(1, 2).chunk(3, dim=1)
        self.inputs = [part.contiguous().requires_grad_() for part in parts]
        self.dout = torch.from_numpy(dout).view(shape).transpose(1, 2).contiguous()

        def attend(q: Any, k: Any, v: Any) -> Any:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

        self.attend = torch.compile(attend) if compiled else attend

    def load(self, folder: Path) -> None:
        pass

    def gradients(self, folder: Path) -> float:
        self.step()
        length = self.dout.shape[2]
        flat = [array.grad.transpose(1, 2).reshape(length, -1).numpy() for array in self.inputs]
        write_floats(folder / self.name, 0, np.concatenate(flat, axis=1))
        return float((self.out.detach().double() * self.dout).sum())

    def step(self) -> float:
        for array in self.inputs:
            array.grad = None
        self.out = self.attend(*self.inputs)
        self.out.backward(self.dout)
        return 0.0


class Probe:
    """Measures the machine's limits: see kernels/probe.py. In a process of its own, as its arrays are large."""

    FLOATS = 2**25

    def __init__(self) -> None:
        from ..kernels import probe
        from ..kernels.llvm import LANES

        self.probe = probe
        self.out = np.zeros((threads(), LANES), np.float32)
        self.a, self.b = np.ones(self.FLOATS, np.float32), np.ones(self.FLOATS, np.float32)

    def limits(self, floats: np.ndarray | None = None) -> dict[str, float]:
        """The peak in GFLOP/s, and GB/s of reading and of updating.

        floats  (P,) the array to read; None: one of the probe's own
        """
        floats = self.a if floats is None else floats
        rounds, sums = 2_000_000, self.out[:, 0].copy()
        peak = _rate(lambda: self.probe.peak(self.out, rounds), rounds * self.probe.FLOPS_A_ROUND * len(self.out))
        read = _rate(lambda: self.probe.read(sums, floats), floats.nbytes)
        update = _rate(lambda: self.probe.update(self.a, self.b, 0.5, len(sums)), 3 * self.a.nbytes)
        return {"gflops": peak, "read_gbytes_per_s": read, "update_gbytes_per_s": update}


def _rate(work: Any, amount: int) -> float:
    """1e9 units per second; the first call, which compiles, is not counted."""
    work()
    began = time.perf_counter()
    work()
    return amount / (time.perf_counter() - began) / 1e9


def threads() -> int:
    """Number of threads of each contender, from the environment that the race has set."""
    return int(os.environ["OMP_NUM_THREADS"])


CONTENDERS = ("fastllm", "eager", "compiled")


def make(name: str, case: Case | GenerationCase | None) -> Any:
    """A contender by name, or the probe."""
    if case is None:
        return Probe()
    if isinstance(case, GenerationCase):
        return GENERATORS[name](case)
    if isinstance(case, TrainingCase):
        return FastllmTraining(case) if name == "fastllm" else TorchTraining(case, name == "compiled")
    return FastllmAttention(case) if name == "fastllm" else TorchAttention(case, name == "compiled")


def serve(connection: Connection, name: str, case: Case | GenerationCase | None) -> None:
    """Answer requests until the other side closes the pipe. Ctrl-C is left to the other side."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = None
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            worker = worker or make(name, case)
            answer = True, getattr(worker, method)(*arguments)
        except Exception as error:  # the race reports it and continues with the next case
            answer = False, f"{type(error).__name__}: {error}"
        try:
            connection.send(answer)
        except OSError:  # nobody is there any more
            return
