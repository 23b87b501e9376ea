"""Text and JSONL files as rows that a language model trains on."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..calibration.text import read_documents, special_tokens
from ..errors import DataError
from .lines import TEXTS, entries, read_rows
from .windows import Windows

Tell = Callable[[str, float], None]


@dataclass(frozen=True)
class Examples:
    """Rows {"input_ids", "labels"} of at most a sequence's length, and what a user should know."""

    rows: Sequence[dict[str, list[int]]] | Windows
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]


def read_examples(
    path: str | os.PathLike[str],
    tokenizer: Any,
    sequence_length: int = 256,
    *,
    specials: bool = False,
    tell: Tell | None = None,
) -> Examples:
    """The rows of a text file, a JSONL file, or a folder of either.

    Text is joined end to end, with the tokenizer's end-of-text between documents, and cut into
    sequences; the last, shorter one is kept. A line of JSONL is a row of its own: {"text": ...},
    or {"prompt": ..., "completion": ...} of which only the completion is learnt. A longer line is
    cut, and counted in the notes.

    specials: every row of text carries the tokens that the tokenizer puts around a text, as
    masked models expect. tell: called with ("tokenising", fraction done).

    Raises DataError for a path that is not there, a line that is no such object, or text that
    does not fill one sequence.
    """
    if lines := _lines_of(path, sequence_length):
        return Examples(*read_rows(lines, tokenizer, sequence_length))
    notes: list[str] = []
    documents = list(read_documents(path, notes))
    rows = _windows(path, documents, tokenizer, sequence_length, specials, tell)
    return Examples(rows, tuple(notes))


def read_split(
    path: str | os.PathLike[str],
    tokenizer: Any,
    sequence_length: int = 256,
    held_out: float = 0.1,
    *,
    specials: bool = False,
    tell: Tell | None = None,
) -> tuple[Examples, Examples]:
    """Rows to train on and rows to tune on, as `read_examples` reads them.

    Of several documents (a line of JSONL is one) some are held out whole, spread over the folder;
    of a single text every k-th row. Raises DataError as it does, and for too little text.
    """
    if _lines_of(path, sequence_length):
        return split_examples(read_examples(path, tokenizer, sequence_length), held_out)
    notes: list[str] = []
    documents = list(read_documents(path, notes))
    if len(documents) < 2:
        rows = _windows(path, documents, tokenizer, sequence_length, specials, tell)
        return split_examples(Examples(rows, tuple(notes)), held_out)
    kept, held = _spread_apart(documents, held_out)
    notes.append(f"{len(held)} of {len(documents)} documents are held out to tune on")
    made = [
        _windows(path, part, tokenizer, sequence_length, specials, tell) for part in (held, kept)
    ]
    return Examples(made[1], tuple(notes)), Examples(made[0])


def split_examples(examples: Examples, held_out: float) -> tuple[Examples, Examples]:
    """Rows to train on and rows to tune on: every k-th, spread over the whole.

    Raises DataError where a share of the rows is none of them.
    """
    _require_share(held_out)
    every = max(2, round(1 / held_out))
    kept = [row for i, row in enumerate(examples.rows) if i % every != every - 1]
    held = [row for i, row in enumerate(examples.rows) if i % every == every - 1]
    if not kept or not held:
        raise DataError(
            f"{len(examples)} rows are too few to hold {held_out:.0%} of them out: give more text, "
            "shorter sequences, or evaluation text of its own"
        )
    return Examples(kept, examples.notes), Examples(held)


def read_texts(path: str | os.PathLike[str]) -> Iterator[str]:
    """The texts of a path as they are, to train a tokenizer on."""
    lines = _lines_of(path, 2)
    if not lines:
        yield from read_documents(path, [])
    for _, entry in entries(lines):
        if isinstance(entry, dict):
            yield "".join(v for k in TEXTS if isinstance(v := entry.get(k), str))


def _require_share(held_out: float) -> None:
    if not 0 < held_out < 1:
        raise DataError(f"held_out must be between 0 and 1, got {held_out}")


def _spread_apart(documents: list[str], held_out: float) -> tuple[list[str], list[str]]:
    """At least one document held out, at least one kept."""
    _require_share(held_out)
    count = min(max(1, round(held_out * len(documents))), len(documents) - 1)
    chosen = {(2 * i + 1) * len(documents) // (2 * count) for i in range(count)}
    kept = [text for i, text in enumerate(documents) if i not in chosen]
    return kept, [text for i, text in enumerate(documents) if i in chosen]


def _windows(
    path: str | os.PathLike[str],
    documents: list[str],
    tokenizer: Any,
    length: int,
    specials: bool,
    tell: Tell | None,
) -> Windows:
    prefix, suffix = special_tokens(tokenizer) if specials else ([], [])
    separator = [] if tokenizer.eos_token_id is None or specials else [tokenizer.eos_token_id]
    ids, read, whole = array("i"), 0, max(1, sum(map(len, documents)))
    for text in documents:
        ids.extend(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        ids.extend(separator)
        read += len(text)
        if tell is not None:
            tell("tokenising", read / whole)
    rows = Windows(ids, length, prefix, suffix)
    if not any(documents) or not rows:
        raise DataError(f"{path} holds no text to train on")
    if len(ids) < rows.body:
        raise DataError(
            f"{path}: a part of the text, {len(ids)} tokens, does not fill one sequence of "
            f"{length}: give more text, or a shorter sequence_length"
        )
    return rows


def _lines_of(path: str | os.PathLike[str], sequence_length: int) -> list[Path]:
    """The JSONL files of a path; none where it holds text."""
    if sequence_length < 2:
        raise DataError(f"sequence_length must be at least 2, got {sequence_length}")
    root = Path(path)
    files = sorted(root.rglob("*.jsonl")) if root.is_dir() else [root]
    return files if all(file.suffix == ".jsonl" for file in files) else []
