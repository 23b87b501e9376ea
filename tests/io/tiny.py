"""Tiny random models with some of their sites made low-rank, plain and deterministic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from corank.models import Site, find_sites, install, read
from corank.operators import LowRank, Operator

IDS = torch.tensor([[1, 5, 9, 2, 40, 7], [3, 3, 8, 60, 1, 0]])


def llama(tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=tied)).eval()


def bert() -> BertModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
    return BertModel(BertConfig(**sizes, num_attention_heads=4, num_hidden_layers=2)).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_head=4, n_layer=2, n_positions=32)
    config.bos_token_id = config.eos_token_id = 0
    return GPT2LMHeadModel(config).eval()


def mixtral() -> MixtralForCausalLM:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    config = MixtralConfig(**sizes, **heads, num_local_experts=3, num_experts_per_tok=2)
    return MixtralForCausalLM(config).eval()


class Cnn(nn.Module):
    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).relu().mean((2, 3)))


def halve(op: Operator, site: Site) -> LowRank:
    """A low-rank operator of half the rank, by a plain SVD in fp32, in the operator's dtype."""
    matrix = op.dense().detach()
    return halve_matrix(site.name, matrix, site)


def halve_matrix(name: str, matrix: Tensor, site: Site) -> LowRank:
    u, s, v = torch.linalg.svd(matrix.float(), full_matrices=False)
    rank = len(s) // 2
    b, a = u[:, :rank] * s[:rank], v[:rank]
    return LowRank(b.to(matrix.dtype).contiguous(), a.to(matrix.dtype).contiguous())


def compress(model: nn.Module, targets: Any = "all-linear") -> None:
    for site in find_sites(model, targets):
        install(model, site, halve(read(model, site), site))


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(IDS)[0]
