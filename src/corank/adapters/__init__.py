"""The adapters that a model carries: which act, merging, and what they do while training."""

from .active import activate, active, delete, disabled, select
from .compacting import compact
from .controller import Controller, controller
from .elastic import middle, search_ranks, set_ranks
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
    "compact",
    "controller",
    "delete",
    "disabled",
    "merge_adapters",
    "middle",
    "search_ranks",
    "select",
    "set_ranks",
    "unmerge_adapters",
]
