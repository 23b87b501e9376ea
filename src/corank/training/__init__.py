"""Training a transformers model on text with its Trainer."""

from .examples import Examples, read_examples, split_examples
from .run import Training, train

__all__ = ["Examples", "Training", "read_examples", "split_examples", "train"]
