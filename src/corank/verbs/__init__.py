"""What a user asks for: each verb takes a model and works in place."""

from .adapt import adapt
from .analyze import analyze
from .compress import compress
from .cut import cut
from .factorize import factorize
from .for_inference import for_inference
from .merge import merge
from .quantize import quantize

__all__ = ["adapt", "analyze", "compress", "cut", "factorize", "for_inference", "merge", "quantize"]
