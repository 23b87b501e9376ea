"""Adapters that share parts: published starts, counts and coincidences."""

import pytest
import torch
from torch import nn

import corank
from corank.adapters import adapted
from corank.errors import SiteError
from corank.operators import LowRank, Quantised, Scaled, TensorTrain

from .small import PARAMETERS, batches, leaves, old_loras, operators, small_model, stir


def adapted_model(key, **given):
    model = small_model()
    return model, corank.adapt(model, key, **{**PARAMETERS.get(key, {}), **given})


def square(side=768, count=24):
    return nn.Sequential(*[nn.Linear(side, side, bias=False) for _ in range(count)]).to("meta")


def planned(key, side=768, count=24, **given):
    return corank.adapt(square(side, count), key, dry_run=True, **given).totals["trainable"]


def test_counts_are_published():
    assert planned("vera", rank=256) == 24 * (768 + 256)
    assert planned("nola", bases=512) == 24 * 2 * 512
    assert planned("vb_lora") == 256 * 256 + 24 * 4 * 2 * 3 * 256
    assert planned("randlora", rank=32) == 24 * 24 * (32 + 768)
    assert [planned("lotr", rank=r) for r in (1, 2, 4)] == [1560, 3168, 6528]
    assert planned("fedpara", rank=8) == 24 * 2 * 8 * 2 * 768
    assert planned("compacter") == 24 * 3 * (768 + 24) + 4**3
    assert planned("flora_tucker", rank=16) == 24 * (2 * 16 * 768 + 256)
    assert planned("lokr", rank=8) == 24 * (24 * 24 + 32 * 32) - 24 * (32 * 32 - 8 * 64)


def test_a_lower_rank_trains_more_in_randlora():
    assert planned("randlora", rank=4) > planned("randlora", rank=32)


def test_starts_are_published():
    vera, _ = adapted_model("vera")
    for op in operators(vera).values():
        assert (leaves(op)["diagonal"] == 0).all()
        assert (leaves(op)["diagonal_1"] == 0.1).all()
    bank, _ = adapted_model("vb_lora")
    found = leaves(next(iter(operators(bank).values())))
    assert found["bank"].abs().max() <= 0.02
    assert 0.07 < found["logits"].std() < 0.13
    randlora, _ = adapted_model("randlora")
    for op in operators(randlora).values():
        gamma = leaves(op)["weight"]
        assert (gamma == 1 / max(gamma.shape)).all()
    slow = leaves(next(iter(operators(adapted_model("compacter")[0]).values())))["p"]
    assert slow.std() < 2e-4


def test_sites_share_what_the_papers_share():
    for key, leaf in (("vb_lora", "bank"), ("compacter", "p")):
        found = {id(leaves(op)[leaf]) for op in operators(adapted_model(key)[0]).values()}
        assert len(found) == 1
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 6))
    corank.adapt(model, "lotr", rank=2)
    outer = [leaves(op)["weight"] for op in operators(model).values()]
    assert outer[0] is outer[1]
    assert outer[0] is not outer[2]
    corank.adapt(model, "vera", rank=4, name="second")
    one, two, three = operators(model, "second").values()
    assert leaves(one)["matrix"] is leaves(two)["matrix"]
    assert torch.equal(leaves(three)["matrix"], leaves(one)["matrix"][:6])


@pytest.mark.parametrize("key", ["vera", "nola", "randlora", "tera"])
def test_frozen_numbers_are_seeds_or_stored_once(key):
    seeded, one = adapted_model(key)
    stored, two = adapted_model(key, stored=True)
    assert one.totals["stored"] == one.totals["trainable"]
    held = adapted(stored)
    frozen = {
        id(p): p.numel()
        for w in held.values() for op in w.operators for p in op.parameters() if not p.requires_grad
    }  # fmt: skip
    assert two.totals["stored"] == two.totals["trainable"] + sum(frozen.values())
    plan = small_model().to("meta")
    options = PARAMETERS[key] | {"stored": True}
    assert corank.adapt(plan, key, dry_run=True, **options).totals["stored"] == two.totals["stored"]
    stir(seeded)
    stir(stored)
    torch.testing.assert_close(seeded(batches(1)[0]), stored(batches(1)[0]))


