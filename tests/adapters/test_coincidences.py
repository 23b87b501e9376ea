"""Where two papers' methods coincide: the setting, and that W' and its gradients are the same.

Pairs whose test needs the methods' own machinery stand with those methods: LoRA+ at ratio 1
(test_levels), ReLoRA and PeriodicLoRA (test_restarting), SMoRA with equal gates (test_experts).
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import corank

from .small import batches, leaves, operators, small_model, stir

RANK = 4


def made(key, **given):
    model = small_model()
    corank.adapt(model, key, **given)
    return model


def assert_same(one, two, pair):
    """W' and its gradients agree once `pair(a, b)` has set the leaves of two operators alike.

    It gets both operators' leaves by name and yields (leaf, leaf, how the second's gradient looks
    as the first's).
    """
    stir(one, seed=3)
    stir(two, seed=4)
    for path, a in operators(one).items():
        b = operators(two)[path]
        with torch.no_grad():
            pairs = list(pair(leaves(a), leaves(b)))
        left, right = a.dense(), b.dense()
        torch.testing.assert_close(left, right)
        weight = torch.randn(left.shape, dtype=left.dtype)
        gradients = [
            torch.autograd.grad((w * weight).sum(), [p[side] for p in pairs], retain_graph=True)
            for side, w in enumerate((left, right))
        ]
        for mine, theirs, (_, _, look) in zip(*gradients, pairs, strict=True):
            torch.testing.assert_close(mine, look(theirs))


def same(gradient):
    return gradient


def like(*names):
    """Leaves of these names (ours, theirs) are copied from the second to the first."""

    def pair(a, b):
        for mine, theirs in names:
            a[mine].copy_(b[theirs])
            yield a[mine], b[theirs], same

    return pair


LORA = like(("b", "b"), ("a", "a"))


def with_value(name, value, pair=LORA):
    """`pair`, after one of the first operator's leaves is set to a number or a matrix."""

    def found(a, b):
        a[name].copy_(torch.as_tensor(value).to(a[name]).expand_as(a[name]))
        yield from pair(a, b)

    return found


GATED = with_value("gate", 1.0)
ALPHA = 8.0

#: What is plain LoRA and where, beside lora(rank=4, alpha=8).
LORAS = {
    "rslora": ({"alpha": ALPHA / math.sqrt(RANK)}, LORA),
    "lora_plus": ({"alpha": ALPHA, "ratio": 1.0}, LORA),
    "modulora": ({"alpha": ALPHA}, LORA),  # over a base that is not quantised
    "eva": ({"alpha": ALPHA, "rho": 1.0, "data": batches()}, LORA),  # ranks not moved
    "roselora": ({"alpha": ALPHA, "keep": 1.0}, LORA),
    "prilora": ({"alpha": ALPHA, "first": 4, "last": 4, "rank": None}, LORA),  # before it prunes
    "dylora": ({"alpha": ALPHA}, LORA),  # at its full rank
    "shears": ({"alpha": ALPHA, "space": (4,), "sparsity": 0.0}, LORA),  # no zeros, one rank
    "sqft": ({"alpha": ALPHA}, LORA),  # a base without zeros
    "sora": ({"alpha": ALPHA, "threshold": 0.0}, GATED),
    "adalora": ({"alpha": ALPHA, "init_r": 4, "target_r": 4, "rank": None}, GATED),
    "bilora": ({"alpha": ALPHA}, GATED),
    "diffora": ({"alpha": ALPHA}, with_value("logit", math.inf)),  # where it was kept
    "relora": ({"alpha": ALPHA}, LORA),  # before its first restart
    "periodic_lora": ({"alpha": ALPHA}, LORA),
    "convlora": ({"alpha": ALPHA}, like(("weight", "b"), ("weight_1", "a"))),  # of a matrix
    "convlora_adabn": ({"alpha": ALPHA}, like(("weight", "b"), ("weight_1", "a"))),
    "moslora": (
        {"alpha": ALPHA},
        with_value("b", torch.eye(RANK), like(("weight", "b"), ("a", "a"))),
    ),
    "block_lora": ({"alpha": ALPHA, "blocks": 1}, like(("weight", "b"), ("weight_1", "a"))),
}


@pytest.mark.parametrize("key", LORAS)
def test_it_is_lora(key):
    given, pair = LORAS[key]
    given = {k: v for k, v in ({"rank": RANK} | given).items() if v is not None}
    assert_same(made(key, **given), made("lora", rank=RANK, alpha=ALPHA), pair)


def test_it_is_lora_without_a_scale():
    """A first task whose selector is one; FedPara beside a matrix of ones."""
    plain = made("lora", rank=RANK, alpha=RANK)
    assert_same(made("incremental_rank", rank=RANK), plain, GATED)

    def ones(a, b):
        a["b_1"].fill_(1 / RANK)
        a["a_1"].fill_(1)
        yield from LORA(a, b)

    assert_same(made("fedpara", rank=RANK, alpha=RANK), plain, ones)


