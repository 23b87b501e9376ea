"""`corank.compress` on whole models: every method, the budget, the report."""

import copy
import math

import pytest
import torch

import corank
from corank.allocation import ALLOCATORS
from corank.calibration.outputs import outputs
from corank.healing.losses import channel_loss
from corank.models import find_sites, read, read_bias
from corank.operators import Dense, LowRank, Product
from corank.registry import METHODS

from ..models.families import FAMILIES, make
from .models import tiny_bert, tiny_llama, tiny_mlp, tokens, vectors, whole

#: Those that rewrite any one weight, or two; the others need experts, heads or layers that share.
SOME = {"setting", "encodes", "shares_layers", "shared_bases", "merges", "shares_heads"}
KEYS = [m.key for m in corank.methods("compress") if not m.laws & SOME]
#: The laws of methods that have no rank, or lose something at the full one.
LOSSY = {
    "sparse_codes",
    "stacks",
    "shared_blocks",
    "common_center",
    "knapsack",
    "two_of_four",
    "dense_sparse",
    "sparsifies",
    "pairs",
}
LOSSLESS = [k for k in KEYS if not METHODS[k].laws & LOSSY]
#: Those that have one size for each weight, and need none.
SIZED = {"two_of_four", "pairs"}
BUDGETED = [k for k in KEYS if METHODS[k].recipe({}).rank is None and not METHODS[k].laws & SIZED]


def quick(key):
    return {"heal_minutes": 0.005} if "heals" in METHODS[key].laws else {}


def _bytes(tensor):
    return tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("build", [tiny_llama, tiny_bert], ids=["llama", "bert"])
@pytest.mark.parametrize("key", BUDGETED)
def test_every_method_meets_its_budget_on_a_whole_model(key, build):
    model = build()
    before = sum(_bytes(t) for t in (*model.parameters(), *model.buffers()))
    bare = {s.name for s in find_sites(model) if not s.bias}
    report = corank.compress(model, key, keep=0.6, data=tokens(), **quick(key))
    totals = report.totals
    assert totals["bytes_after"] <= 0.6 * totals["bytes_before"]
    sites = find_sites(model)
    operators = [read(model, s) for s in sites]
    leaves = {id(t): t for op in operators for t in (*op.parameters(), *op.buffers())}
    biases = [b for s in sites if s.name in bare and (b := read_bias(model, s)) is not None]
    assert sum(map(_bytes, [*leaves.values(), *biases])) == totals["bytes_after"]
    saved = totals["bytes_before"] - totals["bytes_after"]
    assert totals["model_bytes_after"] == before - saved == whole(model)
    assert all(torch.isfinite(y).all() for y in outputs(model, tokens(1)))
    assert any(type(read(model, s)) is not Dense for s in sites)


@pytest.mark.parametrize("key", ["afm", "lord", "rom"])
def test_new_biases_are_within_the_size(key):
    model = tiny_llama()
    report = corank.compress(model, key, size="40KB", data=tokens(), allocate="knapsack")
    assert any(read_bias(model, site) is not None for site in find_sites(model))
    assert 39_000 < whole(model) == report.totals["model_bytes_after"] <= 40_000
    planned = corank.compress(tiny_llama(), key, size="40KB", data=tokens(), dry_run=True)
    made = corank.compress(tiny_llama(), key, size="40KB", data=tokens(), allocate="uniform")
    assert planned.totals["model_bytes_after"] == made.totals["model_bytes_after"]


