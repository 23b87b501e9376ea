"""What holds of any factorisation: the controller, folders, refusals, and adapters beside it."""

import copy
import dataclasses

import pytest
import torch

import corank
from corank.adapters import factorized
from corank.control import Control, replace
from corank.errors import SiteError
from corank.models import find_sites, read
from corank.operators import Dense, LowRank, Sum

from ..adapters.small import loss, small_model
from ..verbs.models import tiny_llama, tokens
from .small import batches, begin, train

SMALL = {"rank": 4, "density": 0.1}
X = batches(1)[0]


def pretraining(**options):
    model = small_model()
    corank.factorize(model, "sltrain", **SMALL | options)
    return model


def with_control(model, control):
    (held,) = factorized(model).values()
    held.recipe = dataclasses.replace(held.recipe, controls=(control,))


def test_one_controller_serves_adapters_and_factorised_weights():
    model = pretraining(targets=["0"])
    names = [t.name for t in corank.controller(model).trainings]
    assert names == ["factorized:sltrain"]
    corank.adapt(model, "lora", targets=["2"], rank=2)
    for leaf in read(model, find_sites(model)[0]).parameters():
        leaf.requires_grad_(True)
    control, optimizer = begin(model)
    assert [t.name for t in control.trainings] == ["default", "factorized:sltrain"]
    train(model, optimizer, range(2))
    state = optimizer.state_dict()["param_groups"][0]["corank_controller"]
    assert {name: held["step"] for name, held in state.items()} == dict.fromkeys(names, 2) | {
        "default": 2
    }


def test_an_adapter_beside_frozen_factors_trains_alone():
    model = pretraining()
    before = model(X)
    corank.adapt(model, "lora", rank=2)
    assert [t.name for t in corank.controller(model).trainings] == ["default"]
    torch.testing.assert_close(model(X), before)
    corank.adapters.delete(model, "default")
    assert list(factorized(model)) == ["factorized:sltrain"]


def test_groups_of_one_method_have_names_of_their_own():
    model = pretraining(targets=["0"])
    corank.factorize(model, "sltrain", targets=["2"], **SMALL)
    assert list(factorized(model)) == ["factorized:sltrain", "factorized:sltrain:2"]
    assert len(corank.controller(model).trainings) == 2


def test_what_trains_already_is_refused():
    model = pretraining(targets=["0"])
    before = model[0]
    with pytest.raises(SiteError, match=r"0 .*factorised already, by 'sltrain'.*merge"):
        corank.factorize(model, "sltrain", **SMALL)
    assert model[0] is before
    adapted = small_model()
    corank.adapt(adapted, "lora", rank=2)
    with pytest.raises(SiteError, match="carries an adapter"):
        corank.factorize(adapted, "sltrain", **SMALL)


@pytest.mark.parametrize(
    ("options", "told"),
    [({"method": "sltrian"}, "sltrain"), ({"rnak": 2}, "rank"), ({"targets": ["7"]}, "target"),
     ({"layers": [3]}, "layer"), ({"density": 1.0}, "density"), ({"rank": 0}, "rank")],
)  # fmt: skip
def test_bad_input_is_named(options, told):
    model = small_model()
    with pytest.raises(ValueError, match=told):
        corank.factorize(model, **{"method": "sltrain"} | SMALL | options)
    assert torch.equal(model(X), small_model()(X))


def test_targets_can_have_parameters_of_their_own():
    model = small_model()
    targets = {"0": {"rank": 2}, "2": {}, "4": None}
    report = corank.factorize(model, "sltrain", targets=targets, **SMALL)
    assert [row.rank for row in report.sites] == [2, 4]
    planned = corank.factorize(
        small_model().to("meta"), "sltrain", targets=targets, dry_run=True, **SMALL
    )
    assert planned.totals["trainable"] == report.totals["trainable"]


def test_masked_ranks_are_cut_with_the_optimisers_moments():
    model = pretraining()

    def mask(training):
        if training.step == 2:
            for op in training.low_ranks().values():
                op.mask = torch.tensor([True, False, True, False])

    with_control(model, Control(after_step=mask))
    control, optimizer = begin(model)
    train(model, optimizer, range(3))
    there = dict(control.trainings[0].low_ranks())
    moments = {n: optimizer.state[op.a]["exp_avg"][[0, 2]] for n, op in there.items()}
    before = model(X)
    assert corank.adapters.compact(model, optimizer, control) == 6
    torch.testing.assert_close(model(X), before)
    for name, op in there.items():
        assert op.rank == 2
        assert torch.equal(optimizer.state[op.a]["exp_avg"], moments[name])
    train(model, optimizer, range(3, 5))


def test_an_operator_replaced_while_it_trains_goes_on_in_the_optimiser():
    model = pretraining()

    def widen(training):
        if training.step == 2:
            op = training.operators["2"]
            kept = op.operators[1]
            replace(training, "2", Sum(Dense(torch.nn.Parameter(op.operators[0].dense())), kept))

    with_control(model, Control(after_step=widen))
    control, optimizer = begin(model)
    train(model, optimizer, range(2))
    sparse, dense = model[2].operator.operators[1], model[2].operator.operators[0].weight
    assert optimizer.state[sparse.values]["step"] == 2
    assert dense not in optimizer.state
    grouped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert grouped == {id(p) for p in model.parameters()}
    before = dense.detach().clone()
    train(model, optimizer, range(2, 4))
    assert not torch.equal(dense, before)
    assert {id(p) for p in optimizer.state} <= grouped
    assert control.trainings[0].operators["2"] is model[2].operator


def test_a_transformers_folder_keeps_it_and_its_controls(tmp_path):
    model = tiny_llama()
    report = corank.factorize(model, "sltrain", targets="mlp", layers=[1], **SMALL)
    assert len(report.sites) == 3
    corank.save(model, tmp_path / "model")
    again = type(model).from_pretrained(tmp_path / "model")
    batch = tokens(1)[0]
    assert torch.equal(again.eval()(**batch).logits, model(**batch).logits)
    assert [t.name for t in corank.controller(again).trainings] == ["factorized:sltrain"]
    trains = {n: p.requires_grad for n, p in model.named_parameters()}
    assert trains == {n: p.requires_grad for n, p in again.named_parameters()}
    merged = corank.merge(again)
    torch.testing.assert_close(merged(**batch).logits, model(**batch).logits)


def test_a_state_of_other_settings_is_refused():
    model, other = pretraining(), pretraining(rank=3)
    _, optimizer = begin(model)
    train(model, optimizer, range(1))
    control = corank.controller(other)
    state = optimizer.state_dict()["param_groups"][0]["corank_controller"]
    with pytest.raises(ValueError, match="rank was 4 and is 3"):
        control.load_state_dict(copy.deepcopy(state))


def test_compressing_afterwards_ends_it():
    model = pretraining()
    corank.compress(model, "svd", rank=3)
    assert not factorized(model)
    assert isinstance(model[0].operator, LowRank)


def test_a_weight_becomes_the_papers_sum():
    model = pretraining()
    op = read(model, find_sites(model)[0])
    assert isinstance(op, Sum)
    assert loss(model, X).requires_grad
