"""Low-rank and structured weights for PyTorch: shrink, heal, save, load and look inside a model."""

from . import methods as _recipes  # noqa: F401  (first: the function below takes its name)
from .healing import heal
from .io import load, register_with_transformers, save, stream
from .registry import methods
from .report import Report
from .verbs import analyze, compress, merge
from .version import __version__

__all__ = [
    "Report",
    "__version__",
    "analyze",
    "compress",
    "heal",
    "load",
    "merge",
    "methods",
    "save",
    "stream",
]

register_with_transformers()