def test_what_stays_whole_is_given_no_bias():
    model = tiny_llama()
    wanted = copy.deepcopy(model)
    report = corank.compress(model, "afm", keep=1.0, data=tokens(), cascade="original")
    assert report.totals["bytes_after"] == report.totals["bytes_before"]
    assert all(read_bias(model, site) is None for site in find_sites(model))
    for now, then in zip(outputs(model, tokens(1)), outputs(wanted, tokens(1)), strict=True):
        torch.testing.assert_close(now, then, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("key", LOSSLESS)
def test_no_loss_at_full_rank(key):
    model = tiny_llama()
    before = outputs(model, tokens(2))
    rank = {"basis_sharing": 32, "monarch": 4}.get(key, 16)  # of two layers, of a block
    corank.compress(
        model, key, rank=rank, targets=["k_proj", "v_proj"], data=tokens(), heal_minutes=0
    )
    assert all(isinstance(read(model, s), Dense) is False for s in find_sites(model, ["k_proj"]))
    for now, then in zip(outputs(model, tokens(2)), before, strict=True):
        torch.testing.assert_close(now, then, rtol=2e-3, atol=2e-3)


def test_reports_the_error_in_the_methods_metric():
    model, data = tiny_mlp(), vectors()
    weight = model[0].weight.detach().clone()
    report = corank.compress(model, "svd_llm", rank=5, data=data)
    x = torch.cat(data)
    lost = (x @ (weight - model[0].weight.detach()).mT).square().sum()
    assert report.sites[0].error == pytest.approx(
        float(lost / (x @ weight.mT).square().sum()), rel=1e-3
    )


@pytest.mark.parametrize("key", ["svd_llm", "corank", "kfac_svd"])
def test_order_and_global_seed_do_not_matter(key):
    results = []
    for seed in (0, 1):
        model = tiny_llama()
        torch.manual_seed(seed)
        corank.compress(model, key, keep=0.5, data=tokens())
        results.append(model.state_dict())
    assert all(torch.equal(results[0][k], results[1][k]) for k in results[0])


def test_size_in_parameters_and_in_bytes_is_for_the_whole_model():
    for size, limit, count in (
        ("18000", 18000, lambda m: sum(p.numel() for p in m.parameters())),
        ("70KB", 70000, lambda m: sum(t.numel() * 4 for t in (*m.parameters(), *m.buffers()))),
    ):
        model = tiny_llama()
        assert count(model) > limit
        corank.compress(model, "svd", size=size)
        assert 0.9 * limit < count(model) <= limit


def test_sites_that_would_not_pay_stay_dense_and_untouched():
    model = tiny_llama()
    weights = {s.name: read(model, s).dense().clone() for s in find_sites(model)}
    report = corank.compress(model, "svd", keep=1.0)
    assert {row.operator for row in report.sites} == {"Dense"}
    for site in find_sites(model):
        assert torch.equal(read(model, site).dense(), weights[site.name])


def test_ranks_are_rounded_to_a_multiple():
    model = tiny_llama()
    report = corank.compress(model, "svd", keep=0.7, round_to=4)
    ranks = [row.rank for row in report.sites if row.rank]
    assert ranks
    assert all(rank % 4 == 0 for rank in ranks)


def test_targets_choose_and_overrides_win():
    model = tiny_llama()
    targets = {"q_proj": {"rank": 3}, "v_proj": {}, "layers.1.self_attn.v_proj": None}
    report = corank.compress(model, "svd", rank=5, targets=targets)
    ranks = {row.name.removeprefix("model."): row.rank for row in report.sites}
    assert ranks == {
        "layers.0.self_attn.q_proj": 3,
        "layers.1.self_attn.q_proj": 3,
        "layers.0.self_attn.v_proj": 5,
    }


def test_a_dry_run_changes_nothing_and_needs_no_weights():
    with torch.device("meta"):
        model = tiny_llama()
    report = corank.compress(model, "svd_llm", keep=0.5, dry_run=True)
    assert {type(m).__name__ for m in model.modules() if hasattr(m, "weight")} >= {"Linear"}
    assert not any(isinstance(m, LowRank) for m in model.modules())
    real = corank.compress(tiny_llama(), "svd", keep=0.5)
    assert [(r.name, r.numel_after) for r in report.sites] == [
        (r.name, r.numel_after) for r in real.sites
    ]


def test_compressed_leaves_train_where_the_weight_did():
    model = tiny_llama()
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(False)
    corank.compress(model, "svd", keep=0.5)
    assert not any(p.requires_grad for p in model.model.layers[0].self_attn.q_proj.parameters())
    assert all(p.requires_grad for p in model.model.layers[1].self_attn.q_proj.parameters())


def test_welore_leaves_only_the_low_rank_components_trainable():
    model = tiny_llama()
    report = corank.compress(model, "welore", keep=0.9)
    kinds = {row.name: row.operator for row in report.sites}
    assert set(kinds.values()) == {"Dense", "LowRank"}
    for name, parameter in model.named_parameters():
        site = next((s for s in kinds if name.startswith(s + ".")), None)
        assert parameter.requires_grad == (site is not None and kinds[site] == "LowRank"), name


@pytest.mark.parametrize("key", ["afm", "lord"])
def test_centred_methods_keep_the_mean_output(key):
    model, data = tiny_mlp(), vectors()
    with torch.no_grad():
        mean = model[0](torch.cat(data)).mean(0)
    corank.compress(model, key, rank=4, data=data, targets=["0"])
    with torch.no_grad():
        torch.testing.assert_close(model[0](torch.cat(data)).mean(0), mean)


def test_afm_takes_embeddings_whose_mean_row_moves_to_the_bias():
    model, data = tiny_bert(), tokens()
    table = model.embeddings.word_embeddings.weight.detach().clone()
    ids = torch.cat([b["input_ids"] for b in data])
    corank.compress(model, "afm", rank=6, data=data, targets=["word_embeddings"])
    torch.testing.assert_close(
        model.embeddings.word_embeddings(ids).mean((0, 1)), table[ids].mean((0, 1))
    )


def test_a_site_that_the_loss_does_not_reach_is_noted_and_costs_no_error():
    report = corank.compress(tiny_bert(), "kfac_svd", keep=0.5, data=tokens())
    assert any("pooler.dense: the loss does not depend on it" in note for note in report.notes)
    assert {row.name: row.error for row in report.sites}["pooler.dense"] == 0


def test_cascade_beats_one_pass_on_the_calibration_data():
    data, errors = tokens(12, 8), {}
    for cascade in (None, "original"):
        model = tiny_bert()
        before = outputs(model, data)
        corank.compress(model, "svd_llm", keep=0.4, data=data, cascade=cascade)
        after = outputs(model, data)
        errors[cascade] = sum(
            float((a - b).square().sum()) for a, b in zip(after, before, strict=True)
        )
    assert errors["original"] < errors[None]


def test_healing_lowers_the_output_error():
    data = tokens(12, 8)
    model = tiny_bert()
    original = copy.deepcopy(model)
    corank.compress(model, "svd", keep=0.4)
    held_out = tokens(4, seed=9)

    def error():
        pairs = zip(outputs(model, held_out), outputs(original, held_out), strict=True)
        return sum(float((a - b).square().sum()) for a, b in pairs)

    before = error()
    healed = corank.heal(model, original, data, steps=60, learning_rate=3e-3)
    assert healed.steps == 60
    assert error() < 0.8 * before
    assert not model.training


@pytest.mark.parametrize("family", ["bert", "clip", "mlp"])
def test_what_has_parts_is_healed_wherever_it_stands(family):
    model, data = make(family), [FAMILIES[family].inputs()]
    report = corank.quantize(model, "littlebit", data=data, heal_steps=2)
    losses = report.sections["healing"]["losses"]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))


