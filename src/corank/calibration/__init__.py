"""Passes over data that fill `site.stats`."""

from .collect import collect
from .data import Batches, batches

__all__ = ["Batches", "batches", "collect"]
