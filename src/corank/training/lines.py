"""Lines of JSONL as rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError

IGNORED = -100  # what the losses of transformers leave out
TEXTS = ("text", "prompt", "completion")  # what a line may hold


def read_rows(
    files: list[Path], tokenizer: Any, length: int
) -> tuple[list[dict[str, list[int]]], tuple[str, ...]]:
    """A row of each line, of at most `length` tokens, and what a user should know."""
    rows, cut = [], 0
    for where, entry in entries(files):
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
    return rows, notes


def entries(files: list[Path]) -> Iterator[tuple[str, Any]]:
    """Where each line stands, and what it holds."""
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
