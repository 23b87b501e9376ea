"""Saving and loading: transformers folders, plain modules, and checkpoints as streams."""

from .attach import attach
from .load import load
from .plugin import register_with_transformers
from .save import save
from .stream import stream

__all__ = ["attach", "load", "register_with_transformers", "save", "stream"]
