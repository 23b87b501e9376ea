"""Passes over data that fill `site.stats`."""

from .cascade import cascade
from .collect import collect
from .data import Batches, batches
from .losses import Loss

__all__ = ["Batches", "Loss", "batches", "cascade", "collect"]