def test_healing_minutes_are_of_the_clock_and_hold_the_originals_passes():
    model = tiny_bert()
    original = copy.deepcopy(model)
    corank.compress(model, "svd", keep=0.4)
    now = [0.0]
    original.register_forward_hook(lambda *_: now.__setitem__(0, now[0] + 1.0))
    model.register_forward_hook(lambda *_: now.__setitem__(0, now[0] + 2.0))
    healed = corank.heal(model, original, tokens(), minutes=10 / 60, clock=lambda: now[0])
    assert healed.steps == 3  # a fourth would end after twelve of the ten seconds
    assert healed.seconds == 9.0


def test_healing_trains_what_was_rewritten_outside_the_blocks():
    model = make("llama")
    original = copy.deepcopy(model)
    corank.compress(model, "svd", keep=0.4, targets=["lm_head"])
    before = copy.deepcopy(model.state_dict())
    corank.heal(model, original, [FAMILIES["llama"].inputs()], steps=2)
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert {n for n in before if n.startswith("lm_head.")} <= changed
    assert "model.embed_tokens.weight" not in changed


def test_healing_trains_the_blocks_alone_and_leaves_flags_as_they_were():
    model = tiny_bert()
    original = copy.deepcopy(model)
    corank.compress(model, "svd", keep=0.4)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    before = copy.deepcopy(model.state_dict())
    table = model.embeddings.word_embeddings.weight
    seen = []
    model.register_forward_hook(lambda *_: seen.append(table.requires_grad))
    corank.heal(model, original, tokens(), steps=2)
    assert seen == [False, False]
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
    changed = [n for n, v in model.state_dict().items() if not torch.equal(v, before[n])]
    assert changed
    assert all(name.startswith("encoder.layer.") for name in changed)


def test_merging_gives_back_plain_modules_with_the_same_function():
    model = tiny_llama()
    corank.compress(model, "svd_llm", keep=0.5, data=tokens())
    before = outputs(model, tokens(1))
    corank.merge(model)
    torch.testing.assert_close(outputs(model, tokens(1)), before, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, LowRank) for m in model.modules())
    assert {type(m) for n, m in model.named_modules() if n.endswith("_proj")} == {torch.nn.Linear}


