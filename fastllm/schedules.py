"""Learning rate schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from .config import whole_number

KINDS = ("constant", "linear", "cosine", "wsd")


@dataclass(frozen=True)
class Schedule:
    """Warm-up, then one of four shapes.

    kind    "constant"; "linear" or "cosine": from peak down to final at the last step;
            "wsd" (warm-up, stable, decay; Hu et al. 2024, arXiv:2404.06395): peak, and linear to final over
            the last `decay` steps
    peak    highest learning rate
    steps   number of steps
    warmup  steps that rise linearly to peak
    final   learning rate of the last step, unless it is the only one or belongs to the warm-up, and of all steps
            beyond; "constant" has none
    decay   steps of wsd's decay; None: a fifth of all

    Raises ValueError for a value out of range, TypeError for steps that aren't whole numbers.

        >>> Schedule("linear", peak=1.0, steps=4, warmup=1)(3)
        0.0
    """

    kind: str = "constant"
    peak: float = 1e-3
    steps: int = 1
    warmup: int = 0
    final: float = 0.0
    decay: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "warmup", "decay"):
            if (value := getattr(self, name)) is not None:
                whole_number(value, name)
        if self.kind not in KINDS:
            raise ValueError(f"a schedule must be one of {', '.join(KINDS)}; got {self.kind!r}; choose one of them")
        for name in ("peak", "final"):
            if not isinstance(getattr(self, name), Real):
                raise TypeError(f"{name} must be a number; got {getattr(self, name)!r}; usual are 1e-5 to 1e-2")
        if not 0 < self.peak < math.inf:
            raise ValueError(f"a learning rate must be above 0 and finite; got {self.peak}; usual are 1e-5 to 1e-2")
        if not 0 <= self.final <= self.peak:
            raise ValueError(
                f"the final learning rate must be between 0 and the peak {self.peak}; got {self.final}; lower it"
            )
        if self.kind == "constant" and self.final:
            raise ValueError(
                f"a constant schedule has no final learning rate; got {self.final}; leave it out, or choose "
                f"{', '.join(KINDS[1:])}"
            )
        if self.steps < 1 or not 0 <= self.warmup <= self.steps:
            raise ValueError(
                f"a schedule needs steps >= 1 and warmup from 0 to steps; got steps={self.steps}, "
                f"warmup={self.warmup}; change one of them"
            )
        if self.decay is not None and not 1 <= self.decay <= self.steps - self.warmup:
            raise ValueError(
                f"decay must be from 1 to steps - warmup = {self.steps - self.warmup}; got {self.decay}; change it"
            )

    def __call__(self, step: int) -> float:
        """The learning rate of a step, counted from 0; the last step is steps - 1."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        if self.kind == "constant":
            return self.peak
        if step >= self.steps:
            return self.final
        begin = self.warmup
        if self.kind == "wsd":
            decay = max(1, self.steps // 5) if self.decay is None else self.decay
            begin = max(self.warmup - 1, 0, self.steps - 1 - decay)  # the last step at the peak
            if step < begin:
                return self.peak
        left = self.steps - 1 - begin
        progress = (step - begin) / left if left > 0 else float(begin > 0)
        share = (1 + math.cos(math.pi * progress)) / 2 if self.kind == "cosine" else 1 - progress
        return self.final + (self.peak - self.final) * share
