"""Text for the reference model: the running interpreter's standard library, split by package.

A *unit* is one top-level module or package (``json``, ``argparse``). Every unit belongs to exactly
one split, chosen by name, so the splits are disjoint by file on every Python version:

- training: every unit not named below; the tokenizer, the model and the 3-gram see only these;
- calibration: every tenth training file, for collecting activation statistics;
- tuning: units for choosing settings, seen by nothing in training;
- held-out: units for evaluation only, the in-domain text;
- prose: the reference documentation in ``pydoc_data.topics``, reduced to its prose, the
  out-of-domain text; also for evaluation only.
"""

from __future__ import annotations

import re
import sys
import sysconfig
import tokenize
from pathlib import Path

END_OF_TEXT = "<|endoftext|>"
"""Separates files in every text; the tokenizer reads it as one special token."""

HELD_OUT_UNITS = ("asyncio", "email", "http", "json", "tomllib", "zoneinfo")
TUNING_UNITS = ("configparser", "logging", "statistics", "zipfile")
UNUSED_UNITS = ("encodings", "pydoc_data")
"""Tables of code points, and the prose: in no split of source files."""

SPLITS = ("training", "calibration", "tuning", "heldout")
CALIBRATION_STRIDE = 10
PROSE_WORDS = 20


def standard_library() -> Path:
    """The folder of the running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def split_files(split: str) -> list[Path]:
    """The sorted ``.py`` files of a split. Calibration is a part of training.

    Raises:
        ValueError: `split` is not one of `SPLITS`.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if split == "calibration":
        return split_files("training")[::CALIBRATION_STRIDE]
    files: list[Path] = []
    for path in standard_library().iterdir():
        if _split_of(path.name.removesuffix(".py")) == split:
            files += path.rglob("*.py") if path.is_dir() else [path]
    return sorted(files)


def split_text(split: str) -> str:
    """The files of a split, joined by `END_OF_TEXT`."""
    return END_OF_TEXT.join(read_source(path) for path in split_files(split))


def training_text() -> str:
    """What the tokenizer, the model and the 3-gram are trained on."""
    return split_text("training")


def calibration_text() -> str:
    """A part of the training text, for activation statistics and healing."""
    return split_text("calibration")


def tuning_text() -> str:
    """Source of the training's domain, held out from training, for choosing settings."""
    return split_text("tuning")


def heldout_text() -> str:
    """Source of the training's domain for evaluation only."""
    return split_text("heldout")


def prose_text() -> str:
    """English prose about the language, for evaluation only: another domain than source code."""
    from pydoc_data.topics import topics

    documents = ("\n\n".join(_prose_paragraphs(topics[name])) for name in sorted(topics))
    return END_OF_TEXT.join(document for document in documents if document)


def read_source(path: Path) -> str:
    """A source file's text in the encoding that it declares."""
    with tokenize.open(path) as file:
        return file.read()


def _split_of(unit: str) -> str | None:
    # The names CPython itself lists leave out site-packages, its own tests and build settings.
    if unit not in sys.stdlib_module_names or unit in UNUSED_UNITS:
        return None
    if unit in HELD_OUT_UNITS:
        return "heldout"
    return "tuning" if unit in TUNING_UNITS else "training"


def _prose_paragraphs(text: str) -> list[str]:
    """Paragraphs of at least `PROSE_WORDS` words, joined to one line, grammar and code left out."""
    paragraphs = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text))
    return [
        paragraph
        for paragraph in paragraphs
        if len(paragraph.split()) >= PROSE_WORDS
        and paragraph.endswith((".", ":"))
        and ">>>" not in paragraph
    ]
