"""Bytes that the backward pass keeps, and the loss, with CompAct and rmm_linear against plain.

python -m benchmarks.activation --steps 30

Two architectures are trained from scratch on the same tokens, by AdamW, with each layer type: the
reference model (LLaMA, whose gated feed-forward part and norms keep much that no linear layer
reads) and a GPT-NeoX of the same size; and MiniLM is fine-tuned in full on the board's packages,
as there without dropout. What autograd keeps is counted over one forward pass: every storage once,
parameters and buffers not. All is float32. Losses are means over the last third of the steps; the
noise is their spread over seeds, of data and weights, in the plain model.
"""

from __future__ import annotations

import argparse
import json
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import cycle, product
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import corank
from benchmarks.reference import corpus
from benchmarks.reference.evaluate import encode, load_tokenizer
from benchmarks.reference.network import SEQUENCE_LENGTH, VOCABULARY, build_network
from benchmarks.reference.train import stream_batches
from benchmarks.tuning.tasks import Packages

RESULTS = Path(__file__).parent / "results" / "activation.json"
FOLDER = Path(__file__).parent / "reference" / "model"
KINDS: dict[str, tuple[str, dict[str, float]] | None] = {
    "plain": None,  # first, for the ratios
    "compact 1/8": ("compact", {"ratio": 0.125}),  # the least of the paper's
    "compact 1/16": ("compact", {"ratio": 0.0625}),
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


class Work(ABC):
    """A model, its batches, and what one step of training minimises."""

    rate: float
    targets: str = "all-linear"

    @abstractmethod
    def build(self) -> nn.Module:
        """The model before training; what is random in it follows torch's seed."""

    @abstractmethod
    def batches(self, seed: int, rows: int) -> Iterator[Any]:
        """Batches without end."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """A scalar."""

    @abstractmethod
    def blocks(self, model: nn.Module, batch: Any) -> Tensor:
        """A scalar of the hidden states, without a head."""


@final
class Pretraining(Work):
    """Mean cross-entropy in nats of predicting each window's tokens from those before."""

    rate = 2e-3

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        self._build = build

    def build(self) -> nn.Module:
        return self._build()

    def batches(self, seed: int, rows: int) -> Iterator[Tensor]:
        for windows in stream_batches(self._ids, torch.Generator().manual_seed(seed)):
            yield windows[:rows]

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        logits = model(input_ids=batch[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    def blocks(self, model: nn.Module, batch: Tensor) -> Tensor:
        hidden: Tensor = model.base_model(batch[:, :-1])[0]
        return hidden.sum()

    @cached_property
    def _ids(self) -> Tensor:
        return encode(load_tokenizer(FOLDER), corpus.training_text()[:400_000])


@final
class Finetuning(Work):
    """The board's MiniLM learns which package a docstring belongs to."""

    rate, targets = 1e-4, Packages.targets

    def build(self) -> nn.Module:
        return self._task.load()

    def batches(self, seed: int, rows: int) -> Iterator[Any]:
        return cycle(self._task.batches(seed))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return self._task.loss(model, batch)

    def blocks(self, model: nn.Module, batch: Any) -> Tensor:
        hidden: Tensor = model.encoder(**batch[0])[0]
        return hidden.sum()

    @cached_property
    def _task(self) -> Packages:
        return Packages()


def _gpt_neox() -> nn.Module:
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=8,
        max_position_embeddings=SEQUENCE_LENGTH,
        use_cache=False,
    )
    return GPTNeoXForCausalLM(config)


WORKS: dict[str, Work] = {
    "llama": Pretraining(build_network),
    "gpt-neox": Pretraining(_gpt_neox),
    "minilm": Finetuning(),
}


def measure(name: str, kind: str, steps: int, seed: int, rows: int) -> dict[str, Any]:
    """What is kept, in all and by the blocks alone, and the losses of a short training."""
    torch.manual_seed(seed)
    work, chosen = WORKS[name], KINDS[kind]
    model = work.build()
    if chosen is not None:
        corank.factorize(model, chosen[0], targets=work.targets, seed=seed, **chosen[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=work.rate, betas=(0.9, 0.95))
    losses: list[float] = []
    batches = work.batches(seed, rows)
    for _ in range(steps):
        loss = work.loss(model, next(batches))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    batch = next(batches)
    tail = losses[-max(1, steps // 3) :]
    return {
        "model": name,
        "kind": kind,
        "seed": seed,
        "kept_bytes": kept_bytes(model, lambda: work.loss(model, batch)),
        "kept_bytes_of_blocks": kept_bytes(model, lambda: work.blocks(model, batch)),
        "loss": sum(tail) / len(tail),
        "losses": losses,
    }


def main() -> None:
    """Parse the command line, measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=8, help="of 256 tokens, in pretraining")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for seed, name in product(range(arguments.seeds), WORKS):
        plain: dict[str, Any] = {}
        for kind in KINDS:
            row = measure(name, kind, arguments.steps, seed, arguments.rows)
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
