"""Statistics the slow way: module inputs recorded whole, then loops over tokens and samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from corank.models import Site, read


def padded_batches(count: int = 3, vocab: int = 64) -> list[dict[str, Tensor]]:
    """Batches of three sequences of lengths 7, 5 and 6, padded on the right."""
    made = []
    for index in range(count):
        generator = torch.Generator().manual_seed(index)
        mask = (torch.arange(7) < torch.tensor([[7], [5], [6]])).long()
        ids = torch.randint(3, vocab, (3, 7), generator=generator) * mask
        made.append({"input_ids": ids, "attention_mask": mask})
    return made


def inputs_of(model: nn.Module, site: Site, batches: list[Any]) -> list[Tensor]:
    """Every unpadded token vector that reached a linear site, one by one, float64."""
    seen: list[Tensor] = []
    module = model.get_submodule(site.name)
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    tokens: list[Tensor] = []
    with torch.no_grad():
        for batch in batches:
            model(**batch)
            x = seen.pop().reshape(*batch["input_ids"].shape, -1)
            for sample, row in enumerate(batch["attention_mask"]):
                tokens += [x[sample, t].double() for t in range(len(row)) if row[t]]
    handle.remove()
    return tokens


def singles(batches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The samples of the batches one by one, without their padding."""
    made = []
    for batch in batches:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            made.append({"input_ids": ids[mask.bool()][None]})
    return made


def token_losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The mean of -log p(token t+1 | tokens up to t), token by token."""
    logits, ids = model(**batch).logits[0].double(), batch["input_ids"][0]
    terms = [-logits[t].log_softmax(-1)[ids[t + 1]] for t in range(len(ids) - 1)]
    return torch.stack(terms).mean()


def weight_gradients(model: nn.Module, sites: list[Site], loss: Tensor) -> list[Tensor]:
    """dL/dW by autograd at every site, as canonical matrices, float64."""

    def stored(site: Site) -> Tensor:
        if site.kind == "expert":
            return model.get_parameter(f"{site.expert[0]}.{site.expert[1]}")
        return model.get_submodule(site.name).weight

    found = torch.autograd.grad(loss, [stored(site) for site in sites])
    made = []
    for site, gradient in zip(sites, found, strict=True):
        if site.kind == "expert":
            gradient = gradient[site.expert[2]]
        elif site.kind == "conv1d_transposed":
            gradient = gradient.T
        assert gradient.flatten(1).shape == read(model, site).shape
        made.append(gradient.flatten(1).double())
    return made
