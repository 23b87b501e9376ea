"""Fewer inner dimensions in whole models: exact where it must be, whatever the attention."""

import copy

import pytest
import torch

import corank
from corank.allocation import Candidate, weights
from corank.allocation.weights import by_sensitivity
from corank.calibration import batches, collect
from corank.calibration.outputs import outputs
from corank.models import find_sites, modules, read
from corank.operators import Dense, Product, Select
from corank.registry import METHODS
from corank.rewrites import Unit, layout_of

from .models import tiny_bert, tiny_llama, tokens, whole

KEYS = ["modegpt", "uniql", "lorap"]


def tiny(model, config, **options):
    import transformers

    torch.manual_seed(0)
    return getattr(transformers, model)(getattr(transformers, config)(**options)).eval()


SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 64}  # fmt: skip


def tiny_opt():
    return tiny("OPTForCausalLM", "OPTConfig", ffn_dim=64, word_embed_proj_dim=32, **SMALL)


def tiny_qwen2():
    return tiny(
        "Qwen2ForCausalLM", "Qwen2Config", intermediate_size=48, num_key_value_heads=2, **SMALL
    )


def tiny_qwen3():
    return tiny(
        "Qwen3ForCausalLM", "Qwen3Config", intermediate_size=48, num_key_value_heads=2, head_dim=8,
        **SMALL,
    )  # fmt: skip


def tiny_cohere():  # turns neighbours, not halves
    return tiny(
        "CohereForCausalLM", "CohereConfig", intermediate_size=48, num_key_value_heads=2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, **SMALL,
    )  # fmt: skip


def tiny_phi():  # turns half of a head
    return tiny(
        "PhiForCausalLM", "PhiConfig", intermediate_size=48, partial_rotary_factor=0.5,
        bos_token_id=1, eos_token_id=2, **SMALL,
    )  # fmt: skip


