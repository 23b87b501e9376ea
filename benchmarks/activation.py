"""Bytes that the backward pass keeps, and the loss, with CompAct and rmm_linear against plain.

python -m benchmarks.activation --steps 30

Two architectures are trained from scratch on the same tokens, by AdamW, with each layer type: the
reference model (LLaMA, whose gated feed-forward part and norms keep much that no linear layer
reads) and a GPT-NeoX of the same size. What autograd keeps is counted over one forward pass: every
storage once, parameters and buffers not. All is float32. Losses are means over the last third of
the steps; the noise is their spread over seeds, of data and weights, in the plain model.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import corank
from benchmarks.reference import corpus
from benchmarks.reference.evaluate import encode, load_tokenizer
from benchmarks.reference.network import SEQUENCE_LENGTH, VOCABULARY, build_network
from benchmarks.reference.train import stream_batches

RESULTS = Path(__file__).parent / "results" / "activation.json"
FOLDER = Path(__file__).parent / "reference" / "model"
MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": build_network,
    "gpt-neox": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=6,
            num_attention_heads=8,
            max_position_embeddings=SEQUENCE_LENGTH,
            use_cache=False,
        )
    ),
}
KINDS: dict[str, tuple[str, dict[str, float]] | None] = {
    "plain": None,  # first, for the ratios
    "compact 1/8": ("compact", {"ratio": 0.125}),
    "rmm_linear 1/8": ("rmm_linear", {"ratio": 0.125}),
}


def kept_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes of the distinct storages that autograd keeps, without the model's own."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        place = t.untyped_storage().data_ptr()
        if place not in own:
            alive.append(t)
            sizes[place] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        forward()
    return sum(sizes.values())


def loss_of(model: nn.Module, windows: Tensor) -> Tensor:
    """Mean cross-entropy in nats of predicting each window's tokens from those before."""
    logits = model(input_ids=windows[:, :-1]).logits
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def measure(name: str, kind: str, ids: Tensor, steps: int, seed: int, rows: int) -> dict[str, Any]:
    """What is kept, in all and by the blocks alone, and the losses of a short training."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    chosen = KINDS[kind]
    if chosen is not None:
        corank.factorize(model, chosen[0], seed=seed, **chosen[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95))
    losses: list[float] = []
    batches = stream_batches(ids, torch.Generator().manual_seed(seed))
    for windows in islice(batches, steps):
        loss = loss_of(model, windows[:rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    windows = next(batches)[:rows]
    blocks = model.base_model
    tail = losses[-max(1, steps // 3) :]
    return {
        "model": name,
        "kind": kind,
        "seed": seed,
        "kept_bytes": kept_bytes(model, lambda: loss_of(model, windows)),
        "kept_bytes_of_blocks": kept_bytes(model, lambda: blocks(windows[:, :-1])[0].sum()),
        "loss": sum(tail) / len(tail),
        "losses": losses,
    }


def main() -> None:
    """Parse the command line, measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=8, help="rows of 256 tokens in a batch")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ids = encode(load_tokenizer(FOLDER), corpus.training_text()[:400_000])
    rows = []
    for seed, name in product(range(arguments.seeds), MODELS):
        plain: dict[str, Any] = {}
        for kind in KINDS:
            row = measure(name, kind, ids, arguments.steps, seed, arguments.rows)
            plain = plain or row
            for of in ("kept_bytes", "kept_bytes_of_blocks", "loss"):
                row[f"{of}_ratio"] = row[of] / plain[of]
            rows.append(row)
            print({k: v for k, v in row.items() if k != "losses"}, flush=True)
            found = {"torch": torch.__version__, "machine": platform.machine()}
            found |= {"arguments": vars(arguments), "rows": rows}
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
