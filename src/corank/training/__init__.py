"""Training a transformers language model on text with its Trainer."""

from .examples import Examples, read_examples, read_split, read_texts, split_examples
from .leaving import leave
from .masking import Masked
from .memory import Memory, give_values, kept_activations, training_memory
from .optimizers import build_optimizer, find_optimizer, optimizers
from .result import Training
from .run import train
from .sharding import gather
from .starting import objective_of, read_config, start_model
from .tokenizing import require_room, train_tokenizer

__all__ = [
    "Examples",
    "Masked",
    "Memory",
    "Training",
    "build_optimizer",
    "find_optimizer",
    "gather",
    "give_values",
    "kept_activations",
    "leave",
    "objective_of",
    "optimizers",
    "read_config",
    "read_examples",
    "read_split",
    "read_texts",
    "require_room",
    "split_examples",
    "start_model",
    "train",
    "train_tokenizer",
    "training_memory",
]
