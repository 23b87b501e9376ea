"""Low-rank and structured weights for PyTorch: shrink, save, load and look inside a model."""

from .compress import compress

__version__ = "0.1.0"

__all__ = ["compress"]
