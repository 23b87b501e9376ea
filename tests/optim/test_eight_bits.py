"""Moments in eight bits."""

import copy

import pytest
import torch
from torch import nn

import corank
from corank.optim import eight_bits, state_bytes

from .small import keys, make, problem, run

CPU = torch.device("cpu")


@pytest.mark.parametrize("signed", [True, False])
def test_levels_are_those_of_torchao(signed):
    maps = pytest.importorskip("torchao.optim.quant_utils")
    theirs = torch.tensor(maps.create_dynamic_map(signed=signed))
    torch.testing.assert_close(eight_bits.levels(signed, CPU), theirs)


def test_packing_rounds_to_the_nearest_level_and_never_to_zero_squares():
    g = torch.Generator().manual_seed(0)
    state = {"exp_avg": torch.randn(40, 130, generator=g), "basis": torch.randn(64, 64)}
    state["exp_avg_sq"] = torch.rand(40, 130, generator=g) ** 20
    packed = eight_bits.pack(state, eight_bits.pack_afresh(state))
    assert packed["basis"] is state["basis"]
    assert packed["exp_avg"].dtype == torch.uint8
    assert packed["exp_avg_scales"].shape == (-(-40 * 130 // 256),)
    found = eight_bits.unpack(packed)
    scales = packed["exp_avg_scales"].repeat_interleave(256)[: 40 * 130].view(40, 130)
    shares = (state["exp_avg"] / scales)[..., None]
    nearest = (shares - eight_bits.levels(True, CPU)).abs().amin(-1) * scales
    torch.testing.assert_close((found["exp_avg"] - state["exp_avg"]).abs(), nearest)
    assert ((found["exp_avg_sq"] > 0) == (state["exp_avg_sq"] > 0)).all()
    assert (found["exp_avg_sq"].sqrt() - state["exp_avg_sq"].sqrt()).abs().max() < 0.02
    stacked = {n: torch.stack([v, v]) for n, v in packed.items() if n != "basis"}
    for name, value in eight_bits.unpack(stacked).items():
        assert torch.equal(value[1], found[name])


@pytest.mark.parametrize("key", keys())
def test_it_descends_about_as_well_and_resumes_exactly(key):
    own = make(key, [nn.Parameter(torch.ones(2, 2))]).defaults
    options = {"rank": 40, "density": 0.5, "residual": 0.5}
    options = {k: v for k, v in options.items() if k in own}

    def start(dtype):
        weight, loss = problem((80, 120))
        return weight, loss, make(key, [weight], state_dtype=dtype, **options)

    weight, loss, optimizer = start("float32")
    before, full = loss(weight).item(), state_bytes(optimizer)
    run(optimizer, weight, loss, 30)
    reached = loss(weight).item()
    weight, loss, optimizer = start("int8")
    assert state_bytes(optimizer) <= full
    run(optimizer, weight, loss, 15)
    twin = nn.Parameter(weight.detach().clone())
    second = make(key, [twin], state_dtype="int8", **options)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for some, of in ((optimizer, weight), (second, twin)):
        run(some, of, loss, 15)
    assert torch.equal(weight, twin)
    assert loss(weight).item() - reached < 0.1 * (before - reached)


def test_bytes_are_counted_and_a_quarter():
    with torch.device("meta"):
        weight = nn.Parameter(torch.empty(512, 1024))
    made = (corank.optim.GaLore([weight], rank=64, state_dtype=t) for t in ("float32", "int8"))
    full, small = map(state_bytes, made)
    moments, basis = 2 * 64 * 1024, 4 * 512 * 64
    assert full == 4 * moments + basis
    assert small == moments + 4 * moments // 256 + basis
