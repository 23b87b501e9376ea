"""The adapters that a model carries: which act, merging, and what they do while training."""

from .active import activate, active, delete, disabled, select
from .controller import Controller, controller
from .merging import Merged, merge_adapters, unmerge_adapters
from .record import Adapter, adapted, adapters

__all__ = [
    "Adapter",
    "Controller",
    "Merged",
    "activate",
    "active",
    "adapted",
    "adapters",
    "controller",
    "delete",
    "disabled",
    "merge_adapters",
    "select",
    "unmerge_adapters",
]