def tiny_gpt2():
    return tiny(
        "GPT2LMHeadModel", "GPT2Config", vocab_size=64, n_embd=32, n_layer=2, n_head=4,
        n_positions=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def shaken(model, seed=0):
    """Weights large enough for attention to choose, and biases that are not zero."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=g)
            parameter.copy_(0.25 * noise if parameter.ndim > 1 else parameter + 0.3 * noise)
    return model


def lost(model, original, data):
    pairs = list(zip(outputs(model, data), outputs(original, data), strict=True))
    return sum(float((a - b).square().sum() / b.square().sum()) for a, b in pairs) / len(pairs)


BUILDS = [tiny_llama, tiny_bert, tiny_opt, tiny_qwen2, tiny_qwen3, tiny_gpt2, tiny_cohere, tiny_phi]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.__name__)
def test_the_budget_is_met_and_keeping_all_changes_nothing(build, key):
    model = shaken(build())
    original, data = copy.deepcopy(model), tokens(4)
    corank.compress(model, key, keep=1.0, data=data)
    state = original.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    report = corank.compress(model, key, keep=0.7, data=data, allocate="uniform")
    assert 0.55 < report.totals["bytes_after"] / report.totals["bytes_before"] <= 0.7
    assert lost(model, original, data) < 1.5


@pytest.mark.parametrize("key", ["modegpt", "uniql"])
def test_the_bias_that_o_is_given_for_that_of_v_is_within_the_size(key):
    for less in range(3000, 5000, 200):
        model = shaken(tiny_qwen2())
        limit = whole(model) - less
        report = corank.compress(
            model, key, size=f"{limit / 1000}KB", data=tokens(4), targets=["v_proj", "o_proj"],
            allocate="knapsack",
        )  # fmt: skip
        assert any(layer.self_attn.o_proj.bias is not None for layer in model.model.layers)
        assert limit - 1000 < whole(model) == report.totals["model_bytes_after"] <= limit


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("build", [tiny_bert, tiny_opt, tiny_qwen2])
def test_what_is_saved_computes_the_same_bits(build, key, tmp_path):
    model = shaken(build())
    corank.compress(model, key, keep=0.6, data=tokens())
    corank.save(model, tmp_path / "model")
    loaded = type(model).from_pretrained(tmp_path / "model")
    for now, then in zip(outputs(loaded, tokens(2)), outputs(model, tokens(2)), strict=True):
        assert torch.equal(now, then)
    indices = {id(m.index) for m in loaded.modules() if isinstance(m, Select)}
    assert len(indices) == len({id(m.index) for m in model.modules() if isinstance(m, Select)})


def turned(x, dims, size, base=10000.0):
    """x (batch, length, pairs, 2) of those pairs of a head, each by its own angle."""
    angles = torch.arange(x.shape[1])[:, None] * base ** (-2 * dims / size)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([x[..., 0] * cos - x[..., 1] * sin, x[..., 1] * cos + x[..., 0] * sin], -1)


def narrow_llama_attention(attn, x, kept):
    """The attention whose queries and keys have only those pairs of dimensions, head by head.

    kept: for each head of keys the first of each pair (p,).
    """
    d, groups = attn.head_dim, attn.num_key_value_groups
    read = []
    for head in range(len(kept) * groups):
        of = head // groups
        rows = torch.stack([kept[of], kept[of] + d // 2], -1)  # (p, 2)
        q = (x @ attn.q_proj.weight[head * d + rows.flatten()].mT).unflatten(-1, (-1, 2))
        k = (x @ attn.k_proj.weight[of * d + rows.flatten()].mT).unflatten(-1, (-1, 2))
        q, k = (turned(part, kept[of], d).flatten(-2) for part in (q, k))
        scores = q @ k.mT / d**0.5
        scores = scores + torch.full(scores.shape[-2:], -torch.inf).triu(1)
        read.append(scores.softmax(-1) @ (x @ attn.v_proj.weight[of * d : of * d + d].mT))
    return torch.cat(read, -1) @ attn.o_proj.weight.mT


@pytest.mark.parametrize("keys", [4, 2, 1])
def test_dropped_pairs_are_heads_without_them_under_rotary_embeddings(keys):
    model = shaken(tiny_llama())
    if keys != 2:
        model = shaken(
            tiny("LlamaForCausalLM", "LlamaConfig", intermediate_size=48,
                 num_key_value_heads=keys, **SMALL)
        )  # fmt: skip
    before = copy.deepcopy(model.model.layers[0].self_attn)
    corank.compress(
        model, "modegpt", keep=0.6, data=tokens(), targets=["q_proj", "k_proj"], allocate="uniform"
    )
    attn = model.model.layers[0].self_attn
    index = attn.k_proj.operator.operators[0].operator.index.long().sort().values
    kept = index.view(keys, -1) % 8
    assert index.view(keys, -1).div(8, rounding_mode="floor").eq(torch.arange(keys)[:, None]).all()
    assert kept.shape == (keys, 4)
    assert torch.equal(kept[:, :2] + 4, kept[:, 2:])
    x = torch.randn(2, 11, 32, generator=torch.Generator().manual_seed(4))
    place = model.model.rotary_emb(x, torch.arange(11)[None])
    mask = torch.full((11, 11), -torch.inf).triu(1)[None, None]
    with torch.no_grad():
        now = attn(x, position_embeddings=place, attention_mask=mask)[0]
        wanted = narrow_llama_attention(before, x, kept[:, :2])
    torch.testing.assert_close(now, wanted, rtol=1e-4, atol=1e-5)


def test_dropped_dimensions_are_heads_without_them_where_nothing_turns():
    model = shaken(tiny_opt())
    before = copy.deepcopy(model.model.decoder.layers[0].self_attn)
    corank.compress(model, "uniql", keep=0.6, data=tokens(), targets=["q_proj", "k_proj"])
    attn = model.model.decoder.layers[0].self_attn
    index = attn.k_proj.operator.operators[0].operator.index.long()
    x = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        for head in range(4):
            rows = index[index // 8 == head]
            assert 0 < len(rows) < 8
            q, k = (
                torch.nn.functional.linear(x, part.weight[rows], part.bias[rows])
                for part in (before.q_proj, before.k_proj)
            )
            q2, k2 = (part(x)[..., 8 * head : 8 * head + 8] for part in (attn.q_proj, attn.k_proj))
            # the biases of what is gone meet in the same number for every key
            torch.testing.assert_close((q2 @ k2.mT).softmax(-1), (q @ k.mT).softmax(-1))


@pytest.mark.parametrize("build", [tiny_llama, tiny_opt, tiny_qwen2, tiny_bert])
@pytest.mark.parametrize("key", ["modegpt", "uniql"])
def test_values_of_full_rank_lose_nothing_biases_and_all(build, key):
    model = shaken(build())
    data = tokens(3)
    before = outputs(model, data)
    width = next(s.shape[0] for s in find_sites(model) if s.role == "v")
    names = [s.name for s in find_sites(model) if s.role in ("v", "o")]
    corank.compress(model, key, rank=width, data=tokens(), targets=names)
    assert all(isinstance(read(model, s), Product) for s in find_sites(model, names))
    torch.testing.assert_close(outputs(model, data), before, rtol=1e-3, atol=1e-3)


def roles(report):
    return {row.name.rpartition(".")[2]: row for row in report.sites}


def test_what_cannot_be_cut_stays_and_the_report_shows_it():
    rows = roles(corank.compress(shaken(tiny_qwen3()), "modegpt", keep=0.7, data=tokens()))
    assert {rows[name].operator for name in ("q_proj", "k_proj")} == {"Dense"}
    assert {rows[name].operator for name in ("v_proj", "o_proj", "down_proj")} == {"Product"}
    rows = roles(corank.compress(shaken(tiny_gpt2()), "uniql", keep=0.7, data=tokens()))
    assert rows["c_attn"].numel_after == rows["c_attn"].numel_before
    with pytest.raises(ValueError, match="below the smallest reachable"):
        corank.compress(shaken(tiny_gpt2()), "uniql", keep=0.2, data=tokens())


@pytest.mark.parametrize(
    ("build", "pairs"),
    [
        (tiny_llama, {(0, 4), (1, 5), (2, 6), (3, 7)}),
        (tiny_cohere, {(0, 1), (2, 3), (4, 5), (6, 7)}),
        (tiny_phi, {(0, 2), (1, 3), (4, 5), (6, 7)}),
        (tiny_opt, {(j,) for j in range(8)}),
        (tiny_bert, {(j,) for j in range(8)}),
        (tiny_qwen3, None),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_turns_together_is_found_in_the_models_own_code(build, pairs):
    heads = [s.heads for s in find_sites(build()) if s.role in ("q", "k", "v")]
    assert len(heads) == 6
    for one in heads:
        assert one.size == 8
        assert pairs == (None if one.units is None else set(one.units))
    assert all(s.heads is None for s in find_sites(build()) if s.role == "o")


def test_values_are_not_turned_where_more_than_attention_reads_them():
    import transformers

    gated = {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 0,
             "layer_types": ["full_attention"] * 2, "mlp_only_layers": [0, 1]}  # fmt: skip
    for model, config, options in (
        ("Qwen3NextForCausalLM", "Qwen3NextConfig", gated),
        ("GptOssForCausalLM", "GptOssConfig", {"intermediate_size": 48, "num_key_value_heads": 2,
                                               "num_local_experts": 2, "head_dim": 8}),
    ):  # fmt: skip
        if not hasattr(transformers, model):
            continue
        found = find_sites(tiny(model, config, **SMALL, **options), "attention")
        assert {s.role for s in found} == {"q", "k", "v", "o"}
        assert all(s.heads is None for s in found)


@pytest.mark.parametrize("cascade", ["compressed", "original"])
@pytest.mark.parametrize("key", KEYS)
def test_a_cascade_goes_block_by_block(key, cascade):
    model = shaken(tiny_llama())
    original = copy.deepcopy(model)
    report = corank.compress(model, key, keep=0.7, data=tokens(12), cascade=cascade)
    assert report.totals["bytes_after"] <= 0.7 * report.totals["bytes_before"]
    assert lost(model, original, tokens(12)) < 1.0


@pytest.mark.parametrize("allocate", ["greedy", "knapsack", "sensitivity"])
def test_errors_guide_the_allocation(allocate):
    model = shaken(tiny_opt())
    original = copy.deepcopy(model)
    data, errors = tokens(12), []
    for how in ("uniform", allocate):
        model = copy.deepcopy(original)
        corank.compress(model, "modegpt", keep=0.6, data=data, allocate=how, round_to=4)
        errors.append(lost(model, original, data))
    assert errors[1] < errors[0]


def test_a_number_that_cannot_be_kept_is_refused_and_nothing_changes():
    model = tiny_llama()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="a multiple of 4, at most 16") as raised:
        corank.compress(model, "modegpt", rank=6, data=tokens())
    assert "q_proj + model.layers.0.self_attn.k_proj" in str(raised.value)
    with pytest.raises(ValueError, match="give data="):
        corank.compress(model, "uniql", keep=0.5)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("build", [tiny_llama, tiny_opt, tiny_bert, tiny_qwen2])
def test_uniqls_file_is_cut_to_what_the_method_would_have_kept(build, tmp_path):
    model = shaken(build())
    family = METHODS["uniql"].recipe({}).family
    sites = find_sites(model)
    collect(model, sites, family.needs, batches(tokens()))
    units = [Unit(group, [read(model, site) for site in group]) for group in modules(sites)]
    corank.compress(model, "uniql", keep=0.8, data=tokens(), allocate="uniform")
    corank.save(model, tmp_path / "model")
    loaded = type(model).from_pretrained(tmp_path / "model")
    report = corank.cut(loaded, keep=0.6)
    for unit in units:
        first = read(model, unit.sites[0])
        made = [read(loaded, site) for site in unit.sites]
        if isinstance(first, Dense):
            assert all(isinstance(op, Dense) for op in made)
            continue
        layout = layout_of(unit)
        had = layout.kept(Unit(unit.sites, [read(model, site) for site in unit.sites]))
        size = int(0.6 * len(had) / layout.step) * layout.step
        assert 0 < size < len(had)
        for op, wanted in zip(made, family.build(unit, size), strict=True):
            torch.testing.assert_close(op.dense(), wanted.dense())
    at_load = corank.load(tmp_path / "model", keep=0.6)
    values = at_load.state_dict()
    assert all(torch.equal(value, values[name]) for name, value in loaded.state_dict().items())
    corank.save(at_load, tmp_path / "again")
    again = corank.load(tmp_path / "again").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in values.items())
    with pytest.raises(ValueError, match=r"keep=1\.5 is outside"):
        corank.load(tmp_path / "model", keep=1.5)
    rows = {row.name: row for row in report.sites}
    assert all(row.numel_after < row.numel_before for row in rows.values())
    assert report.totals["model_bytes_after"] < report.totals["model_bytes_before"]
    corank.save(loaded, tmp_path / "smaller")
    again = type(model).from_pretrained(tmp_path / "smaller")
    for now, then in zip(outputs(again, tokens(1)), outputs(loaded, tokens(1)), strict=True):
        assert torch.equal(now, then)


def test_only_sorted_channels_can_be_cut_at_load():
    model = tiny_llama()
    for keep in (0, 1.5, True):
        with pytest.raises(ValueError, match="outside"):
            corank.cut(model, keep=keep)
    with pytest.raises(ValueError, match="no weight has sorted channels"):
        corank.cut(model, keep=0.5)
    corank.compress(model, "uniql", rank=8, data=tokens(), targets=["q_proj"])
    corank.compress(model, "uniql", rank=8, data=tokens(4, seed=3), targets=["k_proj"])
    with pytest.raises(ValueError, match="no weight has sorted channels"):
        corank.cut(model, keep=0.5)  # q and k lost dimensions of their own


def tiny_experts():
    return tiny(
        "Qwen2MoeForCausalLM", "Qwen2MoeConfig", intermediate_size=48, num_key_value_heads=2,
        moe_intermediate_size=24, shared_expert_intermediate_size=24, num_experts=4,
        num_experts_per_tok=2, **SMALL,
    )  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_every_expert_loses_channels_of_its_own(key, tmp_path):
    model = shaken(tiny_experts())
    corank.compress(model, key, keep=0.7, data=tokens(), allocate="uniform")
    sites = {s.name: s for s in find_sites(model)}
    picked = set()
    for expert in range(4):
        path = "model.layers.0.mlp.experts"
        both, down = (
            read(model, sites[f"{path}.{part}.{expert}"]).dense()
            for part in ("gate_up_proj", "down_proj")
        )
        kept = (down != 0).any(0)
        assert 0 < kept.sum() < 24
        assert torch.equal((both != 0).any(1), kept.repeat(2))
        picked.add(tuple(kept.tolist()))
    assert len(picked) > 1
    corank.save(model, tmp_path / "model")
    loaded = type(model).from_pretrained(tmp_path / "model")
    for now, then in zip(outputs(loaded, tokens(1)), outputs(model, tokens(1)), strict=True):
        assert torch.equal(now, then)


def test_sensitivity_measures_units_with_the_biases_that_go_with_them():
    model = shaken(tiny_opt())
    for site in find_sites(model, ["v_proj"]):
        with torch.no_grad():
            model.get_submodule(site.name).bias += 3.0
    names = ["layers.0.self_attn.v_proj", "layers.0.self_attn.out_proj"]
    sites, data = find_sites(model, names), batches(tokens())
    family = METHODS["modegpt"].recipe({}).family
    collect(model, sites, family.needs, data)
    (group,) = modules(sites)
    unit = Unit(group, [read(model, site) for site in group])
    candidate = Candidate(unit, family.menu(unit))
    budget = unit.bytes // 2
    (weight,) = by_sensitivity(model, [candidate], family, data, budget)
    before = outputs(model, data)
    corank.compress(model, "modegpt", keep=0.5, data=tokens(), targets=names, allocate="uniform")
    change = sum(
        float((a - b).square().sum()) for a, b in zip(outputs(model, data), before, strict=True)
    )
    error = candidate.menu.errors[candidate.menu.largest_within(budget)]
    assert weight == pytest.approx(change / error, rel=1e-3)


def test_sensitivity_is_measured_on_some_batches_from_all_over(monkeypatch):
    model, data, seen = tiny_opt(), batches(tokens(20), batch_size=4), []
    sites = find_sites(model, ["fc1"])[:1]
    unit = Unit(sites, [read(model, sites[0])])
    family = METHODS["round_to_nearest"].recipe({"bits": [2, 4]}).family
    monkeypatch.setattr(weights, "SENSED", 2)
    monkeypatch.setattr(weights, "outputs", lambda _, some: seen.append(list(some)) or [])
    candidate = Candidate(unit, family.menu(unit))
    by_sensitivity(model, [candidate], family, data, unit.bytes // 2)
    picked = range(0, len(data), -(-len(data) // 2))
    assert [len(some) for some in seen] == [len(picked)] * 2
    assert all(a is data[i] for a, i in zip(seen[0], picked, strict=True))


@pytest.mark.parametrize("key", ["modegpt", "uniql"])
def test_what_was_cut_together_is_not_repaired_weight_by_weight(key):
    original, data = shaken(tiny_opt()), tokens()
    model = copy.deepcopy(original)
    corank.compress(model, key, keep=0.6, data=data, targets="mlp")
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="lost inner dimensions together with another"):
        corank.compress(model, "eora", rank=4, data=data, original=original)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    corank.compress(model, "eora", rank=4, data=data, original=original, targets="attention")


@pytest.mark.parametrize("key", KEYS)
def test_what_is_left_can_be_put_in_codes_under_one_budget(key, tmp_path):
    model = shaken(tiny_opt())
    original, steps = copy.deepcopy(model), [key, {"round_to_nearest": {"bits": 8, "group": 16}}]
    report = corank.compress(model, steps, keep=0.3, data=tokens(8))
    assert 0.2 < report.totals["bytes_after"] / report.totals["bytes_before"] <= 0.3
    assert lost(model, original, tokens(2)) < 0.5
    corank.save(model, tmp_path / "model")
    loaded = type(model).from_pretrained(tmp_path / "model")
    for now, then in zip(outputs(loaded, tokens(1)), outputs(model, tokens(1)), strict=True):
        assert torch.equal(now, then)


def test_merging_leaves_zeros_where_channels_were():
    model = shaken(tiny_opt())
    corank.compress(model, "uniql", keep=0.6, data=tokens())
    before = outputs(model, tokens(1))
    corank.merge(model)
    torch.testing.assert_close(outputs(model, tokens(1)), before, rtol=1e-4, atol=1e-4)
    assert all(isinstance(read(model, s), Dense) for s in find_sites(model))
    assert (model.model.decoder.layers[0].fc1.weight == 0).all(1).any()
