"""What changes while training: scores, schedules, penalties, masks, restarts."""

from .alternating import alternate
from .batch_norm import batch_norms, fresh_batch_norm
from .control import Control, Training
from .cutting import cut
from .freezing import vector_freezing
from .lazy import lazy
from .orthonormality import orthonormality, peak_learning_rate, trained_low_ranks
from .reflecting import reflections_apart
from .replacing import replace
from .spectral_rounds import drawn, spectral_rounds
from .stiefel import orthogonal_krons
from .truncating import truncating
from .whole import whole

__all__ = [
    "Control",
    "Training",
    "alternate",
    "batch_norms",
    "cut",
    "drawn",
    "fresh_batch_norm",
    "lazy",
    "orthogonal_krons",
    "orthonormality",
    "peak_learning_rate",
    "reflections_apart",
    "replace",
    "spectral_rounds",
    "trained_low_ranks",
    "truncating",
    "vector_freezing",
    "whole",
]
