"""Low-rank and structured weights for PyTorch: shrink, save, load and look inside a model."""

__version__ = "0.1.0"
