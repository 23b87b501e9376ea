"""An adapter of one's own: a low-rank update whose ranks fade out unless the loss holds them."""

import torch
from torch import nn

import corank
from corank.control import Control, Training
from corank.registry import Adaptation, Paper, method
from corank.rewrites import plus, zero_low_rank


@method(
    Paper("Fading ranks, an example", "", "this file"),
    area="adapt",
    laws=("adapter", "dynamic", "preserves"),
    equation=lambda w, p, rank=8, fade=1e-3: w + p["b"] * p["gate"] @ p["a"],
)
def fading_lora(rank: int = 8, fade: float = 1e-3) -> Adaptation:
    """W + b diag(g) a with fade * sum |g| in the loss, and gates within fade of zero stay zero."""
    if fade < 0:
        raise ValueError(f"fade={fade} must not be negative")

    def start(training: Training) -> None:
        for name, part in training.low_ranks().items():
            gone = torch.zeros_like(part.gate, dtype=torch.bool)
            training.memory[f"gone:{name}.gate"] = gone  # named after its leaf: cut along with it

    def penalty(training: Training) -> torch.Tensor:
        return fade * sum(part.gate.abs().sum() for part in training.low_ranks().values())

    def after_step(training: Training) -> None:
        for name, part in training.low_ranks().items():
            gone = training.memory[f"gone:{name}.gate"]
            gone |= part.gate.abs() < fade
            part.gate[gone] = 0.0

    return Adaptation(
        plus(zero_low_rank(rank, gated=True)),
        count=lambda sites: sum(rank * (sum(site.shape) + 1) for site in sites),
        controls=[Control(start=start, penalty=penalty, after_step=after_step)],
    )


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(512, 64)
    wanted = x @ torch.randn(64, 2) @ torch.randn(2, 64) / 16  # an update of rank two
    for fade in (0.0, 3e-2):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(64, 64))
        target = model(x).detach() + wanted
        report = corank.adapt(model, "fading_lora", rank=8, fade=fade)
        control = corank.controller(model)
        optimizer = torch.optim.Adam(control.parameter_groups(lr=2e-2))
        control.attach(optimizer)
        for _ in range(200):
            loss = (model(x) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        left = sum(int(part.alive.sum()) for part in control.trainings[0].low_ranks().values())
        print(
            f"fade {fade}: {report.totals['trainable']} numbers trained, {left} of 8 ranks left, "
            f"mean squared error {loss:.4f}"
        )


if __name__ == "__main__":
    main()
