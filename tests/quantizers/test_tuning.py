"""Rounding learnt block by block, against its own equation and its aim."""

import copy

import pytest
import torch

import corank
from corank.calibration import batches
from corank.models import blocks, find_sites, read
from corank.operators import quantise_shifted, quantise_uniform
from corank.quantizers import tune_rounding
from corank.quantizers.tuning import round_through
from tests.verbs.models import tiny_bert, tiny_llama, tiny_mlp, tokens, vectors


def drawn(shape=(5, 38), group=16):
    g = torch.Generator().manual_seed(0)
    groups = -(-shape[1] // group)
    shift = torch.rand(shape, generator=g) - 0.5
    clip = 0.6 + 0.4 * torch.rand(2, shape[0], groups, generator=g)
    return torch.randn(shape, generator=g), shift, clip


@pytest.mark.parametrize("bits", [2, 4])
def test_what_is_learnt_with_gradients_is_what_is_stored(bits):
    weight, shift, clip = drawn()
    stored = quantise_shifted(weight, bits, 16, shift, clip).dense()
    torch.testing.assert_close(round_through(weight, bits, 16, shift, clip), stored)
    plain = quantise_shifted(weight, bits, 16)
    assert torch.equal(plain.dense(), quantise_uniform(weight, bits, 16, False).dense())
    other = quantise_shifted(weight, bits, 16, shift.roll(1, 1), clip)
    assert not torch.equal(stored, other.dense())


def test_gradients_are_those_of_the_equation_with_rounding_passed_through():
    weight, shift, clip = drawn()
    leaves = shift.requires_grad_(), clip.requires_grad_()
    made = round_through(weight, 4, 16, *leaves)
    to_shift, to_clip = torch.autograd.grad(made.sum(), leaves)
    scale = quantise_shifted(weight, 4, 16, shift, clip).scales().repeat_interleave(16, 1)[:, :38]
    free = to_shift != 0  # the others are clamped
    torch.testing.assert_close(to_shift[free], scale[free])
    assert free.float().mean() > 0.5
    assert to_clip.isfinite().all()
    assert (to_clip != 0).any()


def block_errors(model, original, data):
    """Each block's squared error on what the quantised model gives it, in order."""
    found = []
    for (_, now), (_, then) in zip(blocks(model), blocks(original), strict=True):
        outputs = []
        for whole, block in ((model, now), (original, then)):
            seen = []
            handle = block.register_forward_hook(lambda m, a, y, seen=seen: seen.append(y))
            with torch.no_grad():
                for batch in data:
                    whole(**batch)
            handle.remove()
            outputs.append([y[0] if isinstance(y, tuple) else y for y in seen])
        found.append(sum(float((a - b).square().sum()) for a, b in zip(*outputs, strict=True)))
    return found


@pytest.mark.parametrize("build", [tiny_llama, tiny_bert], ids=["llama", "bert"])
def test_blocks_err_less_than_rounded_to_nearest(build):
    original, tuned, rounded = build(), build(), build()
    corank.quantize(tuned, "signround", bits=2, group=16, steps=60, data=tokens())
    corank.quantize(rounded, "round_to_nearest", bits=2, group=16)
    pairs = zip(
        block_errors(tuned, original, tokens()), block_errors(rounded, original, tokens()),
        strict=True,
    )  # fmt: skip
    assert all(mine < 0.8 * plain for mine, plain in pairs)


def test_the_learnt_stays_in_its_bounds_and_the_model_as_it_was():
    model = tiny_llama()
    before = copy.deepcopy(model.state_dict())
    sites = find_sites(model)
    tune_rounding(model, sites, batches(tokens()), 4, 16, 30)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    for site in sites:
        shift, clip = site.stats["shift"], site.stats["clip"]
        assert shift.shape == site.shape
        assert 0 < shift.abs().max() <= 0.5
        assert 0.5 <= clip.min() < clip.max() <= 1
        plain = quantise_uniform(read(model, site).dense(), 4, 16, False).dense()
        moved = quantise_shifted(read(model, site).dense(), 4, 16, shift, clip).dense()
        assert not torch.equal(plain, moved)


def test_a_model_without_blocks_is_refused():
    model = tiny_mlp()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"one sequence of blocks.*such as gptq or awq"):
        corank.quantize(model, "signround", data=vectors())
    with pytest.raises(ValueError, match="steps must be at least 1"):
        corank.quantize(model, "signround", data=vectors(), steps=0)
    with pytest.raises(ValueError, match="needs calibration data"):
        corank.quantize(tiny_llama(), "signround")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
