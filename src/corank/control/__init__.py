"""What changes while training: scores, schedules, penalties, masks, restarts."""

from .alternating import alternate
from .control import Control, Training
from .cutting import cut
from .freezing import vector_freezing
from .orthonormality import orthonormality, peak_learning_rate, trained_low_ranks

__all__ = [
    "Control",
    "Training",
    "alternate",
    "cut",
    "orthonormality",
    "peak_learning_rate",
    "trained_low_ranks",
    "vector_freezing",
]
