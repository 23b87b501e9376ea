"""Tiny random models, with data for them."""

from __future__ import annotations

import torch
from torch import nn


def tiny_llama(seed: int = 0, **options):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2} | options
    config = LlamaConfig(
        vocab_size=64, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        **sizes,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def tiny_bert(seed: int = 0):
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    return BertModel(config).eval()


def tiny_mlp(seed: int = 0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 20))


def tokens(count: int = 6, batch: int = 4, length: int = 12, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(0, 64, (batch, length), generator=g)} for _ in range(count)]


def vectors(count: int = 4, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(16, 20, generator=g) for _ in range(count)]


def whole(model):
    """The bytes of all parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in {*model.parameters(), *model.buffers()})
