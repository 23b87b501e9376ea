"""The reference model by what works on whole models: a smaller one, and routed networks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

import corank
from benchmarks.special_tasks.rows import Composition, Row
from benchmarks.special_tasks.task import Special
from corank.models import find_sites, read
from corank.settings import factorllm, weight_selection

BATCH = 8
START = "a random start"


class _Reference(Special):
    """Perplexity on sources of the standard library that no model here has seen."""

    quality, higher, targets = "perplexity", False, "all-linear"

    def load(self) -> nn.Module:
        from benchmarks.reference.evaluate import load_model

        return load_model()

    def data(self, labelled: bool = False) -> list[Any]:
        return self.batches("calibration")

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        from benchmarks.reference.evaluate import perplexity

        rows = self.read("heldout")
        spread = torch.linspace(0, len(rows) - 1, 8 if self.small else 256).long()
        return {self.quality: perplexity(model, rows[spread].flatten(), rows.shape[1])}

    @abstractmethod
    def change(self, row: Row) -> nn.Module:
        """The model of a row, in float32."""

    def make(self, row: Row) -> tuple[nn.Module, Mapping[str, float]]:
        model = self.change(row)
        sizes = {"bytes_before": _bytes(self.load()), "bytes_after": _bytes(model)}
        return model.to(torch.bfloat16), sizes

    @property
    def steps(self) -> int:
        """Of training, as many for every row."""
        return 2 if self.small else 300

    def batches(self, split: str) -> list[Any]:
        """Up to `steps` batches of windows of that split, in one order for all rows."""
        rows = self.read("calibration" if self.small else split)
        drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
        return [{"input_ids": part} for part in rows[drawn[: self.steps * BATCH]].split(BATCH)]

    def read(self, split: str) -> Tensor:
        """Windows of that split, (windows, 128)."""
        from benchmarks.training.tasks import tokens

        rows = tokens(split)
        return rows[: len(rows) // 2 * 2].view(-1, 2 * rows.shape[1])


@final
class Smaller(_Reference):
    """Half the width and every other number of each head, trained on what comes next."""

    name, shares = "smaller", (0.25,)
    compositions = tuple(
        Composition(start, {"rate": rate})
        for rate in (1e-3, 3e-3) for start in ("weight_selection", START)
    )  # fmt: skip

    def change(self, row: Row) -> nn.Module:
        large = self.load()
        small = _half(large)
        if row.composition.method == "weight_selection":
            weight_selection(small, large)
        rate = row.composition.parameters["rate"]
        optimizer = torch.optim.Adam(small.train().parameters(), rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / self.steps)
        for batch in self.batches("training"):
            optimizer.zero_grad()
            small(**batch, labels=batch["input_ids"]).loss.backward()
            optimizer.step()
            schedule.step()
        return small.eval()


@final
class Routed(_Reference):
    """Each feed-forward network as experts, half of which a token uses; healed or not."""

    name, shares = "routed", (1.0,)
    compositions = tuple(
        Composition("factorllm", {"rate": rate, "heal_steps": steps})
        for steps in (0, 120) for rate in (1e-2, 0.0)
    )  # fmt: skip

    def change(self, row: Row) -> nn.Module:
        model, own = self.load(), row.composition.parameters
        factorllm(model, self.data()[:16], rate=own["rate"])
        if own["heal_steps"]:
            healing = min(own["heal_steps"], self.steps)
            corank.heal(model, self.load(), self.data(), steps=healing)
        return model

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        from corank.report.speed import measure_speed

        models = {"original": self.load(), "row": model}
        rows = measure_speed(models, self.data()[0], repeats=5)
        return super().evaluate(model) | {"speed": rows[1]["relative"]}


def _half(large: nn.Module) -> nn.Module:
    from transformers import LlamaConfig

    from corank.training import start_model

    config = large.config.to_dict()
    config |= {name: config[name] // 2 for name in ("hidden_size", "intermediate_size", "head_dim")}
    return start_model(LlamaConfig(**config), "causal", 0)


def _bytes(model: nn.Module) -> int:
    """Of what stands for linear weights, in bfloat16."""
    return sum(2 * read(model, site).numel() for site in find_sites(model))
