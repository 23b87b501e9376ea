"""Saving and loading: transformers folders, plain modules, and checkpoints as streams."""

from .adapter_files import LoadedAdapter, SavedAdapter, load_adapter, save_adapter
from .attach import attach
from .load import load
from .save import save
from .stream import stream

__all__ = [
    "LoadedAdapter",
    "SavedAdapter",
    "attach",
    "load",
    "load_adapter",
    "save",
    "save_adapter",
    "stream",
]
