"""Starts that follow from data: what they see, spare and choose."""

import pytest
import torch
from torch import nn

import corank
from corank.adapters import adapted
from corank.calibration import batches as as_batches
from corank.calibration import collect, save_statistics
from corank.errors import SiteError
from corank.losses import inverted_hinge

from .small import batches, leaves, loss, operators, sites_of, small_model, stir

DATA = batches(4)
ROWS = torch.cat(DATA)


def adapt(key, model=None, data=None, **params):
    model = small_model() if model is None else model
    return model, corank.adapt(model, key, data=data or DATA, **params)


def inputs(model, x=ROWS):
    """What each weight of the bare small model reads."""
    found = {}
    for number, layer in enumerate(model):
        if isinstance(layer, nn.Linear):
            found[str(number)] = x
        x = layer(x)
    return {path: x.detach() for path, x in found.items()}


def moved(model, x, path):
    """How far the adapter at `path` moves the outputs of x."""
    weight = adapted(model)[path]
    return (weight(x) - x @ weight.base.dense().mT).norm()


@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_corda_splits_off_the_oriented_triples(mode):
    model, _ = adapt("corda", rank=4, mode=mode)
    for path, x in inputs(small_model()).items():
        w, held = adapted(model)[path].base.dense(), leaves(operators(model)[path])
        c = x.mT @ x / len(x)
        c = c + 0.01 * c.diagonal().mean() * torch.eye(len(c))
        u, s, vh = torch.linalg.svd(w @ c, full_matrices=False)
        part = slice(0, 4) if mode == "ipm" else slice(-4, None)
        expected = u[:, part] * s[part] @ vh[part] @ torch.linalg.inv(c)
        torch.testing.assert_close(held["b_1"] @ held["a_1"], expected, rtol=1e-4, atol=1e-5)
        sizes = s[part] / c.diagonal().mean()
        torch.testing.assert_close(held["b_1"].square().sum(0), sizes, rtol=1e-4, atol=1e-5)


def test_corda_knowledge_preserved_moves_old_outputs_less():
    spread = torch.logspace(0, -3, 16)  # old inputs live in few directions
    old = [x * spread for x in DATA]
    distance = {}
    for mode in ("ipm", "kpm"):
        model, _ = adapt("corda", data=old, rank=4, mode=mode)
        with torch.no_grad():
            leaves(operators(model)["0"])["b_1"].mul_(1.5)
        distance[mode] = moved(model, torch.cat(old), "0")
    assert distance["kpm"] < 0.05 * distance["ipm"]


def test_kore_cannot_move_what_the_old_inputs_reach():
    old = [x * (torch.arange(16) < 12) for x in DATA]  # four directions never occur
    model, report = adapt("kore", data=old, rank=4, targets={"0": {}})
    assert report.totals["trainable"] == 4 * 36
    stir(model, scale=1.0)
    assert moved(model, torch.cat(old), "0") < 1e-4
    assert moved(model, ROWS, "0") > 1


def test_kore_splits_off_the_weight_seen_from_the_null_space():
    model, _ = adapt("kore", rank=4)
    for path, x in inputs(small_model()).items():
        w, held = adapted(model)[path].base.dense(), leaves(operators(model)[path])
        values, vectors = torch.linalg.eigh(x.mT @ x)
        if values[4] < 2 * values[3]:
            continue  # the fourth direction is not settled by the data
        null = vectors[:, :4]
        torch.testing.assert_close(held["b"] @ held["a"], w @ null @ null.mT, rtol=1e-3, atol=1e-4)


def test_eva_starts_at_the_principal_components():
    model, _ = adapt("eva", rank=3, rho=1.0)
    for path, x in inputs(small_model()).items():
        held = leaves(operators(model)[path])
        _, _, vh = torch.linalg.svd(x - x.mean(0), full_matrices=False)
        assert held["a"].shape[0] == 3
        similar = (held["a"] * vh[:3]).sum(1).abs()
        torch.testing.assert_close(similar, torch.ones(3, dtype=torch.float64), atol=1e-3, rtol=0)
        assert not bool(held["b"].any())


def shares(x, most):
    variances = torch.linalg.svdvals(x - x.mean(0)) ** 2
    return (variances / variances.sum())[:most].tolist()


@pytest.mark.parametrize("rank", [4, 6])
def test_eva_gives_ranks_to_where_they_explain_most(rank):
    data = [x * torch.logspace(3, -3, 16) for x in DATA]  # the first input is of few directions
    model, report = adapt("eva", data=data, rank=rank, rho=1.5)
    seen, most = inputs(small_model(), torch.cat(data)), round(1.5 * rank)
    found = [(s, path) for path, x in seen.items() for s in shares(x, most)]
    best = [path for _, path in sorted(found, reverse=True)[: 3 * rank]]
    ranks = {path: leaves(op)["a"].shape[0] for path, op in operators(model).items()}
    assert ranks == {path: best.count(path) for path in set(best)}
    assert len(set(ranks.values())) > 1
    expected = {"0": 52, "2": 56, "4": 40}
    assert report.totals["trainable"] == sum(expected[p] * r for p, r in ranks.items())


