"""Weights that stand in several places stay one weight, or are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from corank.errors import SiteError
from corank.models import densify, find_sites, install, read, snapshot, survey

from .families import call, full_rank, half_rank, make

TIED = ["bert", "gpt2", "opt", "qwen2", "gemma", "t5"]


@pytest.mark.parametrize("family", TIED)
def test_one_operator_in_every_place(family: str) -> None:
    model = make(family)
    (site,) = find_sites(model, "re:.*") and [s for s in find_sites(model, "all") if s.tied]
    before = sum(p.numel() for p in model.parameters())
    op = half_rank(read(model, site))
    install(model, site, op)
    places = [model.get_submodule(path) for path in (site.name, *site.tied)]
    assert all(place.operator is op for place in places)
    saved = site.shape[0] * site.shape[1] - op.numel()
    assert sum(p.numel() for p in model.parameters()) == before - saved
    expected = call(model, family)
    model.tie_weights()  # as from_pretrained and others do at any time
    assert all(place.operator.b is op.b for place in places)
    torch.testing.assert_close(call(model, family), expected)
    with pytest.raises(SiteError, match="can be given no bias"):
        install(model, site, op, torch.zeros(site.shape[0]))

    densify(model, site)
    weights = [model.get_submodule(path).weight for path in (site.name, *site.tied)]
    assert all(weight is weights[0] for weight in weights)
    model.tie_weights()
    torch.testing.assert_close(call(model, family), expected, atol=1e-5, rtol=1e-4)


def test_transformers_saves_a_tied_operator_once(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = make("qwen2")
    (site,) = find_sites(model, ["lm_head"])
    install(model, site, half_rank(read(model, site)))
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert [name for name in stored if "embed" in name or "lm_head" in name] == [
        "model.embed_tokens.operator.a",
        "model.embed_tokens.operator.b",
    ]


def test_linear_layers_that_share_a_weight() -> None:
    model = nn.ModuleDict(
        {"one": nn.Linear(4, 4), "two": nn.Linear(4, 4), "three": nn.Linear(4, 4)}
    )
    model["two"].weight = model["one"].weight
    model["four"] = model["three"]
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    expected = [model[name](x) for name in model]
    sites = find_sites(model)
    assert [(site.name, site.tied) for site in sites] == [("one", ("two",)), ("three", ("four",))]
    for site in sites:
        install(model, site, full_rank(read(model, site)))
    assert model["one"].operator is model["two"].operator
    assert model["three"] is model["four"]
    for name, y in zip(model, expected, strict=True):  # each kept its own bias
        torch.testing.assert_close(model[name](x), y)
    for site in sites:
        densify(model, site)
    assert model["one"].weight is model["two"].weight
    assert model["three"] is model["four"]


def test_ties_that_cannot_be_kept_are_refused() -> None:
    from transformers.pytorch_utils import Conv1D

    class Reader(nn.Module):
        def __init__(self, weight: nn.Parameter) -> None:
            super().__init__()
            self.table = weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.table)

    model = nn.ModuleDict({"wide": nn.Linear(4, 4), "tall": Conv1D(4, 4), "free": nn.Linear(4, 4)})
    model["tall"].weight = model["wide"].weight
    model["used"] = nn.Linear(4, 4)
    model["reader"] = Reader(model["used"].weight)
    sites, refused = survey(model)
    assert [site.name for site in sites] == ["free"]
    reasons = {refusal.name: refusal.reason for refusal in refused}
    assert "conv1d_transposed and linear in wide, tall" in reasons["wide"] == reasons["tall"]
    assert "also held by reader" in reasons["used"]
    with pytest.raises(SiteError, match="untie"):
        find_sites(model, ["used"])


def test_a_snapshot_brings_modules_ties_and_flags_back() -> None:
    model = make("qwen2")
    expected, names = call(model, "qwen2"), list(model.state_dict())
    ties, modules = dict(model.all_tied_weights_keys), dict(model.named_modules())
    sites = find_sites(model, "all")
    restore = snapshot(model, sites)
    for site in sites:
        install(model, site, half_rank(read(model, site)))
    model.requires_grad_(False)
    restore()
    assert dict(model.named_modules()) == modules
    assert list(model.state_dict()) == names
    assert (model.all_tied_weights_keys, "_tied_weights_keys" in vars(model)) == (ties, False)
    assert all(p.requires_grad for p in model.parameters())
    model.tie_weights()
    torch.testing.assert_close(call(model, "qwen2"), expected)


def test_a_snapshot_brings_experts_back() -> None:
    model = make("mixtral")
    first, second, *_ = find_sites(model, ["down_proj"])
    install(model, first, half_rank(read(model, first)))
    expected = call(model, "mixtral")
    restore = snapshot(model, [first, second])
    install(model, first, half_rank(read(model, first)))
    install(model, second, half_rank(read(model, second)))
    restore()
    torch.testing.assert_close(call(model, "mixtral"), expected, atol=0, rtol=0)
    assert model.get_submodule(first.path).rewritten == {("down_proj", 0)}
