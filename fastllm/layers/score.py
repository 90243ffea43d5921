"""How well a model predicts: loss, perplexity and accuracy over a number of targets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Score:
    """Sums over targets, so that scores of batches add up.

    total    sum of losses, in nats
    correct  targets that had the largest logit
    targets  number of targets
    """

    total: float = 0.0
    correct: int = 0
    targets: int = 0

    @classmethod
    def of(cls, losses: np.ndarray, correct: np.ndarray) -> Score:
        """Of the loss of each target, and whether it had the largest logit."""
        return cls(float(losses.sum(dtype=np.float64)), int(np.count_nonzero(correct)), len(losses))

    def __add__(self, other: Score) -> Score:
        return Score(self.total + other.total, self.correct + other.correct, self.targets + other.targets)

    @property
    def loss(self) -> float:
        """Mean loss a target, in nats; NaN without targets."""
        return self.total / self.targets if self.targets else math.nan

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that is too large for a float."""
        return math.exp(self.loss) if self.loss < 700 or math.isnan(self.loss) else math.inf

    @property
    def accuracy(self) -> float:
        """Share of targets predicted right, 0 to 1; NaN without targets."""
        return self.correct / self.targets if self.targets else math.nan
