"""Adapters in fixed bases, of small square matrices, of reflections: what laws leave open."""

import pytest
import torch

import corank
from corank.adapters import adapted
from corank.errors import SiteError
from corank.recipes.bases import TAPS
from corank.recipes.orthogonal import soda_sizes
from corank.recipes.structured import KINDS, mora_side

from .small import adapt, batches, loss, operators, small_model, stir

X = batches(1)[0]


def made(key, model=None, **parameters):
    model = small_model() if model is None else model
    report = corank.adapt(model, key, **parameters)
    stir(model)
    return model, operators(model), report


def changes(model, ops):
    """Site -> W' - W."""
    return {n: op.dense() - adapted(model)[n].base.dense() for n, op in ops.items()}


def one_leaf(op):
    (leaf,) = (p for p in op.parameters() if p.requires_grad)
    return leaf


def padded(x, side):
    """x (n,), filled up to a multiple of `side` with its own beginning."""
    rest = -len(x) % side
    return torch.cat((x, x[:rest]) if len(x) >= rest else (x.repeat(rest // len(x) + 2),))[
        : len(x) + rest
    ]


def grouped(length, groups):
    """How many neighbours the authors' code puts in each group."""
    size, more = divmod(length, groups)
    return [size + 1] * more + [size] * (groups - more)


def mora_by_hand(x, m, out, kind):
    side = len(m)
    if kind == "truncate":
        y = torch.zeros(max(out, side), dtype=x.dtype)
        y[:side] = m @ torch.cat((x, x))[:side]
        return y[:out]
    if kind in ("rotate", "decouple"):
        chunks = []
        for t, chunk in enumerate(padded(x, side).view(-1, side)):
            half = side // 2
            angles = t * 10000 ** (-2 * torch.arange(half, dtype=x.dtype) / side)
            cos, sin = angles.cos().repeat(2), angles.sin().repeat(2)
            swapped = torch.cat((-chunk[half:], chunk[:half]))
            turned = chunk * cos + swapped * sin if kind == "rotate" else chunk
            chunks.append(m @ turned)
        y = torch.cat(chunks)
        return y.repeat(-(-out // len(y)))[:out]
    if kind.startswith("group"):
        short = torch.stack([part.sum() for part in x.split(grouped(len(x), side))])
    else:
        short = padded(x, side).view(-1, side).sum(0)
    z = m @ short
    if kind.endswith("group"):
        return torch.cat([z[i].repeat(n) for i, n in enumerate(grouped(out, side))])
    return z.repeat(-(-out // side))[:out]


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_mora_compresses_and_decompresses_as_the_authors_code(kind, rank):
    kind = "decouple" if kind == "decouple" and rank == 1 else kind
    model, ops, report = made("mora", kind=kind, rank=rank)
    count = 0
    for name, op in ops.items():
        out, into = op.shape
        m = one_leaf(op).detach()
        side = mora_side(out, into, rank, kind)
        assert m.shape == (side, side)
        count += side**2
        x = torch.randn(into, dtype=torch.float64)
        if kind == "decouple" and side % 2:
            continue
        y = adapted(model)[name].base.dense() @ x + mora_by_hand(x, m, out, kind)
        torch.testing.assert_close(op(x), y)
    assert report.totals["trainable"] == count


def test_mora_side_is_of_loras_size():
    assert mora_side(4096, 4096, 8, "share") == 256
    assert mora_side(20, 16, 1, "share") == 6
    assert mora_side(36, 16, 1, "share") == 7
    assert mora_side(36, 16, 1, "rotate") == 6


def test_bone_in_its_later_form_is_a_lora_with_repeated_identities():
    model, ops, _ = made("bone", rank=4, variant="miss")
    for name, delta in changes(model, ops).items():
        b = one_leaf(ops[name])
        a = torch.eye(4, dtype=torch.float64).repeat(1, delta.shape[1] // 4)
        torch.testing.assert_close(delta, b @ a)


def circulant(c):
    return torch.stack([c.roll(i) for i in range(len(c))], 1)


def skewed(c):
    return circulant(c) * (1 - 2 * torch.ones(len(c), len(c), dtype=c.dtype).triu(1))


def symmetric(c):
    place = torch.arange(len(c))
    return c[(place[:, None] - place).abs()]


def test_surm_is_the_structured_matrix_of_each_kind():
    for kind, rank in (("circulant", 1), ("toeplitz", 1), ("ldr", 2), ("kronecker", 4)):
        model, ops, report = made("surm", kind=kind, rank=rank, scale=0.5)
        count = 0
        for name, delta in changes(model, ops).items():
            leaves = [p for p in ops[name].parameters() if p.requires_grad]
            out, into = delta.shape
            count += out + into if kind == "kronecker" else 2 * max(out, into) * rank
            if kind == "circulant":
                whole = circulant(leaves[0] * leaves[1])
            elif kind == "toeplitz":
                whole = symmetric(leaves[0]) @ symmetric(leaves[1])
            elif kind == "ldr":
                g, h, g2, h2 = leaves
                whole = circulant(g) @ skewed(h) + circulant(g2) @ skewed(h2)
            else:
                whole = torch.kron(leaves[0], leaves[1])
            torch.testing.assert_close(delta, 0.5 * whole[:out, :into])
        assert report.totals["trainable"] == count


@pytest.mark.parametrize("kind", ["toeplitz", "ldr", "kronecker"])
def test_surm_starts_unchanged_and_learns(kind):
    model = small_model()
    corank.adapt(model, "surm", kind=kind, rank=2 if kind != "toeplitz" else 1)
    torch.testing.assert_close(model(X), small_model()(X))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
    first = loss(model, X).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss(model, X).backward()
        optimizer.step()
    assert loss(model, X).item() < first


def test_fourier_frequencies_are_those_of_the_shape_and_may_start_at_zero():
    one = operators(adapt(corank_method("fourierft"))[0])
    indices = [op.operators[1].index for op in one.values()]
    assert all(len(set(index.tolist())) == 24 for index in indices)
    again = operators(adapt(corank_method("fourierft"), seed=3)[0])
    assert all(
        torch.equal(a, b.operators[1].index) for a, b in zip(indices, again.values(), strict=True)
    )
    model = small_model()
    corank.adapt(model, "fourierft", n_frequency=24, init_weights=True)
    torch.testing.assert_close(model(X), small_model()(X))


def corank_method(key):
    return next(m for m in corank.methods("adapt") if m.key == key)


@pytest.mark.parametrize("name", sorted(TAPS))
def test_wavelets_are_orthonormal_and_db2_sees_no_line(name):
    from corank.operators import Wavelet

    w = Wavelet(12, TAPS[name])
    x = torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(w(x) @ w(x).mT, x)
    ones = torch.ones(12, dtype=torch.float64)
    torch.testing.assert_close(w(ones)[:6], 2**0.5 * ones[:6])
    torch.testing.assert_close(w(ones)[6:], 0 * ones[6:])
    if name == "db2":
        detail = w(torch.arange(12, dtype=torch.float64))[6:-1]  # the last one wraps around
        torch.testing.assert_close(detail, torch.zeros_like(detail))


def test_wara_has_twice_its_rank_and_half_of_loras_numbers():
    model, ops, report = made("wara", rank=3, wavelet="db2")
    for delta in changes(model, ops).values():
        assert torch.linalg.matrix_rank(delta, rtol=1e-9) == 6
    lora = corank.adapt(small_model(), "lora", rank=3)
    assert 2 * report.totals["trainable"] == lora.totals["trainable"]


def test_reflections_start_as_pairs_and_the_penalty_draws_them_apart():
    model = small_model()
    corank.adapt(model, "hra", rank=4, regularisation=0.5)
    for _ in range(2):
        total = 0.0
        for op in operators(model).values():
            u = op.operators[1].u.detach()
            u = u / u.norm(dim=1, keepdim=True)
            total += float((u @ u.mT - torch.eye(4)).norm())
        assert corank.controller(model).penalty().item() == pytest.approx(0.5 * total)
        stir(model)
    chain = operators(model)["0"].operators[1].u
    corank.controller(model).penalty().backward()
    assert chain.grad.any()
    plain = small_model()
    corank.adapt(plain, "hra", rank=4, regularisation=0.0)
    assert corank.controller(plain).penalty().item() == 0


def test_reflections_keep_every_length():
    model, ops, _ = made("hra", rank=6)
    for name, op in ops.items():
        w = adapted(model)[name].base.dense()
        torch.testing.assert_close(op.dense() @ op.dense().mT, w @ w.mT)


def test_soda_stays_orthogonal_and_bounds_its_singular_values_below():
    model = small_model()
    corank.adapt(model, "soda")
    control = corank.controller(model)
    optimizer = torch.optim.SGD(control.parameter_groups(0.05))
    control.attach(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        loss(model, X).backward()
        optimizer.step()
    moved = 0.0
    for op in operators(model).values():
        turn = op.operators[1].dense()
        eye = torch.eye(len(turn), dtype=turn.dtype)
        torch.testing.assert_close(turn @ turn.mT, eye)
        moved += float((turn - eye).detach().norm())
    assert moved > 1e-3
    with torch.no_grad():
        for op in operators(model).values():
            for name, leaf in op.named_parameters():
                if leaf.requires_grad and name.endswith("diagonal"):
                    leaf.fill_(-1e3)
            torch.testing.assert_close(op.dense(), torch.zeros(op.shape, dtype=torch.float64))


def test_soda_gradient_is_tangent_to_the_manifold():
    model = small_model()
    corank.adapt(model, "soda")
    control = corank.controller(model)
    loss(model, X).backward()
    control.before_step()
    for op in operators(model).values():
        for leaf in op.operators[1].parameters():
            product = leaf.mT @ leaf.grad
            torch.testing.assert_close(product, -product.mT)


def test_soda_sizes_are_the_authors_or_the_most_even():
    assert soda_sizes(768) == (6, 8, 16)
    assert soda_sizes(4096) == (16, 16, 16)
    assert soda_sizes(7) == (1, 1, 7)
    _, _, report = made("soda", targets=["0"], sizes=(1, 4, 4))
    assert report.totals["trainable"] == 16 + 1 + 16 + 16


REFUSED = [
    ("hra", {"rank": 3}, ValueError, "rank must be even"),
    ("hra", {"regularisation": -1.0}, ValueError, "regularisation"),
    ("hra", {"rank": 18}, SiteError, "18 reflections"),
    ("bone", {"rank": 3}, SiteError, "tiles of 3"),
    ("bone", {"variant": "bat"}, ValueError, "variant"),
    ("bone", {"rank": 17, "variant": "miss"}, SiteError, "outside 1 to 16"),
    ("mora", {"kind": "turn"}, ValueError, "kind must be one of"),
    ("mora", {"rank": 0}, ValueError, "rank"),
    ("surm", {"kind": "hankel"}, ValueError, "kind must be one of"),
    ("surm", {"kind": "kronecker", "rank": 3}, SiteError, "divides not both sides"),
    ("surm", {"rank": 0}, ValueError, "rank"),
    ("fourierft", {}, SiteError, "n_frequency = 1000 is outside 1 to 576"),
    ("wara", {"wavelet": "db9"}, ValueError, "wavelet must be one of"),
    ("soda", {"sizes": (2, 2, 2)}, SiteError, "do not multiply to its 16 inputs"),
    ("nora", {"rank": 4, "inner_rank": 5}, ValueError, "inner_rank"),
    ("lora_fa", {"rank": 17}, SiteError, "rank 17"),
    ("map", {"rank": 17}, SiteError, "rank 17"),
]


@pytest.mark.parametrize(("key", "parameters", "error", "message"), REFUSED)
def test_what_does_not_fit_is_refused_and_the_model_is_as_it_was(key, parameters, error, message):
    model = small_model()
    with pytest.raises(error, match=message):
        corank.adapt(model, key, **parameters)
    assert not adapted(model)


def test_an_odd_side_has_no_wavelet():
    with pytest.raises(SiteError, match="odd"):
        corank.adapt(torch.nn.Sequential(torch.nn.Linear(5, 4)), "wara", rank=1)


@pytest.mark.parametrize("key", ["hra", "soda", "mora", "wara"])
def test_a_narrow_weight_merges_through_wide_leaves(key):
    model = small_model(dtype=torch.bfloat16)
    corank.adapt(model, key, **({} if key == "soda" else {"rank": 4}))
    stir(model)
    with torch.no_grad():
        acting = model(X.bfloat16())
        corank.adapters.merge_adapters(model)
        torch.testing.assert_close(model(X.bfloat16()), acting, rtol=0.05, atol=0.05)
