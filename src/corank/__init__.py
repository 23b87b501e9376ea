"""Low-rank and structured weights for PyTorch: shrink, adapt, heal, save and look inside."""

from . import adapters, losses, optim, settings
from . import methods as _recipes  # noqa: F401  (first: the function below takes its name)
from .adapters import controller
from .healing import heal
from .io import (
    load,
    load_adapter,
    register_with_transformers,
    save,
    save_adapter,
    stream,
)
from .registry import methods
from .report import Report
from .verbs import adapt, analyze, compress, merge
from .version import __version__

__all__ = [
    "Report",
    "__version__",
    "adapt",
    "adapters",
    "analyze",
    "compress",
    "controller",
    "heal",
    "load",
    "load_adapter",
    "losses",
    "merge",
    "methods",
    "optim",
    "save",
    "save_adapter",
    "settings",
    "stream",
]

register_with_transformers()
