"""Texts to token batches: padded one by one, or packed end to end."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError

#: A transformers tokenizer; typed loosely so that transformers is not imported for it.
Tokenizer = Any


def read_documents(path: str | os.PathLike[str], notes: list[str]) -> Iterator[str]:
    """The texts of a file, or of all files under a folder in sorted order; hidden ones excepted.

    Raises: DataError for a path that does not exist, or a single file that is not UTF-8 text.
    """
    root = Path(path)
    if root.is_file():
        try:
            yield root.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{root} is not UTF-8 text: {error.reason}") from error
        return
    if not root.is_dir():
        raise DataError(f"{root} is neither a file nor a folder (texts go into a list of strings)")
    files = (p for p in sorted(root.rglob("*")) if p.is_file())
    for file in files:
        if any(part.startswith(".") for part in file.relative_to(root).parts):
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            notes.append(f"{file.name} was skipped: not UTF-8 text")
            continue
        yield text


def packed(
    texts: Iterable[str],
    tokenizer: Tokenizer,
    sequence_length: int,
    count: int | None,
    batch_size: int,
    notes: list[str],
) -> list[dict[str, Tensor]]:
    """Texts joined end to end and cut into sequences of `sequence_length` tokens each.

    Every sequence carries the special tokens that the tokenizer puts around a text. A last,
    shorter sequence is kept as a batch of its own.
    """
    prefix, suffix = special_tokens(tokenizer)
    body = sequence_length - len(prefix) - len(suffix)
    if body < 1:
        raise DataError(f"sequence_length={sequence_length} leaves no room for text")
    chunks = _chunks(texts, tokenizer, body)
    sequences = [prefix + chunk + suffix for chunk in islice(chunks, count)]
    if count is not None and len(sequences) == count and next(chunks, None) is not None:
        notes.append(f"only the first {count} sequences were used, as asked")
    last = sequences.pop() if sequences and len(sequences[-1]) < sequence_length else None
    made = [_batch(part) for part in _groups(sequences, batch_size)]
    if last is not None:
        notes.append(f"the last sequence has {len(last)} of {sequence_length} tokens")
        made.append(_batch([last]))
    return made


def padded(
    texts: Iterable[str],
    tokenizer: Tokenizer,
    sequence_length: int,
    count: int | None,
    batch_size: int,
    notes: list[str],
    by_length: bool = False,
) -> list[dict[str, Tensor]]:
    """One sequence per text, cut to `sequence_length` tokens and padded to its batch's longest."""
    rows: list[dict[str, list[int]]] = []
    cut = empty = 0
    for text in texts:
        if count is not None and len(rows) == count:
            notes.append(f"only the first {count} texts were used, as asked")
            break
        row = tokenizer(text, verbose=False)
        if not row["input_ids"]:
            empty += 1
            continue
        if len(row["input_ids"]) > sequence_length:
            cut += 1
            row = tokenizer(text, truncation=True, max_length=sequence_length)
        rows.append({name: list(row[name]) for name in row if len(row[name])})
    if cut:
        notes.append(f"{cut} of {len(rows)} texts were cut to {sequence_length} tokens")
    if empty:
        notes.append(f"{empty} empty texts were left out")
    if by_length:
        rows.sort(key=lambda row: len(row["input_ids"]))
    return [_pad(part, tokenizer) for part in _groups(rows, batch_size)]


def collate(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: Tokenizer | None,
    sequence_length: int,
    batch_size: int,
    notes: list[str],
) -> list[dict[str, Tensor]]:
    """Rows of a tokenised data set, padded; rows of other numbers, stacked."""
    made: list[dict[str, Tensor]] = []
    left_out: set[str] = set()
    cut = 0
    for part in _groups(rows, batch_size):
        if "input_ids" not in part[0]:
            numeric = {k for k, v in part[0].items() if not isinstance(v, str)}
            left_out |= part[0].keys() - numeric
            made.append({k: torch.stack([torch.as_tensor(r[k]) for r in part]) for k in numeric})
            continue
        length = len(part[0]["input_ids"])
        aligned = [k for k, v in part[0].items() if hasattr(v, "__len__") and len(v) == length]
        aligned = [k for k in aligned if not isinstance(part[0][k], str)]
        left_out |= part[0].keys() - set(aligned)
        cut += sum(len(row["input_ids"]) > sequence_length for row in part)
        kept = [{k: [int(i) for i in row[k]][:sequence_length] for k in aligned} for row in part]
        made.append(_pad(kept, tokenizer))
    if cut:
        notes.append(f"{cut} rows were cut to {sequence_length} tokens")
    if left_out:
        notes.append(f"columns left out: {', '.join(sorted(left_out))}")
    return made


def special_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The tokens that the tokenizer puts before and after a text."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []


def _chunks(texts: Iterable[str], tokenizer: Tokenizer, body: int) -> Iterator[list[int]]:
    """Token runs of length `body`; the last may be shorter."""
    separator = tokenizer.eos_token_id
    if separator is None:
        separator = tokenizer.sep_token_id
    held: list[int] = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if held and separator is not None:
            held.append(int(separator))
        held.extend(ids)
        start = 0
        while len(held) - start > body:  # a full run waits: more text, or the end, decides
            yield held[start : start + body]
            start += body
        held = held[start:]
    if held:
        yield held


def _groups(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(rows)
    while part := list(islice(iterator, size)):
        yield part


def _batch(sequences: list[list[int]]) -> dict[str, Tensor]:
    ids = torch.tensor(sequences)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _pad(rows: list[dict[str, list[int]]], tokenizer: Tokenizer | None) -> dict[str, Tensor]:
    """Rows padded on the right. A model without a padding token gets id 0, masked out."""
    padding = 0 if tokenizer is None or tokenizer.pad_token_id is None else tokenizer.pad_token_id
    filler = {"input_ids": int(padding), "labels": -100}
    for row in rows:
        row.setdefault("attention_mask", [1] * len(row["input_ids"]))
    longest = max(len(row["input_ids"]) for row in rows)

    def column(name: str) -> Tensor:
        fill = filler.get(name, 0)
        return torch.tensor([row[name] + [fill] * (longest - len(row[name])) for row in rows])

    return {name: column(name) for name in rows[0]}
