"""Mixers with fewer state dimensions and channels: which ones stay, and what that leaves."""

import copy

import pytest
import torch

from corank.calibration import batches, collect
from corank.calibration.outputs import outputs
from corank.models import find_sites, install_together, modules_and_mixers, read, read_biases
from corank.operators.counting import count_each
from corank.registry import METHODS
from corank.rewrites import Unit, layout_of

from ..verbs.hybrids import padded, tiny_mamba2
from ..verbs.models import tokens

RIDGE = 1e-2
HEADS, HEAD_DIM, GROUPS, STATE = 8, 16, 2, 32
INNER, STATES = HEADS * HEAD_DIM, GROUPS * STATE
ROWS = 2 * (INNER + STATES) + HEADS


def family():
    return METHODS["uniql"].recipe({"ridge": RIDGE}).family


def calibrated(model, data=None):
    """The units of all mixers, with the statistics that the method reads."""
    sites = find_sites(model, ["in_proj", "out_proj"])
    collect(model, sites, family().needs, batches(data or tokens(3)))
    groups = modules_and_mixers(sites)
    return [Unit(group, [read(model, site) for site in group]) for group in groups]


def put(model, unit, size):
    """Build the unit at a size and put it into the model, biases and all."""
    made = family().build(unit, size)
    biases, _ = family().jointly(unit, made, read_biases(model, unit.sites))
    install_together(model, unit.sites, made, biases)
    return made


def recurrence(mixer, made):
    """x (b, l, H, P), B and C (b, l, G, N) and dt (b, l, H) of a mixer, token by token."""
    _, mixed, dt = made.split([INNER, INNER + 2 * STATES, HEADS], -1)
    weight = mixer.conv1d.weight[:, 0]  # (channels, taps)
    taps, out = weight.shape[1], []
    for t in range(made.shape[1]):
        total = mixer.conv1d.bias.expand(len(made), -1).clone()
        for back in range(min(taps, t + 1)):
            total += mixed[:, t - back] * weight[:, taps - 1 - back]
        out.append(torch.nn.functional.silu(total))
    x, b, c = torch.stack(out, 1).split([INNER, STATES, STATES], -1)
    dt = torch.nn.functional.softplus(dt + mixer.dt_bias)
    b, c = (part.unflatten(-1, (GROUPS, -1)) for part in (b, c))
    return x.unflatten(-1, (HEADS, -1)), b, c, dt


def in_proj_outputs(model, batch):
    kept = []
    mixer = model.backbone.layers[0].mixer
    handle = mixer.in_proj.register_forward_hook(lambda module, args, made: kept.append(made))
    with torch.no_grad():
        model(**batch)
    handle.remove()
    return mixer, kept[0]