def test_sparse_bases_are_ternary_and_of_unit_variance():
    model, _ = adapted_model("randlora", sparse=True)
    matrix = leaves(next(iter(operators(model).values())))["matrix"]
    assert set((matrix / 3**0.5).round(decimals=5).unique().tolist()) == {-1.0, 0.0, 1.0}


def test_randlora_reaches_full_rank():
    model, _ = adapted_model("randlora")
    stir(model)
    for op in operators(model).values():
        assert torch.linalg.matrix_rank(op.operators[1].dense()) == min(op.shape)


def test_a_wide_train_is_the_weight():
    model, _ = adapted_model("dota", rank=10**6, order=2)
    for path, op in operators(model).items():
        train = op.operators[2]
        assert isinstance(train, TensorTrain)
        torch.testing.assert_close(train.dense(), adapted(model)[path].base.dense())


def test_a_quantised_rest_is_packed_and_counted():
    before = small_model()(batches(1)[0])
    model, report = adapted_model("dota", rank=4, quantised=4)
    for op in operators(model).values():
        assert isinstance(op.operators[0], Quantised)
        assert op.operators[0].bits == 4
        assert all(p.requires_grad for p in op.operators[1].parameters())
    plan = corank.adapt(small_model().to("meta"), "dota", rank=4, quantised=4, dry_run=True)
    assert report.totals["trainable"] == plan.totals["trainable"]
    assert report.totals["stored"] == plan.totals["stored"]
    after = model(batches(1)[0])
    assert 0 < (after - before).norm() < 0.3 * before.norm()
    model(batches(1)[0]).sum().backward()
    with pytest.raises(ValueError, match="quantised=3"):
        adapted_model("dota", quantised=3)


@pytest.mark.parametrize(("energy", "rank"), [(0.2, 1), (0.5, 2), (1.0, 4)])
def test_soka_stops_at_the_energy_or_the_elbow(energy, rank):
    left, right = (torch.linalg.qr(torch.randn(side, 4).double()).Q for side in (16, 25))
    sizes = torch.tensor([4.0, 3.9, 3.8, 3.7]).double()
    w = sum(
        torch.kron((sizes[k] * left[:, k]).view(4, 4), right[:, k].view(5, 5)) for k in range(4)
    )
    model = small_model()
    with torch.no_grad():
        model[4].weight.copy_(w + 1e-3 * torch.randn(20, 20))
    corank.adapt(model, "soka", targets=["4"], energy=energy, rank=10)
    assert operators(model)["4"].operators[2].p.shape[0] == rank


def test_soka_starts_at_the_best_kronecker_sum():
    exact = small_model()
    with torch.no_grad():
        exact[4].weight.copy_(torch.kron(torch.randn(4, 4), torch.randn(5, 5)))
    corank.adapt(exact, "soka", targets=["4"])
    start = operators(exact)["4"].operators[2]
    assert start.p.shape[0] == 1
    torch.testing.assert_close(start.dense(), adapted(exact)["4"].base.dense())


def test_eigenlorax_finds_the_subspace_of_its_adapters():
    old = old_loras(4)
    model, report = adapted_model("eigenlorax", adapters=old, components=10, rank=2, project=True)
    assert report.totals["trainable"] == 3 * 2 * 10 * 2
    for path, op in operators(model).items():
        first, *_, last = op.operators[1].operators
        torch.testing.assert_close(
            first.weight.T @ first.weight, torch.eye(10, dtype=torch.float64)
        )
        torch.testing.assert_close(last.weight @ last.weight.T, torch.eye(10, dtype=torch.float64))
        columns = torch.cat([each[path].b for each in old], 1).double()
        centred = columns - columns.mean(1, keepdim=True)
        inside = first.weight @ (first.weight.T @ centred)
        torch.testing.assert_close(inside, centred, rtol=1e-5, atol=1e-5)


