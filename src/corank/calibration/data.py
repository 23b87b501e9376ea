"""Calibration data as a list of model inputs, from whatever the user has."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from ..errors import DataError
from .text import Tokenizer, collate, packed, padded, read_documents


@final
class Batches(Sequence[Any]):
    """Model inputs held in memory, in order, so that every pass sees the same data.

    items: what the model is called with: mappings of tensors, tuples of tensors, or tensors.
    notes: what a reader of a report should know: cuts, incomplete packs, skipped files.
    """

    def __init__(self, items: Iterable[Any], notes: Iterable[str] = ()) -> None:
        self.items, self.notes = list(items), list(notes)
        if not self.items:
            raise DataError("the calibration data is empty: give at least one model input")
        self.samples = sum(samples_in(item) for item in self.items)
        if self.samples == 0:
            raise DataError("the calibration data holds no samples: every batch has length 0")
        if self.samples == 1:
            self.notes.append("calibrated on a single sample: the statistics hardly generalise")

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]


def batches(
    data: Any,
    *,
    tokenizer: Tokenizer | None = None,
    sequence_length: int = 256,
    count: int | None = None,
    batch_size: int = 8,
    pack: bool | None = None,
    by_length: bool = False,
) -> Batches:
    """Turn `data` into a list of model inputs. Nothing is left out without a note.

    data: an iterable of model inputs (mapping, tuple, or tensor; each is one batch), such as a
        `DataLoader`, where a tuple may end in labels that only a loss reads; a
        `datasets.Dataset`, tokenised or with a text column; the path of a text file or of a
        folder of them; a list of strings; or a callable that returns any of these.
    tokenizer: a transformers tokenizer; needed wherever the data is text.
    sequence_length: tokens per sequence, special tokens included; longer texts are cut (noted).
    count: at most this many sequences (samples), taken from the front; None takes all.
    batch_size: sequences per batch where batches are formed here.
    pack: join the texts, separated by the tokenizer's end-of-text token, and cut the result into
        sequences of equal length, the last of which may be shorter. Default: files are packed, a
        list or a column of texts is padded.
    by_length: put padded texts of like length, in tokens, into one batch: little padding, but not
        in the order given.

    Raises: DataError for empty data, a missing tokenizer, an unknown path, or an element that no
        model can be called with.
    """
    for name, value in (("sequence_length", sequence_length), ("batch_size", batch_size)):
        if value < 1:
            raise DataError(f"{name} must be at least 1, got {value}")
    if count is not None and count < 1:
        raise DataError(f"count must be at least 1, got {count}")
    if isinstance(data, Callable) and not isinstance(data, Iterable):  # type: ignore[arg-type]
        data = data()
    notes: list[str] = []

    def from_texts(texts: Iterable[str], pack: bool) -> Batches:
        if tokenizer is None:
            raise DataError("the calibration data is text: give tokenizer=, the model's own")
        how = (texts, tokenizer, sequence_length, count, batch_size, notes)
        return Batches(packed(*how) if pack else padded(*how, by_length), notes)

    if isinstance(data, (str, os.PathLike)):
        return from_texts(read_documents(data, notes), pack is not False)
    if isinstance(data, (Tensor, Mapping)):
        data = [data]
    if hasattr(data, "column_names"):
        column = _text_column(data)
        if column is None:
            rows = _head(data, count, notes)
            return Batches(collate(rows, tokenizer, sequence_length, batch_size, notes), notes)
        notes.append(f"text read from the column {column!r}")
        return from_texts((row[column] for row in data), bool(pack))
    if not isinstance(data, Iterable):
        raise DataError(f"cannot read calibration data from a {type(data).__name__}")
    elements = iter(data)
    first = next(elements, None)
    if first is None:
        raise DataError("the calibration data is empty: give at least one model input")
    if isinstance(first, str):
        return from_texts(_chain(first, elements), bool(pack))
    return Batches(_cut(_chain(first, elements), count, notes), notes)


def samples_in(batch: Any) -> int:
    """The length of a batch's first axis, in samples."""
    return int(first_tensor(batch).shape[0])


def first_tensor(batch: Any) -> Tensor:
    """The first tensor of a model input: of a mapping, `input_ids` where it has them."""
    if isinstance(batch, Tensor) and batch.ndim > 0:
        return batch
    if isinstance(batch, Mapping):
        ids = batch.get("input_ids")
        candidates = [ids] if isinstance(ids, Tensor) else list(batch.values())
    else:
        candidates = list(batch) if isinstance(batch, (tuple, list)) else []
    found = next((x for x in candidates if isinstance(x, Tensor) and x.ndim > 0), None)
    if found is None:
        raise DataError(
            f"a calibration batch must be a mapping, a tuple or a tensor with a batch axis, got "
            f"{type(batch).__name__}: collate the samples into tensors first"
        )
    return found


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _head(rows: Iterable[Any], count: int | None, notes: list[str]) -> Iterator[Any]:
    for index, row in enumerate(rows):
        if count is not None and index == count:
            notes.append(f"only the first {count} samples were used, as asked")
            return
        yield row


def _cut(items: Iterable[Any], count: int | None, notes: list[str]) -> Iterator[Any]:
    left = count
    for item in items:
        size = samples_in(item)
        if left is not None and size > left:
            notes.append(f"only the first {count} samples were used, as asked")
            if left:
                yield take(item, slice(0, left))
            return
        if left is not None:
            left -= size
        yield item


def take(batch: Any, rows: slice) -> Any:
    """The given samples of a batch; what has no batch axis of its length is kept whole."""
    size = samples_in(batch)

    def part(value: Any) -> Any:
        has_axis = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == size
        return value[rows] if has_axis else value

    if isinstance(batch, Mapping):
        return {name: part(value) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(part(value) for value in batch)
    return part(batch)


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on `device`; a BatchEncoding becomes a plain dict."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(to_device(value, device) for value in batch)
    return batch


def _text_column(dataset: Any) -> str | None:
    """The column to tokenise, or None where `input_ids` or only numbers are there."""
    names = list(dataset.column_names)
    if "input_ids" in names:
        return None
    row = next(iter(dataset), None)
    if row is None:
        raise DataError("the calibration data set is empty")
    texts = [name for name in names if isinstance(row[name], str)]
    return "text" if "text" in texts else next(iter(texts), None)
