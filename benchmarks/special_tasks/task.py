"""What the board of special models asks of each: a model, methods, sizes, measures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

import corank
from benchmarks.special_tasks.rows import Composition, Row
from benchmarks.tuning.measure import GRADIENTS


class Special(ABC):
    """A trained model, the methods made for its kind beside others, and held-out data.

    `quality` names the main one of the measures, better when `higher` or lower; `small` makes
    everything so small that it is trained within seconds.
    """

    name: ClassVar[str]
    quality: ClassVar[str]
    higher: ClassVar[bool]
    #: Of the targeted weights' bytes in bfloat16.
    shares: ClassVar[tuple[float, ...]]
    compositions: ClassVar[tuple[Composition, ...]]
    targets: ClassVar[Any]
    #: For methods that use gradients, on batches with labels; None: the model's own.
    loss: Callable[[nn.Module, Any], Tensor] | None = None

    def __init__(self, small: bool = False) -> None:
        self.small = small

    def rows(self) -> Iterator[Row]:
        """What there is to measure."""
        return (Row(one, share) for share in self.shares for one in self.compositions)

    @abstractmethod
    def load(self) -> nn.Module:
        """A fresh copy of the trained model in bfloat16, in evaluation mode."""

    @abstractmethod
    def data(self, labelled: bool) -> list[Any]:
        """Batches to calibrate on, of the data that the model was trained on."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The measures on held-out data, of a model in float32."""

    def make(self, row: Row) -> tuple[nn.Module, Mapping[str, float]]:
        """The row's model, and what its targeted weights stored before and store after.

        Raises what `corank.compress` raises.
        """
        model = self.load()
        composition, method = row.composition, row.composition.method
        labelled = self.loss is not None and bool(composition.needs & GRADIENTS)
        options = self.options() | ({"loss": self.loss} if labelled else {})
        report = corank.compress(
            model, method if isinstance(method, str) else list(method), keep=row.share,
            targets=self.targets, seed=row.seed, data=self.data(labelled), **options,
            **composition.parameters,
        )  # fmt: skip
        return model, report.totals

    def options(self) -> dict[str, Any]:
        """What else the methods are given."""
        return {}

    def references(self) -> dict[str, nn.Module]:
        """What is measured beside the compressed models."""
        return {"dense": self.load()}
