"""How closely a model still does what the original did."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from ..calibration.data import to_device
from ..calibration.running import call, device_of, untouched

#: How many nearest neighbours are compared; with fewer samples than twice this, none are.
NEIGHBOURS = 10


def measure_fidelity(
    original: nn.Module, compressed: nn.Module, batches: Iterable[Any], domain: str
) -> list[dict[str, Any]]:
    """Rows {domain, measure, before, after, unit} on held-out batches.

    A causal language model: "perplexity", exp of the mean cross-entropy over predicted tokens.
    An encoder (an output with `last_hidden_state`): "mean cosine" between the two models' mean
    pooled outputs, and, from 20 samples on, "neighbour overlap at 10": the mean share of each
    sample's 10 nearest others (by cosine) that stay. Any model: "relative output error",
    ||Y' - Y|| / ||Y|| over all outputs, in the Frobenius norm. Padding counts nowhere.

    batches: what the models are called with; each batch is run through both models.
    Raises ValueError for no batches.
    """
    return measure_each(original, {"compressed": compressed}, batches, domain)["compressed"]


@torch.no_grad()
def measure_each(
    original: nn.Module, models: Mapping[str, nn.Module], batches: Iterable[Any], domain: str
) -> dict[str, list[dict[str, Any]]]:
    """`measure_fidelity` of several models in one pass over the batches: name -> rows."""
    tallies = {name: _Tally() for name in models}
    count = 0
    for batch in batches:
        count += 1
        before = _run(original, batch)
        for name, model in models.items():
            tallies[name].add(batch, before, _run(model, batch))
    if not count:
        raise ValueError(f"no held-out batches for {domain!r}: give at least one")
    return {name: tally.rows(domain) for name, tally in tallies.items()}


class _Output:
    """What one model gave for one batch, on the CPU."""

    def __init__(self, value: Tensor, kind: str) -> None:
        self.value, self.kind = value.detach().float().cpu(), kind


class _Tally:
    """Sums over batches, enough for every measure."""

    def __init__(self) -> None:
        self.kind = ""
        self.difference = self.size = 0.0
        self.losses, self.tokens = [0.0, 0.0], 0
        self.pooled: tuple[list[Tensor], list[Tensor]] = ([], [])

    def add(self, batch: Any, before: _Output, after: _Output) -> None:
        self.kind = before.kind
        mask = _mask_of(batch, before.value)
        kept = [x.value if mask is None else x.value[mask.bool()] for x in (before, after)]
        self.difference += (kept[1] - kept[0]).double().square().sum().item()
        self.size += kept[0].double().square().sum().item()
        if self.kind == "causal":
            labels = _next_tokens(batch, mask)
            self.tokens += int((labels != -100).sum())
            for i, output in enumerate((before, after)):
                logits = output.value[:, :-1].flatten(0, 1)  # (predictions, vocabulary)
                loss = cross_entropy(logits, labels.flatten(), reduction="sum", ignore_index=-100)
                self.losses[i] += loss.item()
        if self.kind == "encoder":
            for pooled, output in zip(self.pooled, (before, after), strict=True):
                pooled.append(_pool(output.value, mask))

    def rows(self, domain: str) -> list[dict[str, Any]]:
        found: list[tuple[str, float, float, str]] = []
        if self.kind == "causal" and self.tokens:
            before, after = (math.exp(min(loss / self.tokens, 700.0)) for loss in self.losses)
            found.append(("perplexity", before, after, "per token"))
        if self.kind == "encoder":
            original, other = (normalize(torch.cat(x), dim=-1) for x in self.pooled)
            cosine = (original * other).sum(-1).mean().item()
            found.append(("mean cosine", 1.0, cosine, "-1 to 1"))
            if len(original) >= 2 * NEIGHBOURS:
                overlap = neighbour_overlap(original, other, NEIGHBOURS)
                found.append((f"neighbour overlap at {NEIGHBOURS}", 1.0, overlap, "0 to 1"))
        error = math.sqrt(self.difference / self.size) if self.size else 0.0
        found.append(("relative output error", 0.0, error, "of the norm"))
        return [
            {"domain": domain, "measure": m, "before": b, "after": a, "unit": u}
            for m, b, a, u in found
        ]


def neighbour_overlap(first: Tensor, second: Tensor, count: int) -> float:
    """The mean share of each row's `count` nearest other rows that agree between two tables.

    first, second: unit rows (samples, dim). In [0, 1]; by chance about count / samples.
    """
    nearest = []
    for table in (first, second):
        similar = table @ table.T
        similar.fill_diagonal_(-math.inf)
        chosen = torch.zeros_like(similar, dtype=torch.bool)
        nearest.append(chosen.scatter_(1, similar.topk(count, dim=1).indices, True))
    return (nearest[0] & nearest[1]).sum().item() / (count * len(first))


def _run(model: nn.Module, batch: Any) -> _Output:
    with untouched(model):
        output = call(model, to_device(batch, device_of(model)))
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return _Output(logits, "causal" if _predicts_next(model) else "other")
    hidden = getattr(output, "last_hidden_state", None)
    if isinstance(hidden, Tensor):
        return _Output(hidden, "encoder" if hidden.ndim == 3 else "other")
    if isinstance(output, Mapping):
        output = tuple(output.values())
    while isinstance(output, (tuple, list)):
        output = output[0]
    return _Output(output, "other")


def _predicts_next(model: nn.Module) -> bool:
    config = getattr(model, "config", None)
    if config is None or getattr(config, "is_encoder_decoder", False):
        return False
    return type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))


def _mask_of(batch: Any, output: Tensor) -> Tensor | None:
    """The attention mask, where the output has a row for each of its entries."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if isinstance(mask, Tensor) and mask.ndim == 2 and output.shape[:2] == mask.shape:
        return mask.cpu()
    return None


def _next_tokens(batch: Any, mask: Tensor | None) -> Tensor:
    """The token after each position but the last, -100 where there is none to predict."""
    named = isinstance(batch, Mapping)
    labels = batch.get("labels", batch["input_ids"]) if named else batch
    labels = (labels if isinstance(labels, Tensor) else labels[0]).cpu().long()[:, 1:]
    return labels if mask is None else labels.masked_fill(mask[:, 1:] == 0, -100)


def _pool(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over the tokens that are no padding: (batch, tokens, dim) -> (batch, dim)."""
    weight = torch.ones(hidden.shape[:2]) if mask is None else mask.float()
    weight = weight.unsqueeze(-1)
    return (hidden * weight).sum(1) / weight.sum(1).clamp_min(1.0)