def test_eigenlorax_keeps_the_leading_directions_of_the_centred_factors():
    old = old_loras(4)
    model, _ = adapted_model("eigenlorax", adapters=old, components=3, rank=2)
    for path, op in operators(model).items():
        columns = torch.cat([each[path].b for each in old], 1).double()
        centred = columns - columns.mean(1, keepdim=True)
        leading = torch.linalg.eigh(centred @ centred.T).eigenvectors[:, -3:]
        ours = op.operators[1].operators[0].weight
        torch.testing.assert_close(ours @ ours.T, leading @ leading.T)


def test_eigenlorax_reads_the_folders_of_peft(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["0", "2", "4"])
    theirs = peft.get_peft_model(small_model(), config)
    for p in theirs.parameters():
        if p.requires_grad:
            nn.init.normal_(p, generator=torch.Generator().manual_seed(p.shape[0]))
    theirs.save_pretrained(tmp_path)
    layer = theirs.get_submodule("base_model.model.2")
    same = {
        path: Scaled(LowRank(at.lora_B["default"].weight, at.lora_A["default"].weight), 3.0)
        for path in ("0", "2", "4")
        for at in [theirs.get_submodule(f"base_model.model.{path}")]
    }
    given = {"components": 2, "rank": 2, "project": True}
    read, _ = adapted_model("eigenlorax", adapters=[tmp_path], **given)
    held, _ = adapted_model("eigenlorax", adapters=[same], **given)
    torch.testing.assert_close(read(batches(1)[0]), held(batches(1)[0]))
    assert layer.scaling["default"] == 3


def test_flora_keeps_a_convolution_in_shape():
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(6, 8, (3, 2)))
    before, x = conv[0].weight.detach().clone(), torch.randn(2, 6, 9, 9)
    report = corank.adapt(conv, "flora_tucker", targets="all", ranks=[4, 3, 2, 1], scale=2.0)
    assert report.totals["trainable"] == 8 * 4 + 6 * 3 + 3 * 2 + 2 * 1 + 4 * 3 * 2 * 1
    stir(conv)
    p = leaves(operators(conv)["0"])
    factors = [v for n, v in p.items() if n.startswith("weight")]
    core = next(f for f in factors if f.shape == (4, 6)).view(4, 3, 2, 1)
    out, into, tall, wide = (
        next(f for f in factors if f.shape == s) for s in ((8, 4), (6, 3), (3, 2), (2, 1))
    )
    kernel = torch.einsum("abcd,oa,ib,hc,wd->oihw", core, out, into, tall, wide)
    expected = torch.nn.functional.conv2d(x, before + 2 * kernel, conv[0].bias)
    torch.testing.assert_close(conv(x), expected)
    with pytest.raises(SiteError, match="modes"):
        corank.adapt(nn.Sequential(nn.Linear(4, 4)), "flora_tucker", ranks=[2, 2, 2])


def test_logits_learn_faster_than_the_bank():
    model, _ = adapted_model("vb_lora")
    groups = corank.controller(model).parameter_groups(1e-3)
    assert sorted(group["lr"] for group in groups) == [1e-3, 1e-2]


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("vb_lora", {"vector_length": 7}),
        ("block_lora", {"blocks": 7}),
        ("compacter", {"n": 7}),
        ("eigenlorax", {"components": 30}),
        ("eigenlorax", {"adapters": [{}]}),
    ],
)
def test_what_does_not_fit_names_the_site(key, given):
    with pytest.raises(SiteError):
        adapted_model(key, **given)


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("vera", {"rank": 0}), ("nola", {"bases": 0}), ("dota", {"order": 1}),
        ("soka", {"energy": 0.0}), ("eigenlorax", {"adapters": []}), ("lokr", {"rank": 0}),
        ("compacter", {"n": 0}),
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_refused(key, given):
    with pytest.raises(ValueError, match=next(iter(given))):
        adapted_model(key, **given)
