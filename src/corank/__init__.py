"""Low-rank and structured weights for PyTorch: shrink, adapt, heal, save and look inside."""

from . import adapters, losses, settings
from . import methods as _recipes  # noqa: F401  (first: the function below takes its name)
from .adapters import controller
from .healing import heal
from .io import load, register_with_transformers, save, stream
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
    "losses",
    "merge",
    "methods",
    "save",
    "settings",
    "stream",
]

register_with_transformers()
