"""The losses against hand-written sums."""

import pytest
import torch

from corank.losses import inverted_hinge, norm_loss


def test_inverted_hinge_is_the_papers_sum():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 3, -100], [4, -100, 1]])
    total, count = 0.0, 0
    for i in range(2):
        for t in range(3):
            if labels[i, t] == -100:
                continue
            p = logits[i, t].softmax(0).tolist()
            right = p.pop(int(labels[i, t]))
            total += 1 + right - max(p)
            count += 1
    assert inverted_hinge(logits, labels).item() == pytest.approx(total / count, abs=1e-6)


def test_inverted_hinge_falls_from_two_to_zero():
    logits = torch.tensor([[30.0, 0.0, 0.0]])
    assert inverted_hinge(logits, torch.tensor([0])).item() == pytest.approx(2)
    assert inverted_hinge(logits, torch.tensor([1])).item() == pytest.approx(0, abs=1e-6)


def test_inverted_hinge_needs_a_token():
    with pytest.raises(ValueError, match="-100"):
        inverted_hinge(torch.zeros(1, 3), torch.tensor([-100]))


def test_norm_loss_is_over_rows_and_filters():
    weight, filters = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.ones(2, 1, 2, 2)
    assert norm_loss([weight]).item() == pytest.approx(16.0)
    assert norm_loss([filters]).item() == pytest.approx(2.0)
    vector = torch.full((3,), 9.0)
    assert norm_loss([weight, filters, vector]).item() == pytest.approx(18.0)
    with pytest.raises(ValueError, match="no matrix"):
        norm_loss([vector])
