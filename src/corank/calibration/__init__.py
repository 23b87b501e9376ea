"""Passes over data that fill `site.stats`."""

from .cascade import cascade
from .collect import collect
from .data import Batches, batches
from .losses import Loss
from .store import fingerprint, load_statistics, save_statistics

__all__ = [
    "Batches",
    "Loss",
    "batches",
    "cascade",
    "collect",
    "fingerprint",
    "load_statistics",
    "save_statistics",
]
