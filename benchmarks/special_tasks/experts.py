"""A small mixture of experts that reads sources of the standard library."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn

from benchmarks.special_tasks.rows import steps
from benchmarks.special_tasks.task import Special
from corank.verbs.candidates import BITS

BATCH = 16
RATE = 2e-3


@final
class Experts(Special):
    """A Mixtral of eight experts, of which a token uses two, trained here from random weights."""

    name, quality, higher = "experts", "perplexity", False
    shares = (0.5, 0.75, 0.25)
    compositions = (
        steps("mobe"), steps("submoe"), steps("svd"), steps("svd_llm"),
        steps({"round_to_nearest": {"bits": BITS}}), steps({"gptq": {"bits": BITS}}),
    )  # fmt: skip
    targets = r"re:mlp\.experts"

    def load(self) -> nn.Module:
        return copy.deepcopy(self._trained).to(torch.bfloat16)

    def data(self, labelled: bool) -> list[Any]:
        from benchmarks.training.tasks import tokens

        rows = _drawn(tokens("calibration"), 8 if self.small else 256, seed=1)
        return [{"input_ids": part} for part in rows.split(BATCH)]

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        from benchmarks.reference.evaluate import perplexity
        from benchmarks.training.tasks import LENGTH, tokens

        rows = tokens("heldout")
        spread = torch.linspace(0, len(rows) - 1, 8 if self.small else 512).long()
        return {self.quality: perplexity(model, rows[spread].flatten(), LENGTH)}

    @property
    def steps(self) -> int:
        """Of training."""
        return 3 if self.small else 1000

    @cached_property
    def _trained(self) -> nn.Module:
        from benchmarks.training.tasks import tokens

        model = self._start().train()
        optimizer = torch.optim.Adam(model.parameters(), RATE)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / self.steps)
        split = "calibration" if self.small else "training"
        for batch in _drawn(tokens(split), self.steps * BATCH, seed=0).split(BATCH):
            optimizer.zero_grad()
            model(input_ids=batch, labels=batch, output_router_logits=True).loss.backward()
            optimizer.step()
            schedule.step()
        return model.eval()

    def _start(self) -> nn.Module:
        from transformers import MixtralConfig

        from benchmarks.reference.network import VOCABULARY
        from benchmarks.training.tasks import LENGTH
        from corank.training import start_model

        config = MixtralConfig(
            vocab_size=VOCABULARY, hidden_size=128, intermediate_size=192, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=8,
            num_experts_per_tok=2, router_aux_loss_coef=0.01, max_position_embeddings=LENGTH,
            tie_word_embeddings=True, use_cache=False, bos_token_id=0, eos_token_id=0,
            pad_token_id=None,
        )  # fmt: skip
        return start_model(config, "causal", 0)


def _drawn(rows: Tensor, count: int, seed: int) -> Tensor:
    """So many rows, each at most once where there are enough."""
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-count // len(rows))
    order = [torch.randperm(len(rows), generator=generator) for _ in range(rounds)]
    return rows[torch.cat(order)[:count]]
