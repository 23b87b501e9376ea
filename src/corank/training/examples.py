"""Text and JSONL files as rows that a causal language model trains on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..calibration.text import read_documents
from ..errors import DataError

IGNORED = -100  # what the losses of transformers leave out


@dataclass(frozen=True)
class Examples:
    """Rows {"input_ids", "labels"} of at most a sequence's length, and what a user should know."""

    rows: Sequence[dict[str, list[int]]]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]


def read_examples(
    path: str | os.PathLike[str], tokenizer: Any, sequence_length: int = 256
) -> Examples:
    """The rows of a text file, a JSONL file, or a folder of either.

    Text is joined end to end, with the tokenizer's end-of-text between documents, and cut into
    sequences; the last, shorter one is kept. A line of JSONL is a row of its own: {"text": ...},
    or {"prompt": ..., "completion": ...} of which only the completion is learnt. A longer line is
    cut, and counted in the notes.

    Raises DataError for a path that is not there, a line that is no such object, or no text.
    """
    if sequence_length < 2:
        raise DataError(f"sequence_length must be at least 2, got {sequence_length}")
    root = Path(path)
    files = sorted(root.rglob("*.jsonl")) if root.is_dir() else [root]
    if files and all(file.suffix == ".jsonl" for file in files):
        return _from_lines(files, tokenizer, sequence_length)
    notes: list[str] = []
    ids: list[int] = []
    end = tokenizer.eos_token_id
    for text in read_documents(root, notes):
        ids += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        ids += [] if end is None else [end]
    rows = [ids[i : i + sequence_length] for i in range(0, len(ids), sequence_length)]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        raise DataError(f"{root} holds no text to train on")
    return Examples([{"input_ids": row, "labels": list(row)} for row in rows], tuple(notes))


def split_examples(examples: Examples, held_out: float) -> tuple[Examples, Examples]:
    """Rows to train on and rows to tune on: every k-th, spread over the whole.

    Raises DataError where a share of the rows is none of them.
    """
    if not 0 < held_out < 1:
        raise DataError(f"held_out must be between 0 and 1, got {held_out}")
    every = round(1 / held_out)
    kept = [row for i, row in enumerate(examples.rows) if i % every != every - 1]
    held = [row for i, row in enumerate(examples.rows) if i % every == every - 1]
    if not kept or not held:
        raise DataError(
            f"{len(examples)} rows are too few to hold {held_out:.0%} of them out: give more text, "
            "shorter sequences, or evaluation text of its own"
        )
    return Examples(kept, examples.notes), Examples(held)


def _from_lines(files: list[Path], tokenizer: Any, length: int) -> Examples:
    rows, cut = [], 0
    for where, entry in _lines(files):
        row = _row(where, entry, tokenizer)
        cut += len(row["input_ids"]) > length
        row = {key: values[:length] for key, values in row.items()}
        if len(row["input_ids"]) > 1 and any(label != IGNORED for label in row["labels"]):
            rows.append(row)
        else:
            raise DataError(f"{where} has nothing to learn within {length} tokens")
    if not rows:
        raise DataError(f"{files[0]} holds no lines to train on")
    notes = (f"{cut} of {len(rows)} lines were cut to {length} tokens",) if cut else ()
    return Examples(rows, notes)


def _lines(files: list[Path]) -> Iterator[tuple[str, Any]]:
    for file in files:
        if not file.is_file():
            raise DataError(f"{file} does not exist")
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    yield f"{file}:{number}", json.loads(line)
                except ValueError as error:
                    raise DataError(f"{file}:{number} is not JSON: {error}") from error


def _row(where: str, entry: Any, tokenizer: Any) -> dict[str, list[int]]:
    def ids(text: Any) -> list[int]:
        if not isinstance(text, str):
            raise DataError(f"{where}: a text must be a string, got {type(text).__name__}")
        found: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return found

    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    keys = set(entry) if isinstance(entry, dict) else set()
    if "text" in keys:
        whole = ids(entry["text"]) + end
        return {"input_ids": whole, "labels": list(whole)}
    if {"prompt", "completion"} <= keys:
        prompt, completion = ids(entry["prompt"]), ids(entry["completion"]) + end
        labels = [IGNORED] * len(prompt) + completion
        return {"input_ids": prompt + completion, "labels": labels}
    raise DataError(f'{where} has neither "text" nor "prompt" and "completion": {sorted(keys)}')
