"""A decoder for each matrix: what it learns, what it stores, and what is refused."""

import copy

import pytest
import torch
from torch import nn

import corank
from corank.models import Site
from corank.operators import Decoded, Dense, LowRank, Quantised, VectorQuantised, build, describe
from corank.operators.decoded import decode
from corank.quantizers import decoded_latents
from tests.verbs.models import tiny_mlp, vectors


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(weight, **settings):
    return decoded_latents(**settings)(
        weight, Site("layer", "q", 0, tuple(weight.shape), False, "linear")
    )


def test_the_decoder_is_convolutions_pixel_shuffles_and_gelu():
    latents, kernels = normal(12, 4), [normal(8, 36), normal(8, 18), normal(1, 18)]
    layers = [nn.Conv2d(4, 8, 3, padding=1), nn.PixelShuffle(2), nn.GELU(),
              nn.Conv2d(2, 8, 3, padding=1), nn.PixelShuffle(2), nn.GELU(),
              nn.Conv2d(2, 1, 3, padding=1)]  # fmt: skip
    for layer, kernel in zip(layers[::3], kernels, strict=True):
        layer.bias = None
        layer.weight = nn.Parameter(kernel.view(layer.weight.shape))
    image = latents.mT.reshape(1, 4, 3, 4)
    torch.testing.assert_close(
        decode(latents, kernels, (3, 4)), nn.Sequential(*layers)(image)[0, 0]
    )


def test_more_steps_and_more_channels_come_nearer():
    weight = 5 * normal(48, 40)
    losses = [
        float((made(weight, bits=6, **more).dense() - weight).norm())
        for more in ({"steps": 2}, {"steps": 30}, {"steps": 120}, {"steps": 120, "width": 16})
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[2] < 0.5 * weight.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_is_stored_is_told_and_rebuilt(dtype):
    weight = normal(22, 18).to(dtype)
    op = made(weight, bits=4, steps=6)
    assert decoded_latents(4).counts((22, 18), dtype) == (op.numel(), op.bytes())
    assert isinstance(op.latents, VectorQuantised)
    assert all(isinstance(kernel, Quantised) and kernel.bits == 8 for kernel in op.kernels)
    again = build(describe(op), "cpu")
    again.load_state_dict(op.state_dict())
    assert torch.equal(again.dense(), op.dense())
    assert torch.equal(made(weight, bits=4, steps=6).dense(), op.dense())
    assert made(torch.zeros(8, 8), steps=2).dense().isfinite().all()


def test_realm_stands_in_a_model_and_only_its_factors_train(tmp_path):
    settings = {"bits": 4, "rank": 3, "steps": 6}
    model = tiny_mlp()
    told = corank.quantize(copy.deepcopy(model), "realm", dry_run=True, **settings)
    report = corank.quantize(model, "realm", **settings)
    assert told.totals["bytes_after"] == report.totals["bytes_after"]
    factors = {id(p) for m in model.modules() if isinstance(m, LowRank) for p in m.parameters()}
    assert factors == {id(p) for p in model.parameters() if p.requires_grad}
    corank.save(model, tmp_path)
    again = corank.load(tmp_path, tiny_mlp)
    x = vectors(1)[0]
    assert torch.equal(again(x), model(x))
    assert any(isinstance(part, Decoded) for part in again[0].modules())
    with pytest.raises(ValueError, match="quantised already"):
        corank.quantize(model, "round_to_nearest")


def test_bad_settings_and_bad_parts_are_refused():
    for bad in ({"width": 0}, {"stages": 0}, {"steps": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            decoded_latents(**bad)
    good = {"latents": Dense(normal(6, 4)), "scale": normal(4), "shape": (4, 6)}
    kernels = [Dense(normal(8, 36)), Dense(normal(1, 18))]
    assert Decoded(*kernels, **good).shape == (4, 6)
    for first, more, told in (
        (kernels, {"latents": Dense(normal(5, 4))}, "latents"),
        (kernels, {"scale": normal(5)}, "scale"),
        ([Dense(normal(8, 35)), kernels[1]], {}, "kernel 0"),
        ([Dense(normal(8, 16)), kernels[1]], {}, "kernel 0"),
        ([kernels[0], Dense(normal(2, 18))], {}, "not one"),
    ):
        with pytest.raises(ValueError, match=told):
            Decoded(*first, **good | more)