@torch.no_grad()
def test_states_are_what_the_recurrence_writes_chunk_by_chunk():
    model, data = tiny_mamba2(chunk_size=5), tokens(2)
    stats = calibrated(model, data)[0].sites[0].stats
    written, read_, rows, count = torch.zeros(HEADS, STATE), torch.zeros(GROUPS, STATE), [], 0
    for batch in data:
        mixer, made = in_proj_outputs(model, batch)
        x, b, c, dt = recurrence(mixer, made)
        rate = -mixer.A_log.exp()
        for t in range(made.shape[1]):
            if t % 5 == 0:
                state = torch.zeros(len(made), HEADS, HEAD_DIM, STATE)
            b_of_heads = b[:, t].repeat_interleave(HEADS // GROUPS, 1)
            new = dt[:, t, :, None, None] * x[:, t, :, :, None] * b_of_heads[:, :, None]
            state = state * (rate * dt[:, t])[..., None, None].exp() + new
            if t % 5 == 4 or t + 1 == made.shape[1]:
                rows.append(state.permute(0, 3, 1, 2).reshape(-1, HEADS * HEAD_DIM))
            written += (dt[:, t, :, None] * b_of_heads).square().sum(0)
            read_ += c[:, t].square().sum(0)
        count += made.shape[0] * made.shape[1]
    every = torch.cat(rows).double()
    torch.testing.assert_close(
        stats["state_gram"], (every.mT @ every / len(every)).float(), rtol=1e-4, atol=1e-7
    )
    scores = torch.stack([
        (read_[g] / count).sqrt()
        * (written[4 * g : 4 * g + 4] / count).sqrt().sum(0) for g in range(GROUPS)
    ])  # fmt: skip
    torch.testing.assert_close(stats["state_scores"], scores.flatten(), rtol=1e-4, atol=1e-7)


def test_padding_leaves_no_trace_in_the_states():
    model = tiny_mamba2()
    alone = calibrated(model, tokens(1, batch=1, length=9))[0].sites[0].stats
    beside = calibrated(model, padded(tokens(1, batch=1, length=9), 7))[0].sites[0].stats
    torch.testing.assert_close(beside["state_scores"], alone["state_scores"])
    ratio = beside["state_gram"] / alone["state_gram"].where(alone["state_gram"] != 0, 1)
    shrunk = ratio.flatten().median()  # chunks of padding count as rows of zeros
    torch.testing.assert_close(
        beside["state_gram"], shrunk * alone["state_gram"], rtol=1e-3, atol=1e-8
    )


def test_each_group_keeps_its_best_states_and_each_head_its_best_channels():
    unit = calibrated(tiny_mamba2())[0]
    gram = unit.sites[0].stats["state_gram"].double()
    floor = RIDGE * gram.diagonal().mean() * torch.eye(len(gram)).double()
    leverage = (gram @ torch.linalg.inv(gram + floor)).diagonal().view(HEADS, HEAD_DIM)
    scores = unit.sites[0].stats["state_scores"].view(GROUPS, STATE)
    layout = layout_of(unit)
    assert layout.step == HEADS + GROUPS * 2  # heads of 16 and states of 32 lose the same share
    size = 3 * layout.step
    in_proj, out_proj = family().build(unit, size)
    rows = (in_proj.dense() != 0).any(1)
    z, x, b, c, dt = rows.split([INNER, INNER, STATES, STATES, HEADS])
    columns = (out_proj.dense() != 0).any(0)
    wanted = torch.zeros(HEADS, HEAD_DIM, dtype=torch.bool)
    wanted.scatter_(1, leverage.topk(3).indices, True)
    assert dt.all()
    for found in (z, x, columns):
        assert torch.equal(found.view(HEADS, HEAD_DIM), wanted)
    wanted = torch.zeros(GROUPS, STATE, dtype=torch.bool).scatter_(1, scores.topk(6).indices, True)
    for found in (b, c):
        assert torch.equal(found.view(GROUPS, STATE), wanted)
    for op, old in zip((in_proj, out_proj), unit.ops, strict=True):
        kept = op.dense() != 0
        torch.testing.assert_close(op.dense()[kept], old.dense()[kept], rtol=0, atol=0)
    assert family().counts(unit, size) == count_each([in_proj, out_proj])
    menu = family().menu(unit)
    assert menu.costs[menu.sizes.index(size)] == in_proj.bytes() + out_proj.bytes()


def test_sorting_alone_changes_nothing():
    model, data = tiny_mamba2(), tokens(2)
    before = outputs(model, data)
    for unit in calibrated(model):
        width = layout_of(unit).width
        in_proj, _ = put(model, unit, width)
        order = in_proj.operators[0].operator.index
        assert order.sort().values.tolist() == list(range(ROWS))
        assert order.tolist() != list(range(ROWS))
    torch.testing.assert_close(outputs(model, data), before, rtol=1e-4, atol=1e-5)


def permuted(model, orders):
    """The model with its own weights in another order of channels and states, nothing else."""
    for layer, order in zip(model.backbone.layers, orders, strict=True):
        x, n, mixer = *order, layer.mixer
        both = torch.cat([x, INNER + n, INNER + STATES + n])
        every = torch.cat([x, INNER + both, torch.arange(ROWS - HEADS, ROWS)])
        for parameter in mixer.in_proj.parameters():
            parameter.data = parameter.data[every]
        mixer.conv1d.weight.data = mixer.conv1d.weight.data[both]
        mixer.conv1d.bias.data = mixer.conv1d.bias.data[both]
        mixer.norm.weight.data = mixer.norm.weight.data[x]
        mixer.out_proj.weight.data = mixer.out_proj.weight.data[:, x]
    return model


def order_of(unit, size):
    """The channels (k,) and states (k,) that stay, head after head and group after group."""
    kept = layout_of(unit).kept(Unit(unit.sites, family().build(unit, size)))
    x, n = kept[kept < INNER], kept[kept >= INNER] - INNER
    by_head = [x[x // HEAD_DIM == h] for h in range(HEADS)]
    return torch.cat(by_head), torch.cat([n[n // STATE == g] for g in range(GROUPS)])


def test_the_order_is_a_symmetry_of_the_model_itself():
    model, data = tiny_mamba2(), tokens(2)
    before = outputs(model, data)
    orders = [order_of(unit, layout_of(unit).width) for unit in calibrated(model)]
    assert not torch.equal(orders[0][1], torch.arange(STATES))
    torch.testing.assert_close(outputs(permuted(model, orders), data), before, rtol=1e-4, atol=1e-5)


def smaller(model, orders, **options):
    """A model of the same class, configured for the channels and states that are left.

    Its norm has fewer channels to average over: what that changes is put into its weight and eps.
    """
    share = len(orders[0][0]) / (HEADS * HEAD_DIM)
    small = tiny_mamba2(
        head_dim=int(HEAD_DIM * share),
        state_size=int(STATE * share),
        expand=int(4 * share),
        **options,
    )
    small.load_state_dict(permuted(copy.deepcopy(model), orders).state_dict())
    for layer in small.backbone.layers:
        layer.mixer.norm.weight.data *= share**-0.5
        layer.mixer.norm.variance_epsilon /= share
    return small


@pytest.mark.parametrize("steps", [4, 8, 12])
def test_what_is_left_is_a_smaller_model_of_the_same_class(steps):
    model, data = tiny_mamba2(), tokens(2)
    units = calibrated(model)
    size = steps * layout_of(units[0]).step
    small = smaller(model, [order_of(unit, size) for unit in units])
    assert small.config.state_size == 2 * steps
    for unit in units:
        put(model, unit, size)
    torch.testing.assert_close(outputs(model, data), outputs(small, data), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("half", ["B", "C"])
def test_cutting_states_is_zeroing_them_in_either_half(half):
    model, data = tiny_mamba2(), tokens(2)
    units = calibrated(model)
    size = 3 * layout_of(units[0]).step
    zeroed = copy.deepcopy(model)
    for unit, layer in zip(units, zeroed.backbone.layers, strict=True):
        x, n = order_of(unit, size)
        gone_x = torch.ones(INNER, dtype=torch.bool).index_fill_(0, x, False).nonzero().flatten()
        gone_n = torch.ones(STATES, dtype=torch.bool).index_fill_(0, n, False).nonzero().flatten()
        start = INNER + (STATES if half == "C" else 0)
        layer.mixer.in_proj.weight.data[gone_x] = 0  # the gate alone closes a channel
        layer.mixer.in_proj.weight.data[INNER + start + gone_n] = 0
        layer.mixer.conv1d.bias.data[start + gone_n] = 0
    for unit in units:
        put(model, unit, size)
    torch.testing.assert_close(outputs(model, data), outputs(zeroed, data), rtol=1e-4, atol=1e-5)


def test_a_bias_of_in_proj_goes_with_its_rows():
    model, data = tiny_mamba2(use_bias=True), tokens(2)
    units = calibrated(model)
    size = 8 * layout_of(units[0]).step
    small = smaller(model, [order_of(unit, size) for unit in units], use_bias=True)
    for unit in units:
        put(model, unit, size)
    torch.testing.assert_close(outputs(model, data), outputs(small, data), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", ["states", "channels"])
def test_what_goes_is_what_matters_least(what):
    model, data, errors = tiny_mamba2(), tokens(3), []
    before = torch.cat(outputs(model, data))
    units = calibrated(model)
    for last in (True, False):
        cut = copy.deepcopy(model)
        for unit, layer in zip(units, cut.backbone.layers, strict=True):
            whole = layout_of(unit).width
            order = layout_of(unit).kept(Unit(unit.sites, family().build(unit, whole)))
            part = order[order < INNER] if what == "channels" else order[order >= INNER] - INNER
            gone = part[len(part) // 2 :] if last else part[: len(part) // 2]
            mixer = layer.mixer
            if what == "channels":
                mixer.in_proj.weight.data[gone] = 0
            else:
                mixer.in_proj.weight.data[2 * INNER + STATES + gone] = 0
                mixer.conv1d.bias.data[INNER + STATES + gone] = 0
        errors.append(float((torch.cat(outputs(cut, data)) - before).square().sum()))
    assert errors[0] < 0.7 * errors[1]


def test_errors_fall_from_all_to_nothing():
    unit = calibrated(tiny_mamba2())[0]
    menu = family().menu(unit)
    assert menu.sizes[-1] is None
    assert menu.errors == sorted(menu.errors, reverse=True)
    weight, gram = unit.ops[1].dense().detach().double(), unit.sites[1].stats["gram"].double()
    energy = float((weight @ gram * weight).sum())
    assert 0 == menu.errors[-1] < menu.errors[0] < energy
    size = menu.sizes[2]
    made = family().build(unit, size)
    _, relative = family().jointly(unit, made, [None, None, None])
    assert relative == pytest.approx(menu.errors[2] / energy)


def test_sizes_between_steps_are_refused():
    unit = calibrated(tiny_mamba2())[0]
    with pytest.raises(ValueError, match="a multiple of 12, at most 192"):
        family().build(unit, 13)
