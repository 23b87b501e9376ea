"""`corank.controller`: what adapters and factorised weights do while they train."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..control import Control, Training
from ..errors import SiteError
from ..optim.sharded import is_sharded
from .callback import trainer_callback
from .holding import Held, acting
from .processes import average, in_parallel
from .record import is_json

#: Where an optimiser's state dict holds the controller's: load_state_dict keeps a group's entries.
_KEY = "corank_controller"


@final
class Controller:
    """The behaviour of a model's active adapters and factorised weights while training.

    `attach(optimizer)` is all that a training loop needs: from then on every `optimizer.step()`
    adds the penalties' gradients, lets the methods look at the gradients before the step, and act
    on the weights after it. A loop that would rather call them itself adds `penalty()` to its
    loss, calls `before_step()` once the gradients are there, and `step()` after the optimiser's.

    Of several processes, all are taken to train this model. DDP averages the gradients of the
    leaves that it was given, the controller those that its methods make later; a method that puts
    leaves in the place of others needs DDP's `find_unused_parameters`: see `replaces`.
    """

    def __init__(self, model: nn.Module, total_steps: int | None = None, seed: int = 0) -> None:
        self.model = model
        self._parts: list[tuple[Training, Held]] = []
        for held, operators in acting(model):
            training = Training(model, held.name, held.sites, operators, total_steps)
            digest = hashlib.sha256(f"{seed}:{held.name}".encode()).digest()
            training.generator.manual_seed(int.from_bytes(digest[:7], "big"))
            self._parts.append((training, held))
        self._started = False
        self._known = self._leaves()

    @property
    def replaces(self) -> bool:
        """Whether a method may freeze leaves while they train, or put others in their place."""
        return any(_acts_between_steps(held) for _, held in self._parts)

    @property
    def trainings(self) -> list[Training]:
        """What the controls of each adapter, and of each group of factorised weights, see."""
        return [training for training, _ in self._parts]

    def attach(self, optimizer: Optimizer, penalties: bool = True) -> None:
        """Act at every `optimizer.step()`, without anything else in the loop.

        penalties: add the gradient of the penalties just before the step, after any clipping.

        The controller's state travels in the optimiser's: whoever saves and loads that, in any
        order with this call, resumes exactly.

        Raises ValueError for a method that acts on leaves between steps where FSDP2 shards them.
        """
        self._require_whole()
        while hasattr(optimizer, "optimizer"):  # accelerate wraps it, and forwards step()
            optimizer = optimizer.optimizer
        for training, _ in self._parts:
            training.optimizer = optimizer
        self._take(optimizer)
        self.start()

        def before(*_: Any) -> None:
            if penalties:
                self._add_penalty()
            self.before_step()

        optimizer.register_step_pre_hook(before)

        def give(_: Optimizer, state: dict[str, Any]) -> None:
            state["param_groups"][0][_KEY] = self.state_dict()

        optimizer.register_step_post_hook(lambda *_: self.step())
        optimizer.register_state_dict_post_hook(give)
        optimizer.register_load_state_dict_post_hook(self._take)

    def _require_whole(self) -> None:
        """Of shards, a method's own steps would see a part each."""
        for training, held in self._parts:
            sharded = any(is_sharded(leaf) for leaf in training.leaves().values())
            if sharded and _acts_between_steps(held):
                raise ValueError(
                    f"{held.method} acts on its leaves between steps, and FSDP2 has sharded them: "
                    "train it under DDP, where each process has them whole"
                )

    def _take(self, optimizer: Optimizer) -> None:
        state = optimizer.param_groups[0].pop(_KEY, None)
        if state is not None:
            self.load_state_dict(state)

    def start(self) -> None:
        """Run what comes before the first step; once, and not after a resume."""
        if self._started:
            return
        self._started = True
        for training, control in self._each():
            if control.start is not None:
                control.start(training)
        self._adopt()

    def penalty(self) -> Tensor:
        """What the methods add to the loss: a scalar, 0 if none adds anything."""
        terms = [c.penalty(training) for training, c in self._each() if c.penalty is not None]
        return torch.stack(terms).sum() if terms else torch.zeros(())

    @torch.no_grad()
    def before_step(self) -> None:
        """After backward, before the optimiser moves.

        Raises SiteError for a gradient that is not finite; nothing has moved then.
        """
        self.start()
        for training, _ in self._parts:
            for name, leaf in training.leaves().items():
                if leaf.grad is not None and not torch.isfinite(leaf.grad).all():
                    raise SiteError(
                        name,
                        f"its gradient is NaN or infinite at step {training.step}",
                        "Lower the learning rate, clip gradients, or use a GradScaler, which "
                        "skips such steps.",
                    )
        for training, control in self._each():
            if control.before_step is not None:
                control.before_step(training)

    @torch.no_grad()
    def step(self) -> None:
        """After the optimiser has moved."""
        for training, _ in self._parts:
            training.step += 1
        for training, control in self._each():
            if control.after_step is not None:
                control.after_step(training)
        self._adopt()

    def parameter_groups(self, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Groups for an optimiser of everything that trains, with the methods' learning rates."""
        factors: dict[int, float] = {}
        for training, control in self._each():
            rates = control.learning_rates
            if callable(rates):
                rates = rates(training)
            for name, leaf in training.leaves().items():
                last = name.rpartition(".")[2].rpartition("/")[2]
                factor = rates.get(name, rates.get(last, 1.0))
                factors[id(leaf)] = factors.get(id(leaf), 1.0) * factor
        groups: dict[float, list[nn.Parameter]] = {}
        for leaf in self.model.parameters():
            if leaf.requires_grad:
                groups.setdefault(factors.get(id(leaf), 1.0), []).append(leaf)
        return [
            {"params": leaves, "lr": lr * factor, "weight_decay": weight_decay}
            for factor, leaves in groups.items()
        ]

    def plan(self, total_steps: int) -> None:
        """How many optimiser steps there will be, for methods with a schedule.

        Raises ValueError if a schedule was begun with another number; nothing has changed then.
        """
        for training, _ in self._parts:
            training.require_plan(total_steps, training.memory)
        for training, _ in self._parts:
            training.total = total_steps

    def callback(self) -> Any:
        """A callback for transformers' Trainer that does all of this, and resumes exactly."""
        return trainer_callback(self)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON values from which `load_state_dict` goes on exactly."""
        return {
            training.name: {
                "made": json.dumps(_made(training, held)),
                "step": training.step,
                "memory": copy.deepcopy(training.memory),
                "generator": training.generator.get_state(),
            }
            for training, held in self._parts
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises ValueError if it is of others than act now, of some made with other settings, or of
        a schedule over another number of steps; nothing has changed then.
        """
        names = [training.name for training, _ in self._parts]
        if sorted(state) != sorted(names):
            raise ValueError(f"the state is of {sorted(state)}, not {sorted(names)}")
        for training, held in self._parts:
            saved = state[training.name]
            _require_same(training.name, json.loads(saved["made"]), _made(training, held))
            training.require_plan(training.total, saved.get("memory", {}))
        for training, _ in self._parts:
            saved = state[training.name]
            training.step = int(saved["step"])
            training.memory = dict(saved.get("memory", {}))  # torch drops it where it is empty
            training.generator.set_state(saved["generator"])
        self._started = True
        for training, control in self._each():
            if control.resume is not None:
                control.resume(training)
        self._adopt()

    def _each(self) -> Iterator[tuple[Training, Control]]:
        for training, held in self._parts:
            for control in held.recipe.controls:
                yield training, control

    def _leaves(self) -> dict[int, nn.Parameter]:
        return {
            id(leaf): leaf
            for training, _ in self._parts
            for op in training.operators.values()
            for leaf in op.parameters()
        }

    def _adopt(self) -> None:
        """Average the gradients of leaves that are new, which a wrapper does not know of."""
        if not in_parallel():
            return
        for key, leaf in self._leaves().items():
            if leaf.requires_grad and key not in self._known:
                self._known[key] = leaf  # for good, so that no other leaf takes its id
                if not is_sharded(leaf):
                    average(leaf)

    def _add_penalty(self) -> None:
        with torch.enable_grad():
            total = self.penalty()
        if not total.requires_grad:
            return
        leaves = [p for p in self.model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(total, leaves, allow_unused=True)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient


def _acts_between_steps(held: Held) -> bool:
    return any(c.before_step or c.after_step for c in held.recipe.controls)


def _made(training: Training, held: Held) -> dict[str, Any]:
    """How what trains was made, as plain JSON values."""
    sites = sorted(training.operators)
    return {"method": held.method, "seed": held.seed, "sites": sites} | {
        key: json.loads(json.dumps(value))
        for key, value in held.parameters.items()
        if is_json(value)
    }


def _require_same(name: str, saved: dict[str, Any], here: dict[str, Any]) -> None:
    differ = sorted(key for key in {*saved, *here} if saved.get(key) != here.get(key))
    if differ:
        told = ", ".join(f"{key} was {saved.get(key)!r} and is {here.get(key)!r}" for key in differ)
        raise ValueError(f"the state is of {name!r} with other settings: {told}")


def controller(model: nn.Module, total_steps: int | None = None, seed: int = 0) -> Controller:
    """What the model's active adapters and factorised weights do in training; see `Controller`.

    total_steps: optimiser steps planned, for methods with a schedule. seed: of what they draw.
    """
    return Controller(model, total_steps, seed)
