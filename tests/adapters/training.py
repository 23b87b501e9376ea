"""A few steps of training, for tests of what happens meanwhile."""

import torch

import corank

from .small import batches, loss, operators, small_model


def begin(
    method, total=12, lr=1e-2, optimizer=torch.optim.Adam, model=None, name="default", **params
):
    """(model, controller, optimiser) with an adapter of `method` at every weight."""
    model = small_model() if model is None else model
    if corank.registry.find_method(method).recipe(params).rewrite.needs:
        params |= {"data": batches(), "loss": loss}
    corank.adapt(model, method, name=name, **params)
    control = corank.controller(model, total_steps=total)
    made = optimizer(control.parameter_groups(lr))
    control.attach(made)
    return model, control, made


def steps(model, optimizer, numbers, each=None):
    """Train; `each(number)` is called after every step."""
    for number in numbers:
        value = loss(model, batches(6)[number % 6])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if each is not None:
            each(number)


def products(control):
    """The trainable low-rank products of the only adapter, by name."""
    (training,) = control.trainings
    return training.low_ranks()


def delta(model, path):
    """W' - W at a site."""
    op = operators(model)[path]
    return (op.dense() - op.operators[0].dense()).detach()
