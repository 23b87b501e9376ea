"""Tucker convolutions, and their integrator against dense tensors."""

import pytest
import torch
from torch import nn

import corank
from corank.control.tucker_flow import hosvd
from corank.layers import Convolution
from corank.operators import Dense, Tucker

from .test_low_rank_manifold import drawn


@pytest.mark.parametrize("geometry", [{"padding": 1}, {"stride": 2, "dilation": 2},
                                      {"padding": 2, "padding_mode": "reflect"}])  # fmt: skip
def test_a_tucker_convolution_is_the_dense_one(geometry):
    conv = nn.Conv2d(5, 6, 3, **geometry).double()
    factors = [Dense(drawn(n, r, seed=n)) for n, r in ((6, 2), (5, 3), (3, 2), (3, 3))]
    op = Tucker(*factors, core=drawn(2, 3, 2, 3))
    names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    layer = Convolution(op, conv.bias, **{name: getattr(conv, name) for name in names})
    with torch.no_grad():
        conv.weight.copy_(op.dense().view(6, 5, 3, 3))
    x = drawn(2, 5, 9, 9)
    torch.testing.assert_close(layer(x), conv(x))


def test_a_core_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        Tucker(Dense(drawn(4, 2)), Dense(drawn(3, 2)), core=drawn(2, 3))


def lone(tolerance, total=None, **parameters):
    conv = nn.Conv2d(8, 6, 3, bias=False).double()
    conv.weight.data.copy_(drawn(6, 8, 3, 3, seed=5) / 4)
    model = nn.Sequential(conv)
    report = corank.factorize(
        model, "tucker_dlrt", targets="all", tolerance=tolerance, **{"rank": 3} | parameters
    )
    control = corank.controller(model, total_steps=total)
    optimizer = torch.optim.SGD(control.parameter_groups(0.02))
    control.attach(optimizer)
    return model, optimizer, report


def kernel(model):
    return model[0].operator.dense().detach().reshape(6, 8, 3, 3)


def step(model, optimizer, x, target):
    """One step; returns the loss's gradient with regard to the dense kernel before it."""
    w = kernel(model).requires_grad_()
    wanted = nn.functional.conv2d(x, target)
    loss = (nn.functional.conv2d(x, w) - wanted).square().sum() / 2
    (gradient,) = torch.autograd.grad(loss, w)
    optimizer.zero_grad()
    ((model(x) - wanted).square().sum() / 2).backward()
    optimizer.step()
    return gradient


def unfold(tensor, mode):
    return tensor.movedim(mode, 0).flatten(1)


@pytest.mark.parametrize("tolerance", [0.02, 0.4])
def test_the_steps_are_the_integrators(tolerance):
    model, optimizer, _ = lone(tolerance)
    target = drawn(6, 8, 3, 3, seed=2) / 2
    ranks = (3, 3, 3, 3)
    w = drawn(6, 8, 3, 3, seed=5) / 4
    core, bases = hosvd(w, ranks)
    seen = []
    for number in range(3):
        whole = torch.einsum("abcd,ia,jb,kc,ld->ijkl", core, *bases)
        torch.testing.assert_close(kernel(model), whole)
        g = step(model, optimizer, drawn(2, 8, 5, 5, seed=number) / 2, target)
        wide = []
        for mode, basis in enumerate(bases):
            # W unfolded is U S V^T with orthonormal V: K = U S moves by the gradient times V.
            q = torch.linalg.qr(unfold(whole, mode).mT @ basis).Q
            k = unfold(whole, mode) @ q - 0.02 * unfold(g, mode) @ q
            both = torch.cat((basis, k), 1)
            wide.append(torch.linalg.qr(both).Q[:, : 2 * basis.shape[1]])
        torch.testing.assert_close(kernel(model), whole)  # only the bases have grown
        g = step(model, optimizer, drawn(2, 8, 5, 5, seed=9 - number) / 2, target)
        into = [u @ u.mT for u in wide]
        moved = whole - 0.02 * torch.einsum("abcd,ia,jb,kc,ld->ijkl", g, *into)
        turned = []
        for mode in range(4):
            u, values, _ = torch.linalg.svd(unfold(moved, mode), full_matrices=False)
            kept = len(values)
            while kept > 2 and values[kept - 1 :].norm() <= tolerance * values.norm():
                kept -= 1
            turned.append(u[:, :kept])
        core = torch.einsum("abcd,ai,bj,ck,dl->ijkl", moved, *turned)
        bases = turned
        seen.append(tuple(core.shape))
    whole = torch.einsum("abcd,ia,jb,kc,ld->ijkl", core, *bases)
    torch.testing.assert_close(kernel(model), whole)
    assert any(shape != ranks for shape in seen)


def test_counts_of_a_convolution_are_the_formulas():
    model, _, report = lone(0.1)
    # Channel modes have room for 3 more of 6 and of 8; taps are whole and have none.
    assert report.totals["trainable"] == 6 * 6 * 3 * 3 + 3 * (6 + 8)
    stored = 6 * 6 + 8 * 6 + 2 * 3 * 3 + 2 * 3**4
    assert report.totals["numel_after"] == report.totals["trainable"] + stored
    assert sum(p.numel() for p in model.parameters()) == report.totals["numel_after"]


def test_it_finds_the_ranks_and_ends_as_a_plain_tucker_tensor():
    model, optimizer, _ = lone(0.05, total=160, rank=4)
    core, bases = hosvd(drawn(6, 8, 3, 3, seed=2), (2, 3, 2, 2))
    target = torch.einsum("abcd,ia,jb,kc,ld->ijkl", core, *bases)
    for number in range(160):
        step(model, optimizer, drawn(4, 8, 4, 4, seed=number % 40) / 2, target)
    op = model[0].operator
    assert isinstance(op, Tucker)
    assert tuple(op.core.shape) == (2, 3, 2, 2)
    assert (kernel(model) - target).norm() < 0.05 * target.norm()
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert known == {id(p) for p in model.parameters()}
