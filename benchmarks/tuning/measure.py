"""One fine-tuning run, and the row that it makes."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import corank
import corank.errors
import corank.registry
from benchmarks.tuning.tasks import Task
from corank.adapters import Controller, adapters

#: Statistics that take a loss, and so the labels.
GRADIENTS = {"fisher", "gradient", "output_gram"}
#: Everything trains; nothing does.
FULL, FROZEN = "full fine-tuning", "frozen"


def prepare(task: Task, method: str, parameters: dict[str, Any], seed: int) -> nn.Module:
    """The task's model, ready to be trained in that way."""
    model = task.load()
    if method == FULL:
        return model.requires_grad_(True)
    model.requires_grad_(False)
    if method == FROZEN:
        for ending in task.head:
            model.get_submodule(ending).requires_grad_(True)
        return model
    registered = corank.registry.find_method(method, "adapt")
    recipe = registered.recipe(parameters)
    data, needs = {}, recipe.rewrite.needs | recipe.needs
    if needs:
        batches = task.batches(seed)[:16]
        if not needs & GRADIENTS and isinstance(batches[0], tuple):
            batches = [inputs for inputs, _ in batches]
        data = {"data": batches, "loss": task.loss}
    corank.adapt(
        model, method, targets=task.targets, modules_to_save=task.head, seed=seed, **data,
        **parameters,
    )  # fmt: skip
    return model


def train(task: Task, model: nn.Module, lr: float, seed: int) -> float:
    """Train in place with Adam and a rate that falls linearly to 0; processor seconds a step."""
    leaves = [p for p in model.parameters() if p.requires_grad]
    if not leaves:
        return 0.0
    held = adapters(model)
    control: Controller | None = None
    if held:
        control = corank.controller(model, total_steps=task.steps, seed=seed)
    groups = control.parameter_groups(lr) if control else [{"params": leaves, "lr": lr}]
    optimizer = torch.optim.Adam(groups)
    if control:
        control.attach(optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / task.steps)
    model.train()
    start = time.process_time()
    torch.manual_seed(seed)
    for batch in task.batches(seed):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    return (time.process_time() - start) / task.steps


def kept_bytes(task: Task, model: nn.Module) -> int:
    """What a step holds besides the weights: what backward needs, gradients, Adam's state."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return saved_bytes(task, model) + 3 * trained


def saved_bytes(task: Task, model: nn.Module) -> int:
    """What a step's forward pass keeps for its backward pass, besides the model's own tensors."""
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output that its own graph holds would never be freed

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        task.loss(model.train(), task.batches(0)[0])
    model.eval()
    return sum(kept.values())


def measure(
    task: Task, method: str, parameters: dict[str, Any], lr: float, seed: int
) -> dict[str, Any]:
    """Prepare, train and evaluate once."""
    started = time.process_time()
    model = prepare(task, method, parameters, seed)
    starting = time.process_time() - started
    counts = {"trainable": sum(p.numel() for p in model.parameters() if p.requires_grad)}
    kept = kept_bytes(task, model) if counts["trainable"] else 0
    step = train(task, model, lr, seed)
    found = {
        "measures": task.evaluate(model), "tuning": task.tune(model), "trainable":
        counts["trainable"], "start_seconds": starting, "step_seconds": step, "step_bytes": kept,
    }  # fmt: skip
    if adapters(model):
        with tempfile.TemporaryDirectory() as folder:
            corank.save_adapter(model, Path(folder) / "adapter")
            files = (Path(folder) / "adapter").rglob("*")
            found["file_bytes"] = sum(f.stat().st_size for f in files if f.is_file())
    return found


def tune(
    task: Task, method: str, parameters: dict[str, Any], grid: tuple[float, ...]
) -> dict[float, float]:
    """The tuning rows' quality at each rate of the grid, one seed that no row is made with."""
    reached = {}
    for lr in grid:
        try:
            model = prepare(task, method, parameters, seed=100)
            train(task, model, lr, seed=100)
            reached[lr] = task.tune(model)
        except corank.errors.SiteError as error:
            if "NaN or infinite" not in str(error):
                raise
            reached[lr] = float("inf") if not task.higher else float("-inf")
    return reached
