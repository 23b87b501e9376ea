"""Texts for the board's sentence encoder: docstrings of the standard library, and prose.

Paragraphs of docstrings are divided by package: some packages for choosing settings (tuning), some
for in-domain evaluation, all others for calibration. Prose, out of domain, is sentences: half from
the interpreter's help topics, half from scikit-learn's descriptions of data sets; tuning has help
topics of its own. A text that occurs in two splits is left out of the one that comes first in
`SPLITS`, so nothing of evaluation or tuning is ever calibrated on. A sample is the texts that come
first by the hash of (seed, text): the same on every machine that has the same sources.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path

SPLITS = ("calibration", "tuning", "tuning prose", "docstrings", "topics", "descriptions")
"""Every split; the last three are for evaluation only."""

TUNING_PACKAGES = frozenset({"concurrent", "ctypes", "http", "json", "urllib", "xml"})
EVALUATION_PACKAGES = frozenset(
    {"asyncio", "email", "logging", "multiprocessing", "tkinter", "unittest"}
)
UNUSED = frozenset({"site-packages", "test", "tests", "idle_test", "lib2to3", "pydoc_data"})
SHORTEST = 6  # words
TUNING_TOPICS = 5  # every fifth help topic is for tuning


@cache
def split_texts(split: str) -> tuple[str, ...]:
    """All texts of a split, each once, sorted.

    Raises:
        ValueError: `split` is not one of `SPLITS`.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    later = SPLITS[SPLITS.index(split) + 1 :]
    return tuple(sorted(_raw(split).difference(*map(_raw, later))))


def sample(split: str, count: int, seed: int = 0) -> list[str]:
    """At most `count` texts of a split: those whose hash with `seed` comes first."""
    return sorted(split_texts(split), key=lambda text: _hash(seed, text))[:count]


@cache
def _raw(split: str) -> frozenset[str]:
    if split == "descriptions":
        folder = files("sklearn.datasets.descr")
        pages = [p.read_text("utf-8") for p in folder.iterdir() if p.name.endswith(".rst")]
        return frozenset(text for page in pages for text in _sentences(page))
    if split in ("topics", "tuning prose"):
        from pydoc_data.topics import topics

        names = sorted(topics)
        tuning = set(names[::TUNING_TOPICS])
        chosen = [n for n in names if (n in tuning) == (split == "tuning prose")]
        return frozenset(text for name in chosen for text in _sentences(topics[name]))
    return frozenset(text for path in _sources(split) for text in _docstrings(path))


def _sources(split: str) -> Iterator[Path]:
    library = Path(sysconfig.get_path("stdlib"))
    for path in library.rglob("*.py"):
        parts = path.relative_to(library).parts
        if not UNUSED.intersection(parts) and split == _split_of(parts[0].removesuffix(".py")):
            yield path


def _split_of(package: str) -> str:
    if package in EVALUATION_PACKAGES:
        return "docstrings"
    return "tuning" if package in TUNING_PACKAGES else "calibration"


def _docstrings(path: Path) -> Iterator[str]:
    """Paragraphs of a file's docstrings, read without importing it."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # sources kept broken on purpose
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _paragraphs(ast.get_docstring(node) or "")


def _paragraphs(text: str) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", text):
        words = block.split()
        if len(words) >= SHORTEST:
            yield " ".join(words)


def _sentences(text: str) -> Iterator[str]:
    """Sentences of at least `SHORTEST` words that are mostly letters."""
    for paragraph in _paragraphs(text):
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", paragraph):
            letters = sum(c.isalpha() for c in sentence)
            if len(sentence.split()) >= SHORTEST and letters > 0.6 * len(sentence):
                yield sentence


def _hash(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}:{text}".encode()).digest()


def words(texts: Iterable[str]) -> int:
    """How many words the texts have together."""
    return sum(len(text.split()) for text in texts)
