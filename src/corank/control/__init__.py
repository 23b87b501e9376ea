"""What changes while training: scores, schedules, penalties, masks, restarts."""

from .alternating import alternate
from .batch_norm import batch_norms, fresh_batch_norm
from .control import Control, Training
from .cutting import cut
from .freezing import vector_freezing
from .orthonormality import orthonormality, peak_learning_rate, trained_low_ranks
from .reflecting import reflections_apart
from .replacing import replace
from .stiefel import orthogonal_krons
from .whole import whole

__all__ = [
    "Control",
    "Training",
    "alternate",
    "batch_norms",
    "cut",
    "fresh_batch_norm",
    "orthogonal_krons",
    "orthonormality",
    "peak_learning_rate",
    "reflections_apart",
    "replace",
    "trained_low_ranks",
    "vector_freezing",
    "whole",
]
