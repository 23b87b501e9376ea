"""Batches that end in labels, which the loss reads and the model does not take."""

import pytest
import torch
from torch import nn

import corank
from corank.calibration.running import call
from corank.errors import DataError

from .models import tiny_mlp, vectors


def labelled():
    g = torch.Generator().manual_seed(1)
    return [(x, torch.randint(0, 20, (len(x),), generator=g)) for x in vectors()]


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("method", "options"),
    [("svd_llm", {}), ("svd_llm", {"cascade": "original"}), ("svd_llm", {"allocate": "greedy"})],
)
def test_labels_change_nothing_where_no_loss_is_read(method, options):
    found = []
    for data in (vectors(), labelled()):
        model = tiny_mlp()
        corank.compress(model, method, keep=0.5, data=data, loss=loss, **options)
        found.append(model(vectors()[0]))
    assert torch.equal(*found)


def test_a_cascade_after_a_loss_reads_labelled_batches():
    model, rows = tiny_mlp(), []
    model.register_forward_pre_hook(lambda module, args: rows.append(len(args)))
    report = corank.compress(
        model, "corank", keep=0.5, data=labelled(), loss=loss, heal_minutes=0.001
    )
    assert report.totals["keep"] <= 0.5
    assert set(rows) == {1}


class Two(nn.Module):
    def forward(self, x, y):
        return x - y


def test_a_model_is_called_with_as_much_of_a_tuple_as_it_takes():
    one, two, three = torch.ones(3).unbind()
    assert call(Two(), (three, one)) == 0
    assert call(Two(), (three, one + one, one)) == -1
    assert call(nn.Identity(), (two + two, one)) == 2
    with pytest.raises(DataError, match="give batches that match"):
        call(Two(), (one,))