@pytest.mark.parametrize(("normalised", "plain"), [("dora", "lora"), ("edora", "lora_xs")])
def test_rows_of_the_length_they_have_are_not_normalised(normalised, plain):
    """The norm being a constant in the backward pass, the gradients coincide too."""
    one, two = made(normalised, rank=RANK, alpha=ALPHA), made(plain, rank=RANK, alpha=ALPHA)
    names = ("b", "a") if plain == "lora" else ("a",)
    stir(two)
    for path, op in operators(one).items():
        a, b = leaves(op), leaves(operators(two)[path])
        with torch.no_grad():
            for name in names:
                a[name].copy_(b[name])
            a["m"].copy_(operators(two)[path].dense().norm(dim=1))
        left, right = op.dense(), operators(two)[path].dense()
        torch.testing.assert_close(left, right)
        weight = torch.randn_like(left)
        mine = torch.autograd.grad((left * weight).sum(), [a[name] for name in names])
        theirs = torch.autograd.grad((right * weight).sum(), [b[name] for name in names])
        torch.testing.assert_close(mine, theirs)


def test_map_at_loras_lengths_is_lora():
    one, two = made("map", rank=RANK), made("lora", rank=RANK, alpha=RANK)
    stir(two)
    for path, op in operators(one).items():
        a, b = leaves(op), leaves(operators(two)[path])
        with torch.no_grad():
            a["b"].copy_(b["b"])
            a["a"].copy_(b["a"])
            a["m_1"].fill_((b["b"] @ b["a"]).norm())
        torch.testing.assert_close(op.dense(), operators(two)[path].dense())


def test_a_tensor_of_two_modes_is_lotr_at_one_site():
    one, two = made("flora_tucker", rank=RANK, scale=0.5), made("lotr", rank=RANK, scale=0.5 * RANK)
    assert_same(one, two, like(*[(name, name) for name in ("weight", "weight_1", "weight_2")]))


def test_cores_differ_in_their_frozen_factors_alone():
    """LoRA-XS and PMSS; SVFT with every place trained is LoRA-XS at full rank, less the values."""

    def between(a, b):
        a["b"].copy_(b["b"])
        a["weight"].copy_(b["weight"])
        yield from like(("a", "a"))(a, b)

    assert_same(made("pmss", rank=RANK), made("lora_xs", rank=RANK, alpha=RANK), between)

    def unscaled(a, b):
        s = b["weight"].norm(dim=1)
        signs = torch.outer((a["weight"] * b["b"]).sum(0), (a["weight_1"] * b["weight"]).sum(1) / s)
        a["values"].copy_((b["a"] * s * signs).flatten())
        yield a["values"], b["a"], lambda g: (g / s * signs).flatten()

    for number, side in enumerate((16, 20, 20)):
        target = {"targets": [str(2 * number)]}
        full = made("svft", pattern="banded", off_diagonal=side - 1, **target)
        assert_same(full, made("lora_xs", rank=side, alpha=side, **target), unscaled)


def test_triples_that_move_freely_are_sorsas_with_their_values_fixed():
    def pair(a, b):
        a["gate_1"].copy_(a["gate"])
        yield from like(("b_1", "b_1"), ("a_1", "a_1"))(a, b)

    assert_same(made("sorsa", rank=RANK), made("spectral_adapter", rank=RANK), pair)


def test_soda_that_does_not_turn_is_svdiff():
    def pair(a, b):
        for name in ("weight_2", "weight_3", "weight_4"):
            a[name].copy_(torch.eye(len(a[name])))
        yield from like(("diagonal_1", "diagonal_1"))(a, b)

    assert_same(made("soda"), made("svdiff"), pair)


def start(model, path="0"):
    """The part of the weight that trains, at the start."""
    found = leaves(operators(model)[path])
    return found["b_1"] @ found["a_1"]


def test_inputs_alike_in_all_directions_leave_corda_the_weights_own_triples():
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=generator, dtype=torch.float64)).Q
    given = {"rank": RANK, "targets": ["0"]}
    for mode, key in (("ipm", "pissa"), ("kpm", "milora")):
        corda = made("corda", mode=mode, data=[4 * turn], **given)
        torch.testing.assert_close(start(corda), start(made(key, **given)), rtol=1e-4, atol=1e-6)


def test_kore_with_every_direction_is_pissa_with_one_frozen_factor():
    given = {"rank": 16, "targets": ["0"]}
    kore, pissa = made("kore", data=batches(), **given), made("pissa", **given)
    found = leaves(operators(kore)["0"])
    torch.testing.assert_close(found["b_1"] @ found["a"], start(pissa))


def full_changes():
    square = {"targets": ["4"]}
    yield made("mora", rank=10, kind="share", **square), "weight"
    yield made("mora", rank=10, kind="rotate", **square), "weight"  # the first block is not turned
    yield made("s2ft", ratio=1.0, **square), "weight"
    yield made("lift", rank=10, interval=None, **square), "values"
    yield made("bone", rank=20, variant="miss", **square), "weight"


