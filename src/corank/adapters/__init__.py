"""What trains beside a model's weights or in their place: which act, merging, the controller."""

from .active import activate, active, delete, disabled, select
from .compacting import compact
from .controller import Controller, controller
from .elastic import middle, search_ranks, set_ranks
from .factorized import Factorized, factorized
from .merging import Merged, merge_adapters, unmerge_adapters
from .record import Adapter, adapted, adapters

__all__ = [
    "Adapter",
    "Controller",
    "Factorized",
    "Merged",
    "activate",
    "active",
    "adapted",
    "adapters",
    "compact",
    "controller",
    "delete",
    "disabled",
    "factorized",
    "merge_adapters",
    "middle",
    "search_ranks",
    "select",
    "set_ranks",
    "unmerge_adapters",
]
