"""Projection, refresh and lift, seen through GaLore."""

import importlib.util
import io
import sys
import types

import pytest
import torch
from torch import nn

import corank
from corank.optim import bases
from corank.optim.inner import INNER

from .small import SHAPES, problem, run


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("inner", sorted(INNER))
def test_identity_at_full_rank_is_the_inner_optimiser(shape, inner):
    weight, loss = problem(SHAPES[shape])
    plain, _ = problem(SHAPES[shape])
    small = min(SHAPES[shape])
    lowly = corank.optim.GaLore(
        [weight], 0.01, rank=small, basis="identity", inner=inner, scale=1.0, every=3
    )
    bare = corank.optim.optimizer("Bare", INNER[inner])([plain], 0.01)
    for p, q in zip(run(lowly, weight, loss, 12), run(bare, plain, loss, 12), strict=True):
        if inner in ("adafactor", "muon"):  # they sum, in the order of the memory
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(p, q)


@pytest.mark.parametrize("shape", SHAPES)
def test_adam_inside_is_torchs(shape):
    weight, loss = problem(SHAPES[shape])
    weight = nn.Parameter(weight.detach().double())
    plain = nn.Parameter(weight.detach().clone())
    options = {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    lowly = corank.optim.GaLore([weight], 0.01, rank=99, basis="identity", scale=1.0, **options)
    torchs = torch.optim.AdamW([plain], 0.01, **options)
    for p, q in zip(run(lowly, weight, loss, 12), run(torchs, plain, loss, 12), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def galore_torch(monkeypatch):
    """Its AdamW, without the 8-bit one beside it, which wants bitsandbytes."""
    found = importlib.util.find_spec("galore_torch")
    if found is None:
        pytest.skip("galore-torch is not installed")
    package = types.ModuleType("galore_torch")
    package.__path__ = list(found.submodule_search_locations)
    monkeypatch.setitem(sys.modules, "galore_torch", package)
    return importlib.import_module("galore_torch.adamw")


@pytest.mark.parametrize("shape", SHAPES)
def test_galore_torch_takes_the_same_path_while_the_basis_stays(shape, monkeypatch):
    theirs = galore_torch(monkeypatch)
    weight, loss = problem(SHAPES[shape])
    other, _ = problem(SHAPES[shape])
    ours = corank.optim.GaLore([weight], 0.01, rank=4, basis="svd", eps=1e-12)
    asked = {"rank": 4, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}
    them = theirs.AdamW(
        [{"params": [other], **asked}], lr=0.01, eps=1e-12, no_deprecation_warning=True
    )
    for p, q in zip(run(ours, weight, loss, 25), run(them, other, loss, 25), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mischief", ["signs", "order"])
def test_signs_and_order_of_singular_vectors_make_no_difference(shape, mischief, monkeypatch):
    def path():
        weight, loss = problem(SHAPES[shape])
        optimizer = corank.optim.GaLore([weight], 0.05, rank=4, every=4, basis="svd")
        return run(optimizer, weight, loss, 20)

    plain, found = path(), bases.exact_svd
    calls = []

    def mischievous(a):
        calls.append(1)
        u = found(a).u.clone()
        if mischief == "signs":
            u = u * torch.tensor([1.0, -1.0] * 40)[: u.shape[1]] * (-1) ** len(calls)
        else:
            u[:, :4] = u[:, :4].roll(len(calls), 1)
        return types.SimpleNamespace(u=u)

    monkeypatch.setattr(bases, "exact_svd", mischievous)
    for p, q in zip(plain, path(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    assert len(calls) == 5


@pytest.mark.parametrize("shape", SHAPES)
def test_warm_subspace_iteration_finds_what_the_svd_finds(shape):
    g = torch.Generator().manual_seed(1)
    a, b = sorted(SHAPES[shape])
    x = torch.randn(a, 4, generator=g) @ torch.randn(4, b, generator=g)
    x += 0.001 * torch.randn(a, b, generator=g)
    exact = torch.linalg.svd(x).U[:, :4]
    for old in (None, torch.linalg.qr(torch.randn(a, 4, generator=g)).Q):
        found = bases.subspace_iteration(x, old, 4, g)
        torch.testing.assert_close((found.T @ exact).abs(), torch.eye(4), atol=1e-2, rtol=0)
        torch.testing.assert_close(found.T @ found, torch.eye(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize("basis", sorted(set(bases.BASES) - {"seeded"}))
def test_bases_are_orthonormal(basis):
    weight, loss = problem((12, 20))
    optimizer = corank.optim.GaLore([weight], 0.01, rank=5, every=2, basis=basis)
    run(optimizer, weight, loss, 3)
    state, x = optimizer.state[weight], weight.grad
    rank = 5
    made = bases.BASES[basis](lambda side: rank, lambda state, now: False)
    frame = made.frame(x, dict(state), None)
    torch.testing.assert_close(frame.down(frame.up(torch.eye(5))), torch.eye(5), atol=1e-5, rtol=0)
    r = torch.randn(5, 3)
    full = frame.up(torch.eye(5))
    torch.testing.assert_close(full @ r, frame.up(r))
    torch.testing.assert_close(full.T @ x, frame.down(x))


def test_refreshes_take_turns(monkeypatch):
    net = nn.Sequential(*[nn.Linear(6, 6, bias=False) for _ in range(5)])
    optimizer = corank.optim.GaLore(net, rank=2, every=5)
    found, done = bases.subspace_iteration, []
    monkeypatch.setattr(
        bases, "subspace_iteration", lambda *args: done.append(step) or found(*args)
    )
    for step in range(12):  # noqa: B007 (the count above reads it)
        optimizer.zero_grad()
        net(torch.randn(3, 6)).square().sum().backward()
        optimizer.step()
    assert [done.count(step) for step in range(12)] == [5] + 11 * [1]


def test_which_parameters_of_a_model_are_projected():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(30, 8)
            self.norm = nn.LayerNorm(8)
            self.mlp = nn.Linear(8, 16)
            self.back = nn.Linear(16, 8)
            self.lm_head = nn.Linear(8, 30, bias=False)
            self.lm_head.weight = self.embed.weight

        def forward(self, x):
            return self.lm_head(self.back(self.mlp(self.norm(self.embed(x))).relu()))

    net = Net()
    optimizer = corank.optim.GaLore(net, rank=2)
    net(torch.arange(9)).logsumexp(-1).sum().backward()
    optimizer.step()
    held = {n for n, p in net.named_parameters() if "basis" in optimizer.state[p]}
    assert held == {"mlp.weight", "back.weight"}
    assert len(optimizer.state) == len(list(net.parameters()))
    chosen = corank.optim.groups(net, ["back"], rank=3)
    assert [len(g["params"]) for g in chosen] == [1, 6]
    assert chosen[0]["rank"] == 3


def test_scaler_accumulation_and_clipping():
    weight, loss = problem((10, 24))
    plain, _ = problem((10, 24))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    ours, bare = (corank.optim.GaLore([p], 0.01, rank=4, every=5) for p in (weight, plain))
    for _ in range(8):
        for p, optimizer in ((weight, ours), (plain, bare)):
            optimizer.zero_grad()
            for _ in range(2):
                part = loss(p) / 2
                (scaler.scale(part) if optimizer is ours else part).backward()
            if optimizer is ours:
                scaler.unscale_(ours)
            nn.utils.clip_grad_norm_([p], 0.1)
            scaler.step(ours) if optimizer is ours else bare.step()
        scaler.update()
    torch.testing.assert_close(weight, plain)


def test_half_the_state_in_bfloat16():
    weight, loss = problem((10, 24))
    optimizer = corank.optim.GaLore([weight], 0.01, rank=4, every=5, state_dtype="bfloat16")
    start = loss(weight).item()
    assert corank.optim.state_bytes(optimizer) == 2 * (10 * 4 + 2 * 4 * 24)
    run(optimizer, weight, loss, 300)
    assert optimizer.state[weight]["step"] == 300
    assert corank.optim.state_bytes(optimizer) == 2 * (10 * 4 + 2 * 4 * 24)
    assert loss(weight).item() < 0.7 * start


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"every": 0}, "every must be at least 1"),
        ({"basis": "sdv"}, "did you mean 'svd'"),
        ({"inner": "adan"}, "did you mean 'adam'"),
        ({"betas": (0.9, 1.0)}, "betas is out of range"),
        ({"lr": -1.0}, "lr is out of range"),
        ({"ranks": 3}, "did you mean 'rank'"),
        ({"state_dtype": "int3"}, "state_dtype is out of range"),
    ],
)
def test_bad_options(options, said):
    with pytest.raises(ValueError, match=said):
        corank.optim.GaLore([nn.Parameter(torch.ones(3, 3))], **options)


def test_sparse_and_complex_are_refused():
    table = nn.Embedding(10, 4, sparse=True)
    optimizer = corank.optim.GaLore([table.weight], rank=2)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert not optimizer.state
    with pytest.raises(ValueError, match="real floating-point"):
        corank.optim.GaLore([nn.Parameter(torch.ones(3, 3, dtype=torch.complex64))])


def test_other_groups_at_resume_are_an_error():
    weight, loss = problem((10, 24))
    optimizer = corank.optim.GaLore([weight], rank=2)
    run(optimizer, weight, loss, 2)
    more = [nn.Parameter(torch.ones(10, 24)), nn.Parameter(torch.ones(2))]
    other = corank.optim.GaLore(more, rank=2)
    with pytest.raises(ValueError, match="match"):
        other.load_state_dict(optimizer.state_dict())
    small = corank.optim.GaLore([nn.Parameter(torch.ones(3, 3))], rank=2)
    with pytest.raises(ValueError, match="another shape"):
        small.load_state_dict(optimizer.state_dict())


def test_the_module_is_not_needed_for_the_state():
    weight, loss = problem((10, 24))
    optimizer = corank.optim.GaLore([weight], rank=2)
    run(optimizer, weight, loss, 2)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    assert b"corank" not in buffer.getvalue()


def test_the_rest_of_a_singular_value_decomposition_is_let_go():
    weight, loss = problem((24, 16))
    optimizer = corank.optim.GaLore([weight], rank=4, basis="svd")
    run(optimizer, weight, loss, 1)
    assert optimizer.state[weight]["basis"].untyped_storage().nbytes() == 4 * 16 * 4


def test_a_warm_start_keeps_what_was_found():
    g = torch.Generator().manual_seed(2)
    u, v = (torch.linalg.qr(torch.randn(60, 60, generator=g)).Q for _ in range(2))
    x = u * torch.linspace(1, 0.9, 60) @ v.T  # so flat that a cold start cannot tell
    cold, warm = (bases.subspace_iteration(x, old, 4, g) for old in (None, u[:, :4]))
    held = [(p.T @ u[:, :4]).norm().item() for p in (cold, warm)]
    assert held[0] < 1.5
    assert held[1] > 1.9
