"""What changes while training: scores, schedules, penalties, masks, restarts."""

from .control import Control, Training
from .freezing import vector_freezing
from .orthonormality import orthonormality, peak_learning_rate, trained_low_ranks

__all__ = [
    "Control",
    "Training",
    "orthonormality",
    "peak_learning_rate",
    "trained_low_ranks",
    "vector_freezing",
]