def test_eora_repairs_a_compressed_model_towards_the_original():
    original = tiny_llama()
    model = copy.deepcopy(original)
    corank.compress(model, "svd", rank=4)
    data = tokens()

    def error():
        pairs = zip(outputs(model, data), outputs(original, data), strict=True)
        return sum(float((a - b).square().sum()) for a, b in pairs)

    before = error()
    corank.compress(model, "eora", rank=8, data=data, original=original)
    assert error() < 0.5 * before


@pytest.mark.parametrize("allocate", list(ALLOCATORS))
def test_every_allocator_on_a_whole_model(allocate):
    model = tiny_llama()
    report = corank.compress(model, "svd_llm", keep=0.5, data=tokens(), allocate=allocate)
    assert 0.4 < report.totals["keep"] <= 0.5


def test_transformers_own_save_pretrained_keeps_the_operators(tmp_path):
    from transformers import AutoModelForCausalLM

    model = tiny_llama()
    corank.compress(model, "svd", keep=0.5)
    model.save_pretrained(tmp_path / "factored")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "factored")
    assert any(isinstance(m, LowRank) for m in loaded.modules())
    torch.testing.assert_close(outputs(loaded, tokens(1)), outputs(model, tokens(1)))
    corank.merge(loaded).save_pretrained(tmp_path / "plain")
    assert "quantization_config" not in (tmp_path / "plain" / "config.json").read_text()


@pytest.mark.parametrize("key", BUDGETED)
def test_every_method_exports_and_reloads(key, tmp_path):
    from transformers import AutoModelForCausalLM

    model = tiny_llama()
    corank.compress(model, key, keep=0.6, data=tokens(), **quick(key))
    corank.save(model, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    for now, then in zip(outputs(loaded, tokens(2)), outputs(model, tokens(2)), strict=True):
        assert torch.equal(now, then)
    for site in find_sites(model):
        assert read(loaded, site).numel() == read(model, site).numel()


def test_a_method_of_one_size_needs_no_budget_and_under_one_leaves_some_weights_alone(tmp_path):
    from transformers import AutoModelForCausalLM

    model = tiny_llama()
    report = corank.compress(model, "armor", data=tokens(), block=4, steps=5)
    assert all(isinstance(read(model, s), Product) for s in find_sites(model))
    assert 0.7 < report.totals["bytes_after"] / report.totals["bytes_before"] < 0.85
    corank.save(model, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    for now, then in zip(outputs(loaded, tokens(2)), outputs(model, tokens(2)), strict=True):
        assert torch.equal(now, then)
    model = tiny_llama()
    report = corank.compress(
        model, "armor", keep=0.9, allocate="greedy", data=tokens(), block=4, steps=5
    )
    kinds = {type(read(model, s)) for s in find_sites(model)}
    assert kinds == {Dense, Product}
    assert report.totals["bytes_after"] <= 0.9 * report.totals["bytes_before"]


def test_a_dry_run_needs_no_data_where_sizes_are_chosen_by_their_errors():
    told = corank.compress(tiny_llama(), "rocket", keep=0.6, dry_run=True)
    assert told.totals["bytes_after"] <= 0.6 * told.totals["bytes_before"]


def test_blocks_that_do_not_fit_leave_the_model_as_it_was():
    model = tiny_llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"q_proj.*blocks of 20"):
        corank.compress(model, "armor", data=tokens(), block=20)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_spilling_changes_nothing_and_leaves_no_file(tmp_path):
    results = []
    for spill in (None, tmp_path):
        model = tiny_llama()
        corank.compress(model, "svd_llm", keep=0.5, data=tokens(), cascade="original", spill=spill)
        results.append(model.state_dict())
    assert all(torch.equal(results[0][name], value) for name, value in results[1].items())
    assert not list(tmp_path.iterdir())


def test_channels_are_compared_by_their_means_and_variances():
    theirs = torch.tensor([[[1.0, 2.0], [3.0, 2.0]]])  # root mean square 4.5 ** 0.5
    mine = torch.tensor([[[2.0, 2.0], [2.0, 4.0]]])
    size = 4.5**0.5
    means = [abs(2 - 2) / size, abs(3 - 2) / size]
    variances = [abs(0 - 1) / 4.5, abs(1 - 0) / 4.5]
    wanted = (sum(means) + sum(variances)) / 2
    assert float(channel_loss([mine], [theirs], None)) == pytest.approx(wanted)
    first = torch.tensor([[True, False]])
    assert float(channel_loss([mine], [mine], first)) == 0
