"""Frozen random matrices of which a file holds the seed."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import corank
from corank.layers import Linear
from corank.operators import Adapted, Base, Dense, Product, Seeded, Sum, build, describe


def test_draws_depend_on_neither_dtype_nor_rows() -> None:
    long, short = Seeded((300, 7), 4), Seeded((11, 7), 4)
    assert torch.equal(long.matrix[:11], short.matrix)
    half = Seeded((11, 7), 4).to(torch.bfloat16)
    assert torch.equal(half.matrix, short.matrix.bfloat16())
    assert torch.equal(half.to(torch.float32).matrix, short.matrix)  # drawn anew, not rounded
    assert torch.equal(Seeded((11, 7), 4, precision="float64").matrix, short.matrix.double())
    assert not torch.equal(Seeded((11, 7), 5).matrix, short.matrix)


@pytest.mark.parametrize("law", ["uniform", "ternary"])
def test_laws_have_mean_zero_and_variance_a_third(law: str) -> None:
    drawn = Seeded((400, 400), 1, law).matrix
    assert abs(drawn.mean()) < 0.01
    assert abs(drawn.var() - 1 / 3) < 0.01
    assert drawn.abs().max() <= 1


def test_equal_matrices_share_their_memory_wherever_they_go() -> None:
    one, two = Seeded((5, 7), 4), Seeded((5, 7), 4)
    assert one.matrix is two.matrix
    pair = nn.ModuleList([one, two]).to(torch.float64)
    assert one.matrix is two.matrix
    assert pair[0].matrix.dtype == torch.float64


def test_only_the_seed_is_stored_and_it_is_verified() -> None:
    op = Seeded((5, 7), 4, scale=0.5)
    assert not op.state_dict()
    assert op.numel() == op.bytes() == 0
    skeleton = json.loads(json.dumps(describe(op)))
    assert torch.equal(build(skeleton, "cpu").dense(), op.dense())
    with pytest.raises(ValueError, match="other random numbers"):
        build(skeleton | {"checksum": "0" * 16}, "cpu")
    with pytest.raises(ValueError, match="law"):
        Seeded((5, 7), 4, "normal")
    assert torch.equal(op.stored().weight, op.matrix)


def test_on_the_meta_device_it_waits_for_values() -> None:
    op = Seeded((5, 7), 4)
    empty = build(describe(op))
    assert empty.dense().is_meta
    again = copy.deepcopy(empty)
    again.load_state_dict({})
    assert torch.equal(again.dense(), op.matrix)
    assert torch.equal(empty.to_empty(device="cpu").dense(), op.matrix)


def test_a_saved_model_holds_no_random_number(tmp_path) -> None:
    def model() -> nn.Sequential:
        return nn.Sequential(nn.Linear(7, 5))

    plain = model()
    seeded = Product(Dense(nn.Parameter(torch.randn(5, 5))), Seeded((5, 7), 4))
    op = Adapted(
        Sum(Base((5, 7)), seeded), base=Dense(plain[0].weight.detach()), names=("a",), weights=(1,)
    )
    plain[0] = Linear(op, plain[0].bias)
    corank.save(plain, tmp_path / "saved")
    skeleton = json.loads((tmp_path / "saved" / "corank.json").read_text())
    assert not skeleton["transient"]
    again = corank.load(tmp_path / "saved", model)
    x = torch.randn(3, 7)
    assert torch.equal(again(x), plain(x))


def test_transformers_draws_it_again(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    from ..io.tiny import llama

    model = llama()
    corank.adapt(model, "vera", targets=["q_proj", "v_proj"], rank=3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = torch.arange(6)[None]
    torch.testing.assert_close(again(tokens).logits, model(tokens).logits)
