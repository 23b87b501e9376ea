"""Swapping an adapter's values in place, under a compiled model too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import corank
from corank.adapters import adapters
from corank.errors import SiteError
from tests.adapters.small import adapt, batches, operators, small_model, stir

METHODS = {m.key: m for m in corank.methods("adapt")}
X = batches(1)[0].float()


def carrying(key: str, seed: int, **params: Any) -> nn.Module:
    model, _ = adapt(METHODS[key], small_model(dtype=torch.float32), **params)
    stir(model, seed=seed)
    return model


@pytest.mark.parametrize("rank", [4, 2])
@torch.no_grad()
def test_a_compiled_model_needs_no_new_graph(rank: int, tmp_path: Path) -> None:
    model, other = carrying("lora", 2, rank=4), carrying("lora", 3, rank=rank, alpha=40.0)
    corank.save_adapter(other, tmp_path / "a")
    graphs = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=count, fullgraph=True)
    before = compiled(X)
    leaves = [id(p) for p in model.parameters()]
    assert len(graphs) == 1
    corank.load_adapter(model, tmp_path / "a", swap=True)
    after = compiled(X)
    assert len(graphs) == 1
    assert [id(p) for p in model.parameters()] == leaves
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, other(X))
    torch.testing.assert_close(after, model(X))
    assert adapters(model)["default"].parameters == {"rank": rank, "alpha": 40.0}


@torch.no_grad()
def test_an_equal_structure_is_swapped_bit_for_bit(tmp_path: Path) -> None:
    for key in ("lora", "dora", "pissa"):
        model, other = carrying(key, 2, rank=3), carrying(key, 3, rank=3)
        corank.save_adapter(other, tmp_path / "a")
        corank.load_adapter(model, tmp_path / "a", swap=True)
        assert torch.equal(model(X), other(X))


@torch.no_grad()
def test_peft_folders_swap_too(tmp_path: Path) -> None:
    model, other = carrying("lora", 2, rank=3), carrying("lora", 3, rank=3)
    corank.save_adapter(other, tmp_path / "a", format="peft")
    corank.load_adapter(model, tmp_path / "a", swap=True)
    torch.testing.assert_close(model(X), other(X))


@torch.no_grad()
def test_what_does_not_fit_is_refused_and_nothing_moves(tmp_path: Path) -> None:
    model = carrying("lora", 2, rank=2)
    expected = model(X)
    others = {
        r"rank 3 .* rank 2": carrying("lora", 3, rank=3),
        "RowNormalised does not fit a Sum": carrying("dora", 3, rank=2),
        "only one of the two": carrying("lora", 3, rank=2, targets=["0", "2"]),
        "2 parts|3 parts|does not fit": carrying("pissa", 3, rank=2),
    }
    for match, other in others.items():
        corank.save_adapter(other, tmp_path / "a")
        with pytest.raises(SiteError, match=match):
            corank.load_adapter(model, tmp_path / "a", swap=True)
        assert torch.equal(model(X), expected)
    with pytest.raises(ValueError, match="unknown adapter"):
        corank.load_adapter(model, tmp_path / "a", "other", swap=True)
    corank.adapters.merge_adapters(model)
    corank.save_adapter(carrying("lora", 3, rank=2), tmp_path / "a")
    with pytest.raises(ValueError, match="merged"):
        corank.load_adapter(model, tmp_path / "a", swap=True)


@torch.no_grad()
def test_own_parameters_swap(tmp_path: Path) -> None:
    options: dict[str, Any] = {"rank": 2, "targets": ["0"], "modules_to_save": ["4"]}
    model, other = carrying("lora", 2, **options), carrying("lora", 3, **options)
    corank.save_adapter(other, tmp_path / "a")
    corank.adapters.activate(model, [])
    bare = model(X)
    corank.load_adapter(model, tmp_path / "a", swap=True)
    assert torch.equal(model(X), bare)
    corank.adapters.activate(model, "default")
    assert torch.equal(model(X), other(X))
    assert operators(model)
