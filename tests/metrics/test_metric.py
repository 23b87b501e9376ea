"""Each metric against the loss that it stands for, on data."""

import pytest
import torch

from corank.metrics import (
    Metric,
    activation_scale,
    covariance,
    euclidean,
    fisher,
    fisher_rows,
    second_moment,
    two_sided,
)

OUT, IN, TOKENS = 5, 7, 40


@pytest.fixture
def data():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, IN, generator=g, dtype=torch.float64) + 1
    grad = torch.randn(TOKENS, OUT, generator=g, dtype=torch.float64)
    error = torch.randn(OUT, IN, generator=g, dtype=torch.float64)
    return x, grad, error


def test_euclidean_is_the_squared_frobenius_norm(data):
    _, _, error = data
    torch.testing.assert_close(euclidean()({}).loss(error), error.norm() ** 2)


def test_second_moment_is_the_mean_squared_output_error(data):
    x, _, error = data
    metric = second_moment()({"gram": x.mT @ x / TOKENS})
    torch.testing.assert_close(metric.loss(error), (x @ error.mT).square().sum(1).mean())


def test_ridge_adds_a_share_of_the_mean_eigenvalue(data):
    x, _, error = data
    gram = x.mT @ x / TOKENS
    extra = second_moment(0.1)({"gram": gram}).loss(error) - second_moment()({"gram": gram}).loss(
        error
    )
    torch.testing.assert_close(extra, 0.1 * gram.trace() / IN * error.norm() ** 2)


def test_covariance_is_the_variance_of_the_output_error(data):
    x, _, error = data
    metric = covariance()({"gram": x.mT @ x / TOKENS, "mean": x.mean(0)})
    variance = (x @ error.mT).var(0, correction=0).sum()
    torch.testing.assert_close(metric.loss(error), variance)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_activation_scale_by_mean_absolute_value(data, alpha):
    x, _, error = data
    metric = activation_scale(alpha)({"abs_mean": x.abs().mean(0)})
    scaled = error * x.abs().mean(0) ** alpha
    torch.testing.assert_close(metric.loss(error), scaled.norm() ** 2)


def test_activation_scale_by_root_mean_square_is_the_grams_diagonal(data):
    x, _, error = data
    rms = activation_scale(1.0, of="rms")({"square_mean": x.square().mean(0)})
    diagonal = Metric(right=torch.diag(x.mT @ x / TOKENS).diag())
    torch.testing.assert_close(rms.loss(error), diagonal.loss(error))


def test_inputs_that_never_fire_keep_a_usable_scale():
    metric = activation_scale(1.0)({"abs_mean": torch.tensor([0.0, 2.0, 4.0])})
    assert metric.right.tolist() == [4.0, 4.0, 16.0]


def test_fisher_is_elementwise_and_its_surrogate_exact_where_separable():
    rows, columns = torch.rand(OUT) + 0.1, torch.rand(IN) + 0.1
    f = torch.outer(rows, columns)
    metric, error = fisher()({"fisher": f}), torch.randn(OUT, IN)
    torch.testing.assert_close(metric.loss(error), (f * error**2).sum())
    surrogate = Metric(metric.left, metric.right)
    torch.testing.assert_close(surrogate.loss(error), metric.loss(error))


def test_fisher_rows_weighs_rows_by_their_sums(data):
    _, _, error = data
    f = torch.rand(OUT, IN, dtype=torch.float64)
    expected = sum(f[i].sum() * error[i].norm() ** 2 for i in range(OUT))
    torch.testing.assert_close(fisher_rows()({"fisher": f}).loss(error), expected)
    columns = sum(f[:, j].sum() * error[:, j].norm() ** 2 for j in range(IN))
    torch.testing.assert_close(fisher_rows("in")({"fisher": f}).loss(error), columns)


def test_two_sided_is_the_expected_squared_bilinear_change(data):
    x, grad, error = data
    stats = {"gram": x.mT @ x / TOKENS, "output_gram": grad.mT @ grad / TOKENS}
    expected = (grad @ error @ x.mT).square().sum() / TOKENS**2  # over independent pairs
    torch.testing.assert_close(two_sided()(stats).loss(error), expected)


def test_an_embeddings_second_moment_weighs_rows_by_their_frequency(data):
    _, _, error = data
    counts = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625], dtype=torch.float64)
    expected = (counts * error.square().sum(1)).sum()
    torch.testing.assert_close(second_moment()({"row_counts": counts}).loss(error), expected)


def test_a_measure_reads_only_what_it_names():
    for measure in (second_moment(), covariance(), fisher(), fisher_rows(), two_sided()):
        with pytest.raises(KeyError):
            measure({})
