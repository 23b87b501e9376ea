"""Speed of compressed language models beside dense and torchao ones, bfloat16.

    python -m benchmarks.decode [--rounds 5] [--threads 1] [--small]

A random LLaMA is rewritten in several ways; nothing here depends on what its weights are. Forms in
codes run as they are stored and as `corank.for_inference` lays them out. Prefill is one pass over a
prompt, decoding is one token at a time with a cache. In every round each model runs once; speeds
are medians over rounds, over the dense model's.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn

import corank
from benchmarks.board.measure import environment
from benchmarks.board.store import Results
from corank.report.quantised import quantised_variants
from corank.report.speed import count_bytes

RESULTS = Path(__file__).parent / "results" / "decode.json"
PROMPT, NEW = 128, 16
#: What stands behind the name of a form that kernels run.
FOR = "for inference"
WAYS: dict[str, Any] = {
    "dense": None,
    "low rank, half": [{"svd": {"keep": 0.5}}],
    "8-bit codes": [{"round_to_nearest": {"bits": 8}}],
    "4-bit codes": [{"round_to_nearest": {"bits": 4}}],
    "low rank, half, in 8-bit codes": [{"svd": {"keep": 0.5}}, {"round_to_nearest": {"bits": 8}}],
    "channels, half": [{"uniql": {"keep": 0.5}}],
    "4-bit codes and rank 32": [{"lqer": {"bits": 4, "rank": 32, "scaled": False}}],
}


def make(width: int, layers: int) -> nn.Module:
    """A random LLaMA in bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=width, intermediate_size=width * 11 // 4,
        num_hidden_layers=layers, num_attention_heads=width // 64, max_position_embeddings=512,
        num_key_value_heads=width // 64, dtype="bfloat16",
    )  # fmt: skip
    return LlamaForCausalLM(config).bfloat16().eval()


@torch.no_grad()
def decode(model: Any, batch: int) -> tuple[float, float]:
    """Seconds of a prefill, and of `NEW` tokens after it."""
    ids = torch.randint(0, 512, (batch, PROMPT), generator=torch.Generator().manual_seed(1))
    started = perf_counter()
    found = model(ids, use_cache=True)
    filled = perf_counter()
    for _ in range(NEW):
        ids = found.logits[:, -1:].argmax(-1)
        found = model(ids, past_key_values=found.past_key_values, use_cache=True)
    return filled - started, perf_counter() - filled


def speeds(models: dict[str, nn.Module], batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Tokens per second of each model, and over the dense one's."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for _ in range(rounds + 1):
        for name, model in models.items():
            spent[name].append(decode(model, batch))
    found = {}
    for name, times in spent.items():
        prefill, new = (median(column) for column in zip(*times[1:], strict=True))
        dense = [median(column) for column in zip(*spent["dense"][1:], strict=True)]
        found[name] = {
            "prefill tokens/s": batch * PROMPT / prefill, "decode tokens/s": batch * NEW / new,
            "prefill over dense": dense[0] / prefill, "decode over dense": dense[1] / new,
        }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a tiny model, in a minute")
    parser.add_argument("--out", type=Path, help="default: the committed results, unless --small")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = Results(options.out or (Path("out/bench/decode.json") if options.small else RESULTS))
    results.set("environment", environment() | {"dtype": "bfloat16"})
    dense, models = make(*((128, 2) if options.small else (1024, 3))), {}
    for name, steps in WAYS.items():
        models[name] = copy.deepcopy(dense)
        if steps is not None:
            corank.compress(models[name], steps, data=[torch.randint(0, 512, (8, 64))])
        if "codes" in name:
            laid_out = models[f"{name}, {FOR}"] = copy.deepcopy(models[name])
            corank.for_inference(laid_out)
    linear = [n for n, m in dense.named_modules() if type(m) is nn.Linear and n != "lm_head"]
    variants, notes = quantised_variants(dense, linear)
    models |= {f"torchao {name}": model for name, model in variants.items()}
    results.set("notes", notes)
    by_batch: dict[int, dict[str, dict[str, float]]] = {
        batch: speeds(models, batch, options.rounds) for batch in (1, 16)
    }
    for name, model in models.items():
        results.add("decode", {
            "key": name, "bytes": count_bytes(model),
            "numel": sum(p.numel() for p in dense.parameters()),
            "threads": options.threads, "rounds": options.rounds, "prompt": PROMPT, "new": NEW,
            "speeds": {str(batch): found[name] for batch, found in by_batch.items()},
        })  # fmt: skip
    print(json.dumps(results.tables["decode"], indent=1))


if __name__ == "__main__":
    main()
