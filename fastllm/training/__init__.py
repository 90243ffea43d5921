"""Training: the loop, run folders, and jobs that a file describes."""

from .trainer import Step, Trainer, evaluate

__all__ = ["Step", "Trainer", "evaluate"]
