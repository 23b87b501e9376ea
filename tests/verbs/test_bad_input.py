"""Bad input: a message that names the place and the remedy, and a model left as it was."""

import copy

import pytest
import torch
from torch import nn

import corank
from corank.errors import DataError, SiteError

from ..models.families import FAMILIES, make
from .models import tiny_llama, tiny_mlp, tokens, vectors


@pytest.fixture
def model():
    return tiny_llama()


@pytest.fixture(autouse=True)
def unchanged(model):
    """Whatever a test does, the model keeps its modules, values and flags."""
    before = copy.deepcopy(model)
    yield
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    flags = {n: p.requires_grad for n, p in before.named_parameters()}
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    for name, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[name].nan_to_num(7), value.nan_to_num(7)), name


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(value):
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = value
    with pytest.raises(SiteError, match=r"layers\.1\.mlp\.up_proj.*1 NaN or infinite.*[Rr]epair"):
        corank.compress(model, "svd", keep=0.5)
    assert isinstance(model.model.layers[0].mlp.up_proj, nn.Linear)


@pytest.mark.parametrize(("verb", "key"), [("compress", "svd"), ("quantize", "round_to_nearest")])
def test_values_whose_squares_leave_the_range_are_named(verb, key):
    model = tiny_mlp()
    with torch.no_grad():
        model[2].weight.mul_(1e30)
    options = {"keep": 0.5} if verb == "compress" else {}
    with pytest.raises(SiteError, match=r"^2 .*leave the range of torch\.float32.*Rescale"):
        getattr(corank, verb)(model, key, **options)
    assert type(model[0]) is nn.Linear


def test_activations_that_are_not_finite_are_named():
    model = tiny_mlp()
    bad = vectors()
    bad[2][1, 4] = torch.nan
    with pytest.raises(SiteError, match=r"^0"):
        corank.compress(model, "svd_llm", keep=0.5, data=bad)
    assert type(model[0]) is nn.Linear


def test_empty_data(model):
    with pytest.raises(DataError, match="empty"):
        corank.compress(model, "svd_llm", keep=0.5, data=[])


def test_missing_data_names_the_statistics(model):
    with pytest.raises(DataError, match=r"'svd_llm' needs calibration data \(gram\): give data="):
        corank.compress(model, "svd_llm", keep=0.5)


def test_one_sample_is_allowed_and_noted():
    report = corank.compress(tiny_llama(), "svd_llm", keep=0.5, data=tokens(1, batch=1))
    assert any("single sample" in note for note in report.notes)


def test_a_tokenizer_that_does_not_fit(model):
    ids = tokens(1)
    ids[0]["input_ids"][0, 0] = 64
    with pytest.raises(DataError, match="64"):
        corank.compress(model, "svd_llm", keep=0.5, data=ids)


@pytest.mark.parametrize("rank", [0, -1, 17, 2.5, True])
def test_impossible_ranks_name_the_site(model, rank):
    with pytest.raises(SiteError, match=r"layers\.0\.self_attn\.k_proj.*outside 1 to 16"):
        corank.compress(model, "svd", rank=rank, targets=["k_proj"])


@pytest.mark.parametrize("keep", [0, -0.1, 1.01, float("nan")])
def test_keep_outside_its_range(model, keep):
    with pytest.raises(ValueError, match=r"outside \(0, 1\]"):
        corank.compress(model, "svd", keep=keep)


def test_keep_below_the_smallest_reachable_names_that_size(model):
    with pytest.raises(ValueError, match="below the smallest reachable"):
        corank.compress(model, "svd", keep=0.001)


@pytest.mark.parametrize("budget", [{}, {"keep": 0.5, "rank": 4}, {"keep": 0.5, "size": "1B"}])
def test_exactly_one_budget(model, budget):
    with pytest.raises(ValueError, match="exactly one"):
        corank.compress(model, "svd", **budget)


@pytest.mark.parametrize("size", ["", "big", "-3GB", "1.2.3GB", "5XB"])
def test_sizes_that_cannot_be_read(model, size):
    with pytest.raises(ValueError, match=r"cannot read the size|exactly one"):
        corank.compress(model, "svd", size=size)


