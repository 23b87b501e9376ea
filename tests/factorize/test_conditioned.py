"""Weight normalisation beside torch's, conditioning, and the loss on the rows' lengths."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import corank

from ..adapters.small import loss, small_model
from .small import batches, begin, train


def test_weight_norm_trains_as_torchs():
    ours, theirs = small_model(), small_model()
    corank.factorize(ours, "weight_norm")
    for layer in theirs:
        if isinstance(layer, nn.Linear):
            weight_norm(layer)
    x = batches(1)[0]
    torch.testing.assert_close(ours(x), theirs(x))
    train(ours, torch.optim.Adam(ours.parameters(), 0.01), range(12))
    train(theirs, torch.optim.Adam(theirs.parameters(), 0.01), range(12))
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-7, atol=1e-9)
    before = ours(x)
    corank.merge(ours)
    torch.testing.assert_close(ours(x), before)


def test_conditioning_narrows_the_spread_of_singular_values():
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 20, generator=g) * torch.logspace(-2, 2, 12)[:, None]
    model = nn.Sequential(nn.Linear(20, 12))
    model[0].weight.data = weight.clone()
    corank.factorize(model, "weight_conditioning")
    conditioned = model[0].operator.dense()
    torch.testing.assert_close(conditioned.norm(dim=1), torch.ones(12))
    assert torch.linalg.cond(conditioned) < 1e-2 * torch.linalg.cond(weight)


def test_the_norm_loss_draws_rows_to_a_length_of_one_and_is_the_penalty():
    model, plain = small_model(), small_model()
    corank.factorize(model, "norm_loss", strength=0.1)
    control, _ = begin(model)
    weights = [m.weight for m in plain if isinstance(m, nn.Linear)]
    want = 0.1 * sum((1 - w.norm(dim=1)).square().sum() for w in weights)
    found = control.penalty()
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(found, 0.1 * corank.losses.norm_loss(plain.parameters()))


def test_training_with_it_moves_the_lengths():
    model = small_model()
    corank.factorize(model, "norm_loss", strength=0.1)
    control, optimizer = begin(model, lr=0.02)
    before = control.penalty().item()
    for step in range(40):
        optimizer.zero_grad()
        (loss(model, batches()[step % 6]) + control.penalty()).backward()
        optimizer.step()
    assert control.penalty().item() < 0.3 * before


@pytest.mark.parametrize(
    ("method", "said"), [("norm_los", "did you mean 'norm_loss'"), ("galore", "unknown factoris")]
)
def test_what_is_no_factorisation(method, said):
    with pytest.raises(ValueError, match=said):
        corank.factorize(small_model(), method)


def test_a_strength_below_zero():
    with pytest.raises(ValueError, match="strength must be at least 0"):
        corank.factorize(small_model(), "norm_loss", strength=-1.0)