def test_eva_leaves_out_a_site_that_explains_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 40), nn.Linear(40, 16))
    nn.init.orthogonal_(model[0].weight)
    with torch.no_grad():
        model[0].weight[:, 0] *= 100
        model[0].bias.zero_()
    torch.manual_seed(1)
    data = [torch.randn(64, 16) for _ in range(4)]
    adapt("eva", model, data=data, rank=1, rho=2.0)
    # almost all variance of the second input is in one direction; the first is white
    assert sum(leaves(op)["a"].shape[0] for op in operators(model).values()) == 2
    assert "1" in operators(model)


def test_eva_rho_is_at_least_one():
    with pytest.raises(ValueError, match="rho"):
        adapt("eva", rho=0.5)


def settling(count=12, rows=64):
    """Batches of a few strong directions, and one batch of others at the end."""
    torch.manual_seed(3)
    strong = torch.logspace(1, -3, 16, dtype=torch.float64)
    return [torch.randn(rows, 16).double() * strong for _ in range(count)] + [
        torch.randn(20 * rows, 16).double() * strong.flip(0)
    ]


def test_eva_reads_no_further_than_its_directions_move():
    data = settling()
    one = {"rank": 2, "targets": {"0": {}}}
    model, report = adapt("eva", data=data, **one)
    note = next(n for n in report.notes if "calibration ended" in n)
    read = int(note.split("after ")[1].split()[0])
    assert 2 <= read < 12
    assert str(len(data)) in note
    early, _ = adapt("eva", data=data[:read], tau=None, **one)
    late, report = adapt("eva", data=data, tau=None, **one)
    assert not report.notes
    a, b, c = (leaves(operators(m)["0"])["a"] for m in (model, early, late))
    torch.testing.assert_close(a, b)
    assert (a[0] @ c[0]).abs() < 0.5


def test_eva_statistics_to_be_kept_are_of_all_the_data(tmp_path):
    data = settling()
    _, report = adapt("eva", data=data, rank=2, statistics=tmp_path / "all")
    assert not report.notes


def test_eva_whitens():
    plain, _ = adapt("eva", rank=3, rho=1.0)
    white, _ = adapt("eva", rank=3, rho=1.0, whiten=True)
    for path, x in inputs(small_model()).items():
        a, b = (leaves(operators(m)[path])["a"] for m in (plain, white))
        sizes = torch.linalg.svdvals(x - x.mean(0))[:3].sqrt()
        torch.testing.assert_close(b * sizes[:, None], a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tau", [0.0, 1.5])
def test_eva_tau_is_a_cosine(tau):
    with pytest.raises(ValueError, match="tau"):
        adapt("eva", tau=tau)


def fisher(data):
    total = {}
    model = small_model()
    for x in torch.cat(data).split(1):
        model.zero_grad()
        loss(model, x).backward()
        for name, p in model.named_parameters():
            if p.ndim == 2:
                total[name] = total.get(name, 0) + p.grad.square() / len(torch.cat(data))
    return total


def test_loku_weighs_rows_by_their_importance():
    model, _ = adapt("loku", data=DATA[:2], loss=loss, rank=4)
    for path, importance in fisher(DATA[:2]).items():
        weight = adapted(model)[path.removesuffix(".weight")]
        d = importance.sum(1).sqrt()
        u, s, vh = torch.linalg.svd(d[:, None] * weight.base.dense(), full_matrices=False)
        low = u[:, :4] * s[:4] @ vh[:4]
        held = leaves(weight.adapter("default"))
        ours = 32 / 4 * d[:, None] * (held["b_1"] @ held["a_1"])
        torch.testing.assert_close(ours, low, rtol=1e-3, atol=1e-6)


def test_loku_spares_what_the_retain_set_needs(tmp_path):
    file = tmp_path / "retain.safetensors"
    bare = small_model()
    sites = sites_of(bare)
    collect(bare, sites, {"fisher"}, as_batches(DATA[2:]), loss=loss)
    save_statistics(bare, sites, file)
    model, _ = adapt("loku", data=DATA[:2], loss=loss, rank=4, retain=str(file))
    retain = fisher(DATA[2:])
    for path, forget in fisher(DATA[:2]).items():
        weight = adapted(model)[path.removesuffix(".weight")]
        d = (forget / (retain[path] + 1e-5)).sum(1).sqrt()
        u, s, vh = torch.linalg.svd(d[:, None] * weight.base.dense(), full_matrices=False)
        held = leaves(weight.adapter("default"))
        ours = 32 / 4 * d[:, None] * (held["b_1"] @ held["a_1"])
        torch.testing.assert_close(ours, u[:, :4] * s[:4] @ vh[:4], rtol=1e-2, atol=1e-3)


def test_loku_says_where_the_loss_does_not_reach():
    with pytest.raises(SiteError, match="does not depend"):
        adapt(
            "loku", rank=4, loss=lambda model, x: model[0](x).square().mean() + 0 * model(x).mean()
        )


def test_loku_unlearns_with_the_inverted_hinge():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 5))
    x, y = torch.randn(32, 8), torch.randint(5, (32,))

    def forget(model, batch):
        return inverted_hinge(model(batch), y)

    adapt("loku", model, data=[x], loss=forget, rank=4)
    control = corank.controller(model)
    optimizer = torch.optim.Adam(control.parameter_groups(3e-2))
    before = forget(model, x).item()
    for _ in range(30):
        optimizer.zero_grad()
        forget(model, x).backward()
        optimizer.step()
    assert forget(model, x).item() < before - 0.2
