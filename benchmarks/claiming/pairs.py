"""A task of pure memory: a network that knows random keys' values learns those of other keys."""

from __future__ import annotations

from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.tuning.tasks import Task

WIDTH, PAIRS, VALUES = 128, 512, 128


@final
class Pairs(Task):
    """Random keys and values of this seed's own; what is trained on is what is asked afterwards.

    Nothing generalises here, so there are no held-out rows: rates are chosen on other pairs.
    """

    name, quality, forgetting = "pairs", "values recalled", "values recalled of the first keys"
    higher, steps, batch = True, 400, 128

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def load(self, seed: int = 0) -> nn.Module:
        model = _network()
        model.load_state_dict(self._pretrained)
        return model.eval()

    def batches(self, seed: int) -> list[Any]:
        return _batches(self.pairs, self.steps, self.batch, seed)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def tune(self, model: nn.Module) -> float:
        return recalled(model, self.pairs)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {
            self.quality: recalled(model, self.pairs),
            self.forgetting: recalled(model, draw(-1)),
        }

    @cached_property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """The keys and values to be learned."""
        return draw(self.seed)

    @cached_property
    def _pretrained(self) -> dict[str, Tensor]:
        model = _network().train()
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        for x, y in _batches(draw(-1), 400, self.batch, 0):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        return model.state_dict()


def draw(seed: int) -> tuple[Tensor, Tensor]:
    """Random keys with a random value each; seed -1 is what the network knows beforehand."""
    generator = torch.Generator().manual_seed(1000 + seed)
    keys = torch.randn(PAIRS, WIDTH, generator=generator)
    return keys, torch.randint(VALUES, (PAIRS,), generator=generator)


@torch.no_grad()
def recalled(model: nn.Module, pairs: tuple[Tensor, Tensor]) -> float:
    """The fraction of keys whose value is the most likely one."""
    keys, values = pairs
    return (model.eval()(keys).argmax(-1) == values).float().mean().item()


def _batches(pairs: tuple[Tensor, Tensor], steps: int, batch: int, seed: int) -> list[Any]:
    keys, values = pairs
    generator = torch.Generator().manual_seed(seed)
    picked = [torch.randint(len(values), (batch,), generator=generator) for _ in range(steps)]
    return [(keys[i], values[i]) for i in picked]


def _network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
            nn.Linear(WIDTH, VALUES),
        )  # fmt: skip
