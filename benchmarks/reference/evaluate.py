"""Loading the committed reference model, and measuring perplexity."""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from benchmarks.reference.corpus import END_OF_TEXT

MODEL_FOLDER = Path(__file__).parent / "model"
BATCH = 16


def load_model(folder: Path = MODEL_FOLDER) -> PreTrainedModel:
    """The reference model in fp32, in evaluation mode."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def load_tokenizer(folder: Path = MODEL_FOLDER) -> PreTrainedTokenizerBase:
    """The reference model's tokenizer."""
    return AutoTokenizer.from_pretrained(folder)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """The token ids of a text, nothing added: (tokens,), int64.

    File by file where the text has `END_OF_TEXT`, which is faster than at once, and equal.
    """
    *ended, last = text.split(END_OF_TEXT)
    files = [*(file + END_OF_TEXT for file in ended), last]
    rows = tokenizer(files, add_special_tokens=False)["input_ids"]
    return torch.tensor(list(chain.from_iterable(rows)))


@torch.no_grad()
def perplexity(model: nn.Module, token_ids: Tensor, sequence_length: int) -> float:
    """The exponential of the mean negative log-likelihood in nats per predicted token.

    The stream is cut into consecutive windows of `sequence_length` tokens, a remainder is dropped,
    and in each window every token but the first is predicted from those before it in the window.

    Args:
        model: a causal language model whose output has `logits` of shape (batch, tokens, words).
        token_ids: (tokens,), integers.
        sequence_length: tokens in a window, at least 2.

    Raises:
        ValueError: the stream is not one-dimensional, or does not fill one window of 2 or more.
    """
    if sequence_length < 2:
        raise ValueError(f"sequence_length is {sequence_length}: at least 2 tokens are needed")
    if token_ids.ndim != 1 or len(token_ids) < sequence_length:
        raise ValueError(
            f"token_ids has shape {tuple(token_ids.shape)}: "
            f"give one dimension of at least sequence_length={sequence_length} tokens"
        )
    device = next(model.parameters()).device
    windows = len(token_ids) // sequence_length
    rows = token_ids[: windows * sequence_length].view(windows, sequence_length)
    total = 0.0
    for batch in torch.split(rows, BATCH):
        ids = batch.to(device)  # (batch, tokens)
        logits = model(input_ids=ids).logits[:, :-1].float()  # (batch, tokens - 1, words)
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
        total += loss.item()
    return math.exp(total / (windows * (sequence_length - 1)))
