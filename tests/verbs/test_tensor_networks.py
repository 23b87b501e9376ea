"""Methods that read weights as tensors, on whole models."""

import copy

import pytest
import torch
from torch import nn

import corank
from corank.errors import SiteError
from corank.layers import convolution
from corank.models import Site, find_sites, read
from corank.operators import Dense, LowRank, Polyadic
from corank.recipes.grouping import across_layers
from corank.registry import METHODS
from corank.rewrites import Unit
from corank.rewrites.factoring import central_digits

from .models import tiny_llama, tokens


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tiny_cnn():
    """A kernel that is a sum of outer products, one whose filters span few, a last one of no kind.

    The second one's taps differ in number from axis to axis, the last one is of one dimension.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(6, 8, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(8, 6, (3, 2), padding=2),
        nn.Flatten(2), nn.Conv1d(6, 8, 3, dilation=2), nn.AdaptiveAvgPool1d(4), nn.Linear(4, 3),
    )  # fmt: skip
    factors = [drawn(n, 3, seed=i) for i, n in enumerate((8, 6, 3, 3))]
    model[0].weight.data = torch.einsum("or,ir,hr,wr->oihw", *factors)
    model[2].weight.data = (drawn(6, 2) @ drawn(2, 8 * 6, seed=2)).view(6, 8, 3, 2)
    return model.eval()


def operators(model):
    return {s.name: read(model, s) for s in find_sites(model, "all")}


@pytest.fixture(scope="module")
def mixed():
    model = tiny_cnn()
    report = corank.compress(model, "mixed_td", keep=0.3, targets="all")
    return model, report


def test_each_convolution_gets_the_decomposition_that_fits_it(mixed):
    model, report = mixed
    assert report.totals["bytes_after"] <= 0.3 * report.totals["bytes_before"]
    found = operators(model)
    assert isinstance(found["0"], Polyadic)
    assert isinstance(found["2"], LowRank)
    assert sum(op.bytes() for op in found.values()) == report.totals["bytes_after"]
    errors = {row.name: row.error for row in report.sites}
    assert errors["0"] < 1e-2
    assert errors["2"] < 1e-6


def test_a_polyadic_convolution_runs_as_small_ones_and_is_the_merged_one(mixed, monkeypatch):
    model, x = copy.deepcopy(mixed[0]), drawn(2, 6, 9, 9)
    monkeypatch.setattr(convolution, "dense_of", None)
    y = model(x)
    monkeypatch.undo()
    corank.merge(model)
    assert isinstance(model[0], nn.Conv2d)
    torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-5)


def test_it_is_saved_and_read_bit_for_bit(mixed, tmp_path):
    model, x = mixed[0], drawn(2, 6, 9, 9)
    corank.save(model, tmp_path)
    again = corank.load(tmp_path, builder=tiny_cnn).eval()
    assert isinstance(operators(again)["0"], Polyadic)
    assert torch.equal(again(x), model(x))


def test_all_that_fits_in_full_is_left_as_it_is():
    model, x = tiny_cnn(), drawn(2, 6, 9, 9)
    wanted = model(x)
    corank.compress(model, "mixed_td", keep=1.0, targets=["0", "6"])
    assert {type(op) for op in operators(model).values()} == {Dense}
    assert torch.equal(model(x), wanted)


def test_the_menu_counts_what_is_stored_and_half_precision_stays():
    model = tiny_cnn().to(torch.bfloat16)
    site = next(s for s in find_sites(model, "all") if s.name == "0")
    unit, family = Unit([site], [read(model, site)]), METHODS["mixed_td"].recipe({}).family
    menu = family.menu(unit)
    assert {size[0] for size in menu.sizes[:-1]} == {"svd", "cp"}
    assert menu.sizes[-1] is None
    for size, cost in zip(menu.sizes[:-1], menu.costs, strict=False):
        (op,) = family.build(unit, size)
        assert family.counts(unit, size) == [(op.numel(), op.bytes())]
        assert (op.bytes(), op.dtype) == (cost, torch.bfloat16)


def test_a_rank_does_not_say_which_decomposition():
    model = tiny_cnn()
    with pytest.raises(SiteError, match=r"^0: 3 alone is no size.*keep= or size="):
        corank.compress(model, "mixed_td", rank=3, targets=["0"])
    assert type(model[0]) is nn.Conv2d


@pytest.fixture
def shared():
    model = tiny_llama(num_hidden_layers=3)
    report = corank.compress(model, "mpoe", keep=0.4)
    return model, report


def test_the_same_weight_of_all_layers_shares_one_core(shared):
    model, report = shared
    found = operators(model)
    for name in ("self_attn.k_proj", "mlp.down_proj"):
        cores = [found[f"model.layers.{i}.{name}"].operators[2].weight for i in range(3)]
        assert cores[0] is cores[1] is cores[2]
    keys = [op for name, op in found.items() if name.endswith("k_proj")]
    values = [op for name, op in found.items() if name.endswith("v_proj")]
    assert keys[0].operators[2].weight is not values[0].operators[2].weight
    assert report.totals["bytes_after"] <= 0.4 * report.totals["bytes_before"]


def test_shared_cores_are_saved_once_read_bit_for_bit_and_merged(shared, tmp_path):
    from transformers import AutoModelForCausalLM

    model, ids = shared[0], tokens(1)[0]["input_ids"]
    wanted = model(ids).logits
    corank.save(model, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, wanted)
    found = operators(again)
    assert found["model.layers.0.mlp.up_proj"].operators[2].weight is (
        found["model.layers.2.mlp.up_proj"].operators[2].weight
    )
    corank.merge(again)
    torch.testing.assert_close(again(ids).logits, wanted, rtol=1e-4, atol=1e-4)


def test_layers_that_are_alike_are_kept_in_full():
    model = tiny_llama(num_hidden_layers=3)
    first = model.model.layers[0].state_dict()
    for i, layer in enumerate(model.model.layers):
        layer.load_state_dict({k: (i + 1) * v if "proj" in k else v for k, v in first.items()})
    wanted = model(tokens(1)[0]["input_ids"]).logits
    corank.compress(model, "mpoe", rank=1000 // 32)
    torch.testing.assert_close(
        model(tokens(1)[0]["input_ids"]).logits, wanted, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("bad", [{"order": 4}, {"order": 1}, {"steps": 0}])
def test_an_order_without_a_middle_is_refused(bad):
    with pytest.raises(ValueError, match="an odd order of 3 or more"):
        corank.compress(tiny_llama(), "mpoe", keep=0.5, **bad)


def test_sides_are_cut_in_factors_with_the_largest_in_the_middle():
    for size, digits in ((768, (4, 4, 4, 4, 3)), (11008, (4, 8, 43, 4, 2)), (97, (1, 1, 97, 1, 1))):
        assert central_digits(size, 5) == digits


def test_the_same_place_of_two_stacks_is_two_places():
    names = ["enc.block.0.layer.1.wi", "enc.block.1.layer.1.wi", "dec.block.0.layer.1.wi",
             "enc.block.0.layer.0.wi"]  # fmt: skip
    sites = [Site(n, "up", int(n.split(".")[2]), (4, 4), False, "linear") for n in names]
    sites.append(Site("shared.0.w", "embed", None, (4, 4), False, "embedding"))
    groups = [[site.name for site in group] for group in across_layers(sites)]
    assert groups == [names[:2], [names[2]], [names[3]], ["shared.0.w"]]
