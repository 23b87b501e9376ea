from __future__ import annotations

import pytest
import torch
from torch import Tensor

from corank.layers import Embedding, rows
from corank.layers import embedding as module_under_test
from corank.operators import Dense, Diagonal, LowRank, Operator, Product, Scaled, Sum


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _operators() -> dict[str, Operator]:
    gate, mask = _random(3, seed=2), torch.tensor([True, False, True])
    low_rank = LowRank(_random(9, 3), _random(3, 5, seed=1), gate, mask)
    narrow = LowRank(_random(5, 2), _random(2, 5, seed=7), gate[:2], mask[:2])
    return {
        "Dense": Dense(_random(9, 5)),
        "LowRank": low_rank,
        "Sum": Sum(Dense(_random(9, 5)), low_rank),
        "Scaled": Scaled(low_rank, -0.5),
        "Product": Product(low_rank, narrow, Diagonal(_random(5))),
    }


IDS = torch.tensor([[0, 3, 8], [3, 3, 1]])


@pytest.mark.parametrize("kind", _operators())
def test_rows_are_those_of_the_dense_table(kind: str) -> None:
    op = _operators()[kind]
    torch.testing.assert_close(rows(op, IDS), op.dense()[IDS])
    layer = Embedding(op)
    assert (layer.num_embeddings, layer.embedding_dim) == (9, 5)
    torch.testing.assert_close(layer.weight + 0, op.dense())


@pytest.mark.parametrize("kind", _operators())
def test_the_padding_row_gets_no_gradient(kind: str) -> None:
    op = _operators()[kind].requires_grad_(True)
    Embedding(op, padding_idx=3)(IDS).square().sum().backward()
    found = {name: leaf.grad.clone() for name, leaf in op.named_parameters()}
    tables = {"Dense": "weight", "LowRank": "b", "Scaled": "operator.b", "Product": "operators.0.b"}
    if kind in tables:
        assert found[tables[kind]][3].abs().sum() == 0
        assert found[tables[kind]][8].abs().sum() > 0


def test_bias_and_scale() -> None:
    op, bias, scale = _operators()["LowRank"], _random(5, seed=4), torch.tensor(3.0)
    layer = Embedding(op, bias=bias, embed_scale=scale)
    torch.testing.assert_close(layer(IDS), (op.dense()[IDS] + bias) * 3)
    assert list(layer.state_dict()) == [
        "bias",
        "operator.b",
        "operator.a",
        "operator.gate",
        "operator.mask",
    ]


@pytest.mark.parametrize("kind", ["LowRank", "Scaled", "Dense"])
def test_a_lookup_builds_no_table(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(module_under_test, "dense_of", lambda op: sizes.append(1) or op.dense())
    rows(_operators()[kind], IDS)
    assert sizes == ([1] if kind == "Dense" else [])


@pytest.mark.parametrize("kind", _operators())
def test_autocast_keeps_the_tables_dtype(kind: str) -> None:
    op = _operators()[kind]
    with torch.autocast("cpu", torch.bfloat16):
        assert Embedding(op)(IDS).dtype == torch.float32
    assert Embedding(op.bfloat16())(IDS).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", _operators())
def test_compiles(kind: str) -> None:
    torch._dynamo.reset()
    layer = Embedding(_operators()[kind])
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(IDS), layer(IDS))
