"""Error feedback against GPTQ and GPFQ as their papers write them, column by column."""

import pytest
import torch

from corank.errors import SiteError
from corank.models import Site
from corank.operators import quantise_uniform
from corank.quantizers import error_feedback, greedy_paths, round_to_nearest, row_feedback

OUT, IN, GROUP, BITS = 6, 20, 8, 3


def inputs(rows=60):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, IN, generator=g, dtype=torch.float64)
    return x @ torch.randn(IN, IN, generator=g, dtype=torch.float64)


def weight():
    return torch.randn(OUT, IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def site(x):
    made = Site("layer", "q", 0, (OUT, IN), False, "linear")
    made.stats = {"gram": x.mT @ x / len(x)}
    return made


def nearest_on(grid, column):
    """The grid's nearest value to each number of a column (OUT,)."""
    steps = torch.arange(2**BITS)[None] - grid.zero.double()  # (OUT, codes)
    values = steps * grid.scale
    return values.gather(1, (values - column[:, None]).abs().argmin(1, keepdim=True))[:, 0]


def test_error_feedback_is_gptq_by_the_inverse_hessian():
    x, w = inputs(), weight()
    gram = x.mT @ x / len(x)
    gram = gram + 0.01 * gram.diagonal().mean() * torch.eye(IN)
    root = torch.linalg.cholesky(torch.linalg.inv(gram), upper=True)  # GPTQ's algorithm 1
    left, made = w.clone(), torch.zeros_like(w)
    for t in range(IN):
        if t % GROUP == 0:
            grid = quantise_uniform(left[:, t : t + GROUP], BITS, GROUP, symmetric=False)
        made[:, t] = nearest_on(grid, left[:, t])
        error = (left[:, t] - made[:, t]) / root[t, t]
        left[:, t:] -= error[:, None] * root[t, t:]
    found = error_feedback(BITS, GROUP)(w, site(x)).dense()
    torch.testing.assert_close(found, made)


def test_greedy_paths_is_gpfq_on_the_data():
    x, w = inputs(), weight()
    path, made = torch.zeros(len(x), OUT, dtype=torch.float64), torch.zeros_like(w)
    for t in range(IN):
        if t % GROUP == 0:  # fitted to what the columns would be were none of them rounded
            block, ahead = w[:, t : t + GROUP].clone(), path.clone()
            for k in range(block.shape[1]):
                column = x[:, t + k]
                block[:, k] += column @ ahead / column.square().sum()
                ahead += torch.outer(column, w[:, t + k] - block[:, k])
            grid = quantise_uniform(block, BITS, GROUP, symmetric=False)
        column = x[:, t]
        wanted = w[:, t] + column @ path / column.square().sum()
        made[:, t] = nearest_on(grid, wanted)
        path += torch.outer(column, w[:, t] - made[:, t])
    torch.testing.assert_close(greedy_paths(BITS, GROUP)(w, site(x)).dense(), made)


def lost(quantizer, w, x):
    """The mean squared error of each output."""
    made = site(x)
    made.shape = tuple(w.shape)
    return (x @ (w - quantizer(w, made).dense()).mT).square().mean(0)


def test_greedy_paths_err_no_more_than_their_bound():
    steps = torch.randint(0, 16, (OUT, 64), generator=torch.Generator().manual_seed(0)).double()
    w = steps + 0.4 * (steps < 15) * (steps > 0)  # errors that all point one way
    w[:, :2] = torch.tensor([0.0, 15.0])
    x = inputs()[:, :1] + 0.01 * torch.randn(60, 64, generator=torch.Generator().manual_seed(2))
    bound = x.square().mean(0).sum() / 4  # of steps of one
    assert (lost(greedy_paths(4, 64), w, x) <= bound).all()
    assert (lost(round_to_nearest(4, 64), w, x) > 5 * bound).all()


def test_what_greedy_paths_lose_falls_with_the_number_of_columns():
    def relative(quantizer, columns):
        g = torch.Generator().manual_seed(columns)
        x = torch.randn(16, columns, generator=g, dtype=torch.float64)
        w = 2 * torch.rand(20, columns, generator=g, dtype=torch.float64) - 1
        return float(lost(quantizer, w, x).sum() / (x @ w.mT).square().mean(0).sum())

    found = [relative(greedy_paths(3, 4096), n) for n in (64, 256, 1024)]
    assert found[1] < found[0] / 3
    assert found[2] < found[1] / 3
    plain = [relative(round_to_nearest(3, 4096), n) for n in (64, 1024)]
    assert plain[1] > plain[0] / 3


@pytest.mark.parametrize("make", [error_feedback, greedy_paths])
def test_without_correlation_both_are_rounding(make):
    w, plain = weight(), site(inputs())
    plain.stats = {"gram": torch.eye(IN)}
    expected = round_to_nearest(BITS, GROUP)(w, plain).dense()
    torch.testing.assert_close(make(BITS, GROUP)(w, plain).dense(), expected)


@pytest.mark.parametrize("make", [error_feedback, greedy_paths])
def test_inputs_that_never_fire_do_not_disturb(make):
    x = inputs()
    x[:, 3] = 0
    found = make(BITS, GROUP)(weight(), site(x)).dense()
    assert found.isfinite().all()


def test_a_singular_moment_without_a_ridge_is_refused_with_the_remedy():
    x = inputs()
    x[:, 3] = 0
    with pytest.raises(SiteError, match=r"layer .*ridge"):
        error_feedback(BITS, GROUP, ridge=0.0)(weight(), site(x))


def test_an_embedding_has_no_columns_that_read_one_another():
    made = Site("table", "embed", None, (OUT, IN), False, "embedding")
    made.stats = {"row_counts": torch.ones(OUT)}
    with pytest.raises(SiteError, match=r"table .*embedding"):
        error_feedback(BITS, GROUP)(weight(), made)


def test_row_feedback_is_gptq_of_the_transpose_with_scales_down_its_columns():
    z, w = inputs(), weight().mT.contiguous()  # (IN, OUT), used as W^T z
    gram = z.mT @ z / len(z)
    ridged = gram + 0.01 * gram.diagonal().mean() * torch.eye(IN)
    root = torch.linalg.cholesky(torch.linalg.inv(ridged), upper=True)
    left, made = w.mT.clone(), torch.zeros_like(w.mT)  # GPTQ's own orientation, (OUT, IN)
    for t in range(IN):
        made[:, t] = quantise_uniform(left[None, :, t], BITS, 4, symmetric=False).dense()[0]
        error = (left[:, t] - made[:, t]) / root[t, t]
        left[:, t:] -= error[:, None] * root[t, t:]
    found = row_feedback(BITS, 4)(w, site(z))
    torch.testing.assert_close(found.dense(), made.mT)
    counted = row_feedback(BITS, 4).counts((IN, OUT), torch.float64)
    assert counted == (found.numel(), found.bytes())
    plain = round_to_nearest(BITS, 4)(w, site(z)).dense()
    assert ((w - made.mT).mT @ z.mT).norm() < ((w - plain).mT @ z.mT).norm()
