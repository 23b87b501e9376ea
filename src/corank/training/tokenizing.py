"""A tokenizer of one's own, for a model that begins from nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

END, PAD, MASK = "<|endoftext|>", "<|padding|>", "<|mask|>"
LARGEST = 32_768  #: tokens, where the configuration has room for more


def train_tokenizer(documents: Iterable[str], vocabulary: int, masked: bool = False) -> Any:
    """A byte-level BPE of at most `vocabulary` tokens, trained on the documents.

    Token 0 ends a text and begins one, 1 pads, and 2 is a `masked` model's mask. The same
    documents give the same tokenizer. Raises ValueError for a vocabulary without room for bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [END, PAD, MASK] if masked else [END, PAD]
    if vocabulary < len(alphabet) + len(special):
        raise ValueError(
            f"a vocabulary of {vocabulary} has no room for the {len(alphabet)} bytes and "
            f"{len(special)} special tokens: raise vocab_size in the configuration, or give a "
            "tokenizer"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocabulary, LARGEST), special_tokens=special, initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(documents, trainer)
    names = {"bos_token": END, "eos_token": END, "pad_token": PAD}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **names, **({"mask_token": MASK} if masked else {})
    )


def require_room(tokenizer: Any, config: Any) -> None:
    """Raise ValueError for a tokenizer with more tokens than the model has embeddings."""
    rows = config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens and the model embeds {rows}: give the "
            "model's own tokenizer, or raise vocab_size in the configuration"
        )
