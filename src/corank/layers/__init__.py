"""Modules that hold an operator in place of a model's own layer."""

from .convolution import Convolution, convolve
from .embedding import Embedding, rows
from .experts import Experts
from .geometry import Geometry
from .linear import Linear

__all__ = ["Convolution", "Embedding", "Experts", "Geometry", "Linear", "convolve", "rows"]
