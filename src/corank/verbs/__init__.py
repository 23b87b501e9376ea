"""What a user asks for: each verb takes a model and works in place."""

from .adapt import adapt
from .analyze import analyze
from .compress import compress
from .cut import cut
from .factorize import factorize
from .merge import merge
from .quantize import quantize

__all__ = ["adapt", "analyze", "compress", "cut", "factorize", "merge", "quantize"]
