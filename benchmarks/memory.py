"""Bytes of a training step of the GaLore paper's LLaMA sizes, by AdamW and by GaLore.

``python -m benchmarks.memory`` writes benchmarks/results/memory.json. Everything is counted on the
meta device; nothing is trained.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from corank.training import build_optimizer, start_model, training_memory

OUT = Path(__file__).parent / "results" / "memory.json"
SEQUENCE_LENGTH = 256
#: Hidden size, intermediate size, layers, heads (the paper's published configurations), its rank.
SIZES = {
    "60M": (512, 1376, 8, 8, 128),
    "130M": (768, 2048, 12, 12, 256),
    "350M": (1024, 2736, 24, 16, 256),
    "1B": (2048, 5461, 24, 32, 512),
    "7B": (4096, 11008, 32, 32, 1024),
}
#: Weights and optimiser state in the paper's table, full rank and GaLore; it has no line for 7B.
PAPER = {"60M": (0.36, 0.24), "130M": (0.76, 0.52), "350M": (2.06, 1.22), "1B": (7.80, 4.38)}


def configuration(size: str) -> LlamaConfig:
    """The paper's LLaMA of that size: 32000 tokens, untied head."""
    hidden, intermediate, layers, heads, _ = SIZES[size]
    return LlamaConfig(
        vocab_size=32000, hidden_size=hidden, intermediate_size=intermediate,
        num_hidden_layers=layers, num_attention_heads=heads, tie_word_embeddings=False,
        max_position_embeddings=SEQUENCE_LENGTH,
    )  # fmt: skip


def measure(size: str) -> dict[str, Any]:
    """Bytes of weights, gradients, state and activations in bfloat16, one sequence a batch."""
    row: dict[str, Any] = {"size": size, "rank": SIZES[size][-1], "paper": PAPER.get(size)}
    options = {"rank": SIZES[size][-1], "state_dtype": "bfloat16"}
    for key, chosen in (("adamw", {}), ("galore", options)):
        with torch.device("meta"):
            model = start_model(configuration(size), "causal", dtype=torch.bfloat16)
        row["parameters"] = sum(p.numel() for p in model.parameters())
        row[key] = training_memory(
            model, lambda m=model, k=key, c=chosen: build_optimizer(m, k, options=c),
            1, SEQUENCE_LENGTH,
        ).to_json()  # fmt: skip
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--json", action="store_true", help="print the results, too")
    arguments = parser.parse_args()
    found = {
        "environment": {"torch": torch.__version__},
        "rows": [measure(size) for size in arguments.sizes],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if arguments.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
