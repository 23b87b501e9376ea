"""Codes given to what takes floats, and settings of quantisers that cannot be."""

import copy

import pytest
import torch

import corank
from corank.models import find_sites, read
from corank.operators import Quantised

from .models import tiny_llama, tokens

SEVERAL = ["round_to_nearest", "awq", "svdquant", "lqer", "super_weight"]
QUANTISERS = [m.key for m in corank.methods("quantize") if {"quantises", "detaches"} & {*m.laws}]


@pytest.fixture(scope="module")
def codes():
    model = tiny_llama()
    corank.quantize(model, "round_to_nearest", group=16)
    return model


def unchanged(model, before):
    return all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("key", ["svd", "svd_llm", "curing", "compot", "monarch", "requant"])
def test_codes_are_refused_by_what_takes_floats(codes, key):
    before = copy.deepcopy(codes.state_dict())
    area = next(m.area for m in corank.methods() if m.key == key)
    verb = corank.quantize if area == "quantize" else corank.compress
    budget = {} if verb is corank.quantize else {"keep": 0.5}
    with pytest.raises(ValueError, match=r"q_proj .*quantised already.*corank\.merge"):
        verb(codes, key, data=tokens(), **budget)
    assert unchanged(codes, before)


def test_codes_are_repaired_where_the_original_is_given_and_merged_are_floats(codes):
    repaired, original = copy.deepcopy(codes), tiny_llama()
    corank.compress(repaired, "eora", rank=4, data=tokens(), original=original)
    for site in find_sites(repaired):
        kept = [part for part in read(repaired, site).modules() if isinstance(part, Quantised)]
        assert len(kept) == 1
        assert torch.equal(kept[0].codes, read(codes, site).codes)
    plain = corank.merge(copy.deepcopy(codes))
    corank.compress(plain, "svd", rank=4)


@pytest.mark.parametrize("key", QUANTISERS)
def test_bits_and_groups_outside_their_range_are_named(key):
    model = tiny_llama()
    before = copy.deepcopy(model.state_dict())
    for options, why in (
        ({"bits": 1}, "bits must be 2, 3"),
        ({"bits": 9}, "bits must be 2, 3"),
        ({"group": 0}, "group must be at least 1"),
    ):
        with pytest.raises(ValueError, match=why):
            corank.quantize(model, key, data=tokens(1), **options)
    if key in SEVERAL:
        with pytest.raises(ValueError, match=r"bits=2\.5: name one number"):
            corank.quantize(model, key, data=tokens(1), bits=2.5)
    assert unchanged(model, before)


@pytest.mark.parametrize(
    "key", [m.key for m in corank.methods("quantize") if m.recipe({}).needs or m.recipe({}).look]
)
def test_absent_calibration_is_named(key):
    model = tiny_llama()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"'{key}' needs calibration data .*give data="):
        corank.quantize(model, key)
    assert unchanged(model, before)


@pytest.mark.parametrize("key", ["round_to_nearest", "gptq", "requant", "signround"])
def test_a_rank_is_refused_where_there_is_none(key):
    with pytest.raises(ValueError, match="one size and no ranks: leave rank= out"):
        corank.quantize(tiny_llama(), key, rank=4, data=tokens(1))


def test_a_group_that_does_not_divide_a_row_is_short_at_its_end():
    model = tiny_llama()
    corank.quantize(model, "round_to_nearest", group=20, targets=["q_proj"])
    op = model.model.layers[0].self_attn.q_proj.operator
    whole = tiny_llama().model.layers[0].self_attn.q_proj.weight.detach()
    for part, last in ((whole[:, :20], False), (whole[:, 20:], True)):
        reach = part.amax(1).clamp(min=0) - part.amin(1).clamp(max=0)
        torch.testing.assert_close(op.scales()[:, int(last)], reach / 15)


@pytest.mark.parametrize("key", ["signround", "requant", "super_weight", "llm_int8"])
def test_products_are_refused_by_what_takes_one_matrix(key):
    model = tiny_llama()
    corank.compress(model, "svd", rank=8)
    before = copy.deepcopy(model.state_dict())
    steps = {"steps": 2} if key in ("signround", "requant") else {}
    with pytest.raises(ValueError, match=r"q_proj .*(one matrix|several).*corank\.merge"):
        corank.quantize(model, key, data=tokens(), **steps)
    assert unchanged(model, before)
    corank.quantize(corank.merge(model), key, data=tokens(), **steps)
