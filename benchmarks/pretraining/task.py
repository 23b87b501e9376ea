"""What is trained: tokens of the standard library, and a small LLaMA in the reference's shape."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from benchmarks.reference import corpus
from benchmarks.reference.evaluate import encode, load_tokenizer
from benchmarks.reference.network import VOCABULARY

LENGTH, BATCH = 64, 8


@dataclass(frozen=True)
class Size:
    """A LLaMA's shape, and the steps of `BATCH` rows of `LENGTH` tokens that it trains for."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    steps: int

    @property
    def rank(self) -> int:
        """Of every low-rank method: a quarter of the width, as in the GaLore paper."""
        return self.hidden // 4


SIZES = {
    s.name: s for s in (Size("small", 96, 256, 3, 4, 100), Size("medium", 192, 512, 4, 6, 200))
}


def start(size: Size, seed: int) -> nn.Module:
    """Random weights, the same for all methods of a seed."""
    from transformers import LlamaConfig

    from corank.training import start_model

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=size.hidden, intermediate_size=size.intermediate,
        num_hidden_layers=size.layers, num_attention_heads=size.heads, use_cache=False,
        num_key_value_heads=size.heads // 2, max_position_embeddings=LENGTH,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    return start_model(config, "causal", seed)


@cache
def tokens(split: str) -> Tensor:
    """Rows (rows, LENGTH) of a split: "calibration" to train on, "tuning", or "heldout"."""
    ids = encode(load_tokenizer(), corpus.split_text(split))
    return ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)


def batches(size: Size, seed: int) -> Tensor:
    """The batches of a run in order: (steps, BATCH, LENGTH); the same for all methods."""
    rows = tokens("calibration")
    drawn = torch.Generator().manual_seed(seed)
    order = torch.cat([
        torch.randperm(len(rows), generator=drawn)
        for _ in range(-(-size.steps * BATCH // len(rows)))
    ])  # fmt: skip
    return rows[order[: size.steps * BATCH]].view(size.steps, BATCH, LENGTH)


@torch.no_grad()
def loss_on(model: nn.Module, split: str, count: int = 64) -> float:
    """Mean loss in nats a token over rows spread over the split."""
    rows = tokens(split)
    chosen = rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).long()]
    model.eval()
    losses = [float(model(input_ids=part, labels=part).loss) for part in chosen.split(32)]
    model.train()
    return sum(losses) / len(losses)
