"""ConvLoRA: the view of its factors as kernels, batch norms, and the affinity that is distilled."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import corank
from corank.errors import SiteError
from corank.healing import spatial_affinity_loss

from .small import operators, small_model, stir


def network(kernel=3):
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(4, 6, kernel), nn.BatchNorm2d(6), nn.ReLU())
    other = nn.Sequential(nn.Conv2d(6, 3, 1), nn.BatchNorm2d(3))
    return nn.Sequential(block, other).double()


X = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(1)).double() + 3


@pytest.mark.parametrize("kernel", [3, (3, 2), (2, 3)])
def test_the_update_is_the_product_read_as_kernels(kernel):
    model, rank = network(kernel).eval(), 2
    weight = model[0][0].weight.detach().clone()
    before = model(X)
    report = corank.adapt(model, "convlora", rank=rank, alpha=3.0, targets=["0.0"])
    torch.testing.assert_close(model(X), before)
    stir(model)
    (op,) = operators(model).values()
    leaves = dict(op.named_parameters())
    b, a = (
        leaves["operators.1.operator.operators.0.weight"],
        next(v for n, v in leaves.items() if n.endswith("operators.1.operator.weight")),
    )
    height = weight.shape[2]
    b = b.reshape(6 * height, rank * height)
    assert a.shape == (rank * height, 4 * weight.shape[3])
    kernels = weight + 1.5 * (b @ a).reshape(weight.shape)
    torch.testing.assert_close(model[0][0](X), F.conv2d(X, kernels, model[0][0].bias))
    assert report.totals["trainable"] == b.numel() + a.numel()
    if kernel == 3:
        assert report.totals["trainable"] == rank * 3 * (6 * 3 + 4 * 3)


def test_it_is_lora_on_a_linear_layer():
    one, two = small_model(), small_model()
    first = corank.adapt(one, "convlora", rank=2, alpha=2.0)
    second = corank.adapt(two, "lora", rank=2, alpha=2.0)
    assert first.totals["trainable"] == second.totals["trainable"]


def test_a_rank_beyond_the_kernels_is_refused():
    with pytest.raises(SiteError, match="rank 5 is outside 1 to 4"):
        corank.adapt(network(), "convlora", rank=5, targets=["0.0"])


def trained(model, steps=1):
    control = corank.controller(model)
    optimizer = torch.optim.Adam(control.parameter_groups(1e-3))
    control.attach(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    return control


def test_batch_norms_beside_adapted_weights_train_and_forget_the_source():
    model = network()
    corank.adapt(model, "convlora_adabn", targets=["0.0"])
    assert model[0][1].weight.requires_grad
    assert model[0][1].bias.requires_grad
    assert not model[1][1].weight.requires_grad  # in another block
    source = torch.full((6,), 100.0).double()
    model[0][1].running_mean.copy_(source)
    model.train()
    control = trained(model)
    assert torch.equal(model[0][1].running_mean, torch.zeros(6).double())
    model(X)
    mean = model[0][0](X).mean((0, 2, 3))
    torch.testing.assert_close(model[0][1].running_mean, 0.1 * mean)
    trained_on = model[0][1].running_mean.clone()
    again = corank.controller(model)
    again.load_state_dict(control.state_dict())
    again.before_step()
    assert torch.equal(model[0][1].running_mean, trained_on)  # once, and not after a resume
    assert model[1][1].num_batches_tracked == 2


def test_a_batch_norm_in_eval_mode_is_refused():
    model = network().eval()
    corank.adapt(model, "convlora_adabn", targets=["0.0"])
    with pytest.raises(SiteError, match="eval mode"):
        trained(model)


def test_affinity_is_between_places_and_not_channels():
    torch.manual_seed(0)
    mine = torch.randn(2, 3, 2, 2, requires_grad=True)
    theirs = torch.randn(2, 5, 2, 2, requires_grad=True)
    total = 0.0
    for i in range(2):
        for p in range(4):
            for q in range(4):
                s, t = (
                    F.cosine_similarity(f[i].flatten(1)[:, p], f[i].flatten(1)[:, q], dim=0)
                    for f in (mine.detach(), theirs.detach())
                )
                total += abs(float(s - t)) / 32
    loss = spatial_affinity_loss([mine, mine], [theirs, mine])
    assert loss.item() == pytest.approx(total, rel=1e-5)
    loss.backward()
    assert mine.grad.any()
    assert theirs.grad is None
