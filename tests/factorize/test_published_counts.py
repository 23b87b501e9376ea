"""How many numbers train on the papers' own models, as their tables print it (from memory)."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import corank

SIZES = {
    "60M": (512, 1376, 8, 8), "130M": (768, 2048, 12, 12), "350M": (1024, 2736, 24, 16),
    "1B": (2048, 5461, 24, 32),
}  # fmt: skip


def llama(size):
    hidden, inner, layers, heads = SIZES[size]
    config = LlamaConfig(
        vocab_size=32000, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads,
    )  # fmt: skip
    with torch.device("meta"):
        return LlamaForCausalLM(config)


@pytest.mark.parametrize(
    ("size", "rank", "printed"), [("60M", 128, 44), ("130M", 256, 97), ("350M", 256, 194),
                                  ("1B", 512, 646)],
)  # fmt: skip
def test_sltrains_table(size, rank, printed):
    report = corank.factorize(llama(size), "sltrain", rank=rank, dry_run=True)
    assert abs(report.totals["model_numel_after"] / 1e6 - printed) < 1


def test_the_share_that_sst_trains_of_llama():
    model = llama("1B")
    whole = sum(p.numel() for p in model.parameters())
    report = corank.factorize(model, "sst", rank=128, dry_run=True)
    elsewhere = whole - report.totals["numel_before"]
    assert round(100 * (report.totals["trainable"] + elsewhere) / whole, 1) == 18.7
