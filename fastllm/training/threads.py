"""On how many threads a small training step runs fastest.

Starting a parallel region costs a few microseconds, and more where the cores share no cache; a step of a small model
is thirty regions of ten microseconds. Whether another thread pays off depends on the machine and on what else it is
doing, so it is measured again and again. Results have the same bits on any number of threads.
"""

from __future__ import annotations

import math
import time
from statistics import fmean
from typing import Self

# Floating-point operations for each thread. In a larger step, starting the threads costs next to nothing.
SMALL = 500_000_000
# A trial: so many turns on each of two numbers of threads, each turn so many steps. In the first step of a turn a core
# may have to fetch from another's cache what that has written: it is not counted.
TURNS, TURN = 2, 12
# Steps before the first trial, while kernels are compiled and read from the disk; from one to the next on all threads;
# and on fewer, where nothing but a trial tells that more have become faster, or when all have become slower.
WARM_UP, PAUSE, SHORT_PAUSE = 50, 4000, 300
GAIN = 0.85  # the other number is taken if it needs less than this share of the time
SLOWER = 1.4  # steps that take so many times what they took in the last trial are a reason for the next


class StepThreads:
    """Runs small steps on the number of threads that is fastest: Numba's number, or a half, a quarter ... of it.

    count  on how many they run now
    """

    def __init__(self) -> None:
        self._begin(1)
        self._tokens = 0  # of the step that is running, where its time counts

    def _begin(self, most: int) -> None:
        """Forget all measurements: there are `most` threads now."""
        self._most = self.count = most
        self._goes_down = True  # whether the next trial is of half as many threads, or of twice as many
        self._until_trial = WARM_UP
        self._trial: dict[int, list[float]] = {}  # seconds a token, by number of threads: the present one, another
        self._tried = 0  # steps of this trial
        self._usual = math.inf  # seconds a token in the last trial
        self._recent: list[float] = []

    def step(self, operations: float, tokens: int) -> Self:
        """Run a step within the block: `tokens` tokens, `operations` floating-point operations.

        Afterwards the number of threads is as before.
        """
        from ..kernels import jit  # takes long

        most: int = jit.get_num_threads()
        self._tokens = 0 if most == 1 or operations >= SMALL * most else tokens
        if self._tokens and most != self._most:
            self._begin(most)
        return self

    def __enter__(self) -> None:
        if self._tokens:
            self._running = self._next()
            self._began = time.perf_counter()
            if self._running != self._most:
                _set_num_threads(self._running)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._tokens:
            if self._running != self._most:
                _set_num_threads(self._most)
            if error is None:
                self._note(self._running, (time.perf_counter() - self._began) / self._tokens)

    def _next(self) -> int:
        """The number of threads for the next step."""
        if not self._trial:
            if self._until_trial > 0:
                return self.count
            if not self._has_other():
                self._goes_down = not self._goes_down
            self._trial, self._tried = {self.count: [], self._other(): []}, 0
        present, other = self._trial
        return present if self._tried // TURN % 2 else other

    def _other(self) -> int:
        """The number to try next; 0 or the present number where there is none further in this direction."""
        return self.count // 2 if self._goes_down else min(self.count * 2, self._most)

    def _has_other(self) -> bool:
        return self._other() not in (0, self.count)

    def _note(self, count: int, seconds: float) -> None:
        """Note that a step on `count` threads took `seconds` a token."""
        if not self._trial:
            self._until_trial -= 1
            self._recent.append(seconds)
            if len(self._recent) == TURNS * TURN:
                if _without_outliers(self._recent) > SLOWER * self._usual:
                    self._until_trial = 0
                self._recent.clear()
            return
        if self._tried % TURN:
            self._trial[count].append(seconds)
        self._tried += 1
        if self._tried == 2 * TURNS * TURN:
            self._decide()

    def _decide(self) -> None:
        """A trial has ended."""
        present, other = self._trial
        times = {number: _without_outliers(seconds) for number, seconds in self._trial.items()}
        is_better = times[other] < GAIN * times[present]
        if is_better:
            self.count = other
        if is_better and self._has_other():
            self._until_trial = 0  # perhaps yet fewer, or yet more, are faster still
        else:
            self._goes_down = not self._goes_down
            is_as_ever = self.count == self._most and times[self.count] <= SLOWER * self._usual
            self._until_trial = PAUSE if is_as_ever else SHORT_PAUSE
        self._usual = times[self.count]
        self._trial = {}
        self._recent.clear()


def _set_num_threads(count: int) -> None:
    from ..kernels import jit

    jit.set_num_threads(count)


def _without_outliers(seconds: list[float]) -> float:
    """The mean of all but the longest quarter: what was interrupted, or compiled something, doesn't count."""
    return fmean(sorted(seconds)[: max(1, len(seconds) * 3 // 4)])