def test_all_of_a_square_weight_is_one_method():
    """MoRA and MiSS at the weight's side, S2FT of all channels, LIFT of all entries: W + D."""
    generator = torch.Generator().manual_seed(0)
    change, weight = torch.randn(2, 20, 20, generator=generator, dtype=torch.float64)
    for model, name in full_changes():
        op = operators(model)["4"]
        leaf, before = leaves(op)[name], op.dense().detach()
        order = leaves(op)["index"].long() if name == "values" or "index" in leaves(op) else None
        with torch.no_grad():
            if name == "values":
                leaf.copy_(change.flatten()[order])
            else:
                leaf.copy_(change)
        torch.testing.assert_close(op.dense() - before, change)
        (gradient,) = torch.autograd.grad((op.dense() * weight).sum(), [leaf])
        torch.testing.assert_close(gradient.flatten(), weight.flatten())


def test_block_lora_of_identities_is_miss():
    given = {"rank": RANK, "targets": ["0"]}
    pair = with_value("weight_1", torch.eye(RANK), like(("weight", "weight")))
    one = made("block_lora", alpha=RANK, blocks=4, **given)
    assert_same(one, made("bone", variant="miss", **given), pair)


def test_a_square_kronecker_product_is_lokr():
    def square(key, **given):
        model = nn.Sequential(nn.Linear(16, 16, bias=False)).double()
        with torch.no_grad():
            model[0].weight.copy_(small_model()[0].weight[:16])
        corank.adapt(model, key, **given)
        return model

    one = square("surm", kind="kronecker", rank=4)
    pair = like(("weight", "weight"), ("weight_1", "weight_1"))
    assert_same(one, square("lokr", rank=8, alpha=8.0), pair)


def test_shared_random_factors_with_one_diagonal_are_one_method():
    """RandLoRA of one basis and VeRA; AFLoRA with its factors frozen and VeRA."""
    given = {"rank": 16, "targets": ["0"]}
    one = made("randlora", alpha=16.0, stored=True, **given)
    two = made("vera", stored=True, **given)

    def ones(a, b):
        a["weight"].copy_(b["weight"])  # B
        a["weight_2"].copy_(b["weight_1"])  # A
        a["weight_1"].fill_(1)  # gamma
        b["diagonal"].fill_(1)
        yield from like(("diagonal", "diagonal_1"))(a, b)

    assert_same(one, two, ones)

    def factors(a, b):
        a["b"].copy_(b["weight"])
        a["a"].copy_(b["weight_1"].T)
        yield from like(("diagonal", "diagonal"), ("gate", "diagonal_1"))(a, b)

    assert_same(made("aflora", **given), two, factors)


def test_a_mixture_of_the_unit_matrices_is_lora():
    """NOLA's bases, where there are as many as entries."""
    given = {"rank": 1, "targets": ["0"]}

    def units(a, b):
        for name in ("weight", "weight_2"):
            a[name].copy_(torch.eye(*a[name].shape))
        a["weight_1"].fill_(0)
        a["coefficients"].copy_(b["b"].flatten())
        a["coefficients_1"][:16].copy_(b["a"].flatten())
        yield a["coefficients"], b["b"], torch.flatten
        yield a["coefficients_1"], b["a"], lambda g: nn.functional.pad(g.flatten(), (0, 20))

    lora = made("lora", alpha=1.0, **given)
    assert_same(made("nola", alpha=1.0, bases=36, stored=True, **given), lora, units)


def test_vectors_of_one_piece_each_are_lora():
    given = {"rank": 1, "targets": ["0"]}
    one = made("vb_lora", num_vectors=13, vector_length=4, topk=1, **given)
    two = made("lora", alpha=1.0, **given)
    stir(two)
    left, right = operators(one)["0"], operators(two)["0"]
    bank, lora = leaves(left), leaves(right)
    choice = torch.eye(13, dtype=torch.float64)
    with torch.no_grad():
        bank["logits"].copy_(choice[None, :9])
        bank["logits_1"].copy_(choice[None, 9:])
        bank["bank"].copy_(torch.cat([lora["b"].flatten(), lora["a"].flatten()]).view(13, 4))
    torch.testing.assert_close(left.dense(), right.dense())
    weight = torch.randn_like(left.dense())
    (mine,) = torch.autograd.grad((left.dense() * weight).sum(), [bank["bank"]])
    theirs = torch.autograd.grad((right.dense() * weight).sum(), [lora["b"], lora["a"]])
    torch.testing.assert_close(mine.flatten(), torch.cat([g.flatten() for g in theirs]))


def test_a_mixture_of_one_expert_is_lora():
    one, two = (
        made("moe_lora", rank=RANK, experts=1, top_k=1, alpha=ALPHA),
        made("lora", rank=RANK, alpha=ALPHA),
    )
    stir(two)
    x = batches(1)[0]
    for path, op in operators(one).items():
        with torch.no_grad():
            list(LORA(leaves(op), leaves(operators(two)[path])))
    torch.testing.assert_close(one(x), two(x))
    one(x).square().sum().backward()
    two(x).square().sum().backward()
    for path, op in operators(one).items():
        for name in ("b", "a"):
            mine, theirs = leaves(op)[name].grad, leaves(operators(two)[path])[name].grad
            torch.testing.assert_close(mine, theirs)