def test_sizes_that_cannot_be_met(model):
    with pytest.raises(ValueError, match="not targeted"):
        corank.compress(model, "svd", size="1KB")


@pytest.mark.parametrize(
    ("call", "near"),
    [
        (lambda m: corank.compress(m, "svd_lm", keep=0.5), "svd_llm"),
        (lambda m: corank.compress(m, "svd", keep=0.5, targets=["q_prj"]), "q_proj"),
        (lambda m: corank.compress(m, "asvd", keep=0.5, alhpa=1.0), "alpha"),
        (lambda m: corank.compress(m, "svd", keep=0.5, allocate="gredy"), "greedy"),
        (lambda m: corank.compress(m, "spectrum", keep=0.5), "unknown compress method"),
    ],
    ids=["method", "target", "parameter", "allocator", "not a compression method"],
)
def test_unknown_names_come_with_the_nearest(model, call, near):
    with pytest.raises(ValueError, match=near):
        call(model)


def test_parameters_outside_their_range(model):
    for key, params in (
        ("asvd", {"alpha": -1.0}),
        ("svd_llm", {"ridge": -0.1}),
        ("kfac_svd", {"shrink": 1.0}),
        ("basis_sharing", {"layers": 0}),
        ("eora", {"bits": 1}),
        ("fwsvd", {"axis": "up"}),
    ):
        with pytest.raises(ValueError, match=next(iter(params))):
            corank.compress(model, key, keep=0.5, data=tokens(), **params)


@pytest.mark.parametrize("method", ["svd", ["svd", "gptq"], "auto"], ids=["one", "steps", "auto"])
def test_a_model_in_which_nothing_is_targeted(method):
    data = [next(iter(FAMILIES["cnn"].inputs().values()))] * 2
    with pytest.raises(ValueError, match=r"no targeted weight can be rewritten; .* groups"):
        corank.compress(make("cnn"), method, keep=0.5, data=data)


def test_tuning_norms_of_a_model_without_any():
    model = tiny_mlp()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="this model has none"):
        corank.quantize(model, "norm_tweaking", data=vectors(), heal_steps=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_meta_model_is_refused_where_values_are_needed():
    with torch.device("meta"):
        model = tiny_llama()
    with pytest.raises(SiteError, match="meta device"):
        corank.compress(model, "svd", keep=0.5)


def test_integer_weights_are_refused():
    model = tiny_mlp()
    model[0].weight = nn.Parameter(torch.ones(30, 20, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"integer|int8|0"):
        corank.compress(model, "svd", keep=0.5, targets=["0"])


def test_a_site_that_already_has_factors_is_compressed_further_or_left():
    model = tiny_mlp()
    corank.compress(model, "svd", rank=10)
    report = corank.compress(model, "svd", rank=4)
    assert [row.rank for row in report.sites] == [4, 4]
    assert [row.numel_before for row in report.sites] == [500, 500]


def test_a_failure_half_way_puts_everything_back(model, monkeypatch):
    from corank.engine import rewriting

    installed = []

    def failing(model, site, op, bias=None):
        if len(installed) == 3:
            raise RuntimeError("the machine is on fire")
        installed.append(site)
        return real(model, site, op, bias)

    real = rewriting.install
    monkeypatch.setattr(rewriting, "install", failing)
    with pytest.raises(RuntimeError, match="on fire"):
        corank.compress(model, "svd_llm", keep=0.5, data=tokens(), cascade="original")
    assert len(installed) == 3


def test_healing_that_diverges_restores_the_weights():
    model, original = tiny_llama(1), tiny_llama(2)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="learning_rate"):
        corank.heal(model, original, tokens(), steps=50, learning_rate=1e20)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


def test_healing_needs_one_length_and_something_to_train(model):
    with pytest.raises(ValueError, match="exactly one"):
        corank.heal(model, model, tokens())
    frozen = tiny_llama().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to heal"):
        corank.heal(frozen, frozen, tokens(), steps=1)
