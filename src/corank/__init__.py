"""Low-rank and structured weights for PyTorch: shrink, adapt, heal, save and look inside."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .plugin import register_with_transformers
from .version import __version__

if TYPE_CHECKING:
    from . import adapters, cells, losses, optim, settings
    from .adapters import controller
    from .healing import heal
    from .io import load, load_adapter, save, save_adapter, stream
    from .registry import methods
    from .report import Report
    from .verbs import adapt, analyze, compress, cut, factorize, for_inference, merge, quantize

__all__ = [
    "Report",
    "__version__",
    "adapt",
    "adapters",
    "analyze",
    "cells",
    "compress",
    "controller",
    "cut",
    "factorize",
    "for_inference",
    "heal",
    "load",
    "load_adapter",
    "losses",
    "merge",
    "methods",
    "optim",
    "quantize",
    "save",
    "save_adapter",
    "settings",
    "stream",
]

#: Name -> the room it is in, which is imported when the name is first used.
_HOMES = {
    "Report": "report", "adapt": "verbs", "analyze": "verbs", "compress": "verbs",
    "controller": "adapters", "cut": "verbs", "factorize": "verbs",
    "for_inference": "verbs", "heal": "healing",
    "load": "io", "load_adapter": "io", "merge": "verbs", "methods": "registry",
    "quantize": "verbs",
    "save": "io", "save_adapter": "io", "stream": "io",
}  # fmt: skip
_ROOMS = (
    "adapters", "allocation", "calibration", "cells", "control", "engine", "errors", "healing",
    "io", "layers", "linalg", "losses", "metrics", "models", "operators", "optim", "probes",
    "quantizers",    "recipes", "registry", "report", "rewrites", "settings", "training", "verbs",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})


register_with_transformers()
