"""What the board of training trains: language models and a convolutional network from random
weights, and a pretrained encoder in full."""

from __future__ import annotations

from functools import cache
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.tuning.tasks import Digits, Packages, Task

LENGTH, BATCH = 64, 8
NOISE, ATTACK = 0.3, 0.1


@final
class Language(Task):
    """A LLaMA in the reference model's shape learns sources of the standard library."""

    quality, higher = "perplexity", False
    targets = r"re:.*layers\..*"

    def __init__(self, name: str, hidden: int, intermediate: int, layers: int, steps: int) -> None:
        self.name, self.hidden, self.intermediate = name, hidden, intermediate
        self.layers, self.steps = layers, steps

    def load(self, seed: int = 0) -> nn.Module:
        from transformers import LlamaConfig

        from benchmarks.reference.network import VOCABULARY
        from corank.training import start_model

        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=self.hidden, intermediate_size=self.intermediate,
            num_hidden_layers=self.layers, num_attention_heads=4, num_key_value_heads=2,
            use_cache=False, max_position_embeddings=LENGTH, tie_word_embeddings=True,
            bos_token_id=0, eos_token_id=0, pad_token_id=None,
        )  # fmt: skip
        return start_model(config, "causal", seed)

    def batches(self, seed: int) -> list[Tensor]:
        """The same for all methods: (BATCH, LENGTH) each."""
        rows = tokens("calibration")
        drawn = torch.Generator().manual_seed(seed)
        order = torch.cat([
            torch.randperm(len(rows), generator=drawn)
            for _ in range(-(-self.steps * BATCH // len(rows)))
        ])  # fmt: skip
        return list(rows[order[: self.steps * BATCH]].split(BATCH))

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        loss: Tensor = model(input_ids=batch, labels=batch).loss
        return loss

    def tune(self, model: nn.Module) -> float:
        return _perplexity(model, "tuning")

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {self.quality: _perplexity(model, "heldout")}


@final
class Upright(Digits):
    """The adapters' convolutional network learns upright digits from random weights. Noise is
    Gaussian; an attack moves each pixel by the sign of its gradient (FGSM)."""

    name, quality = "digits", "accuracy"

    def load(self, seed: int = 0) -> nn.Module:
        return self._network(seed)

    def batches(self, seed: int) -> list[Any]:
        return self._batches(self._images["train"], False, self.steps, seed)

    def tune(self, model: nn.Module) -> float:
        return self._accuracy(model, "tune", False)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        x, y = self._images["evaluate"]
        noise = NOISE * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        seen = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model.eval()(seen), y), seen)
        return {
            self.quality: _accuracy(model, x, y),
            "under noise": _accuracy(model, x + noise, y),
            "under attack": _accuracy(model, x + ATTACK * slope.sign(), y),
        }


@cache
def tokens(split: str) -> Tensor:
    """Rows (rows, LENGTH) of a split: "calibration" to train on, "tuning", or "heldout"."""
    from benchmarks.reference import corpus
    from benchmarks.reference.evaluate import encode, load_tokenizer

    ids = encode(load_tokenizer(), corpus.split_text(split))
    return ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)


@torch.no_grad()
def _perplexity(model: nn.Module, split: str, count: int = 64) -> float:
    """Over rows spread over the split."""
    rows = tokens(split)
    chosen = rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).long()]
    model.eval()
    losses = [model(input_ids=part, labels=part).loss for part in chosen.split(32)]
    return float(torch.stack(losses).mean().exp())


@torch.no_grad()
def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return (model.eval()(x).argmax(-1) == y).float().mean().item()


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Language("small", 96, 256, 3, 100), Language("medium", 128, 352, 4, 100),
        Packages(), Upright(),
    )
}  # fmt: skip
#: A quarter of the width, as in the GaLore paper.
RANKS = {"small": 24, "medium": 32, "packages": 96, "digits": 16}
