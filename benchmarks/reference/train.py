"""Train the reference language model on the standard library's sources, in a time budget.

``python -m benchmarks.reference.train --minutes 70 --work FOLDER`` writes the tokenizer, the
averaged weights in bf16 and the state of training to FOLDER every two minutes. Run again, it
continues from there and from the minutes already used. Needs torch 2.9 or newer, for Muon.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW, Muon, Optimizer
from transformers import LlamaForCausalLM

from benchmarks.reference import checkpoint, corpus
from benchmarks.reference.evaluate import encode, load_tokenizer, perplexity
from benchmarks.reference.network import SEQUENCE_LENGTH, build_network, train_tokenizer
from benchmarks.reference.schedule import learning_rate_factor

SEED = 0
BATCH = 8
MATRIX_RATE = 4e-3
OTHER_RATE = 4e-3
AVERAGE = 0.01
"""Share of a step's weights in the running average that is saved: a horizon of 100 steps."""

SAVE_SECONDS = 120.0
TUNING_TOKENS = 32 * SEQUENCE_LENGTH


def build_optimizers(model: LlamaForCausalLM) -> list[Optimizer]:
    """Muon for the layers' matrices, AdamW for the embedding and the norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.model.layers.parameters() if p.ndim != 2]
    others += [model.model.norm.weight, model.model.embed_tokens.weight]
    return [
        Muon(matrices, lr=MATRIX_RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def stream_batches(token_ids: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Windows of `SEQUENCE_LENGTH` + 1 tokens, (BATCH, tokens), in random order, for ever.

    Each epoch cuts the stream at another random offset.
    """
    while True:
        offset = int(torch.randint(SEQUENCE_LENGTH, (1,), generator=generator))
        starts = torch.arange(offset, len(token_ids) - SEQUENCE_LENGTH, SEQUENCE_LENGTH)
        order = starts[torch.randperm(len(starts), generator=generator)]
        for batch in torch.split(order, BATCH):
            yield token_ids[batch[:, None] + torch.arange(SEQUENCE_LENGTH + 1)]


def loss_of(model: LlamaForCausalLM, windows: Tensor) -> Tensor:
    """Mean cross-entropy in nats of predicting each window's tokens from those before."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=windows[:, :-1]).logits
    return F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())


class Run:
    """A training run that can be put down and taken up: weights, average, optimisers, clock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = build_network()
        self.optimizers = build_optimizers(self.model)
        self.average = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.steps = 0
        self.seconds = 0.0
        if self._state_path.exists():
            self._restore()

    @property
    def _state_path(self) -> Path:
        return self.folder / "training_state.safetensors"

    def step(self, windows: Tensor, progress: float) -> float:
        """One update of every weight and of the average; the loss before it, in nats."""
        factor = learning_rate_factor(progress)
        loss = loss_of(self.model, windows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, rate in zip(self.optimizers, (MATRIX_RATE, OTHER_RATE), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        self.steps += 1
        share = max(AVERAGE, 1 / self.steps)
        for name, parameter in self.model.named_parameters():
            self.average[name].lerp_(parameter.detach(), share)
        return loss.item()

    def save(self) -> None:
        """Write the averaged model and all that continuing needs."""
        tensors = {f"model.{name}": p.detach() for name, p in self.model.named_parameters()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        for index, optimizer in enumerate(self.optimizers):
            tensors |= checkpoint.optimizer_tensors(optimizer, f"optimizer{index}")
        clock = {"steps": str(self.steps), "seconds": str(self.seconds)}
        checkpoint.save_state(self._state_path, tensors, clock)
        checkpoint.save_model(self.model, self.average, self.folder)

    def _restore(self) -> None:
        tensors, clock = checkpoint.load_state(self._state_path)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
                self.average[name].copy_(tensors[f"average.{name}"])
        for index, optimizer in enumerate(self.optimizers):
            checkpoint.restore_optimizer(optimizer, tensors, f"optimizer{index}")
        self.steps, self.seconds = int(clock["steps"]), float(clock["seconds"])


def tuning_perplexity(run: Run, token_ids: Tensor) -> float:
    """Perplexity of the averaged weights."""
    averaged = build_network()
    averaged.load_state_dict(run.average, strict=False)
    averaged.tie_weights()
    return perplexity(averaged.eval(), token_ids, SEQUENCE_LENGTH)


def train(minutes: float, folder: Path) -> None:
    """Train until the budget, counted over all runs in `folder`, is used up."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    if not (folder / "tokenizer.json").exists():
        texts = (corpus.read_source(path) for path in corpus.split_files("training"))
        train_tokenizer(texts).save_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    training_ids = encode(tokenizer, corpus.training_text())
    tuning_ids = encode(tokenizer, corpus.tuning_text())[:TUNING_TOKENS]
    print(f"{len(training_ids)} training tokens", flush=True)

    run = Run(folder)
    budget = 60 * minutes
    generator = torch.Generator().manual_seed(SEED + run.steps)
    mean, saved, clock = math.nan, run.seconds, time.perf_counter()
    for windows in stream_batches(training_ids, generator):
        loss = run.step(windows, run.seconds / budget)
        mean = loss if math.isnan(mean) else mean + 0.02 * (loss - mean)
        now = time.perf_counter()
        run.seconds, clock = run.seconds + now - clock, now
        finished = run.seconds >= budget
        if finished or run.seconds - saved >= SAVE_SECONDS:
            saved = run.seconds
            run.save()
            held = tuning_perplexity(run, tuning_ids)
            print(
                f"{run.seconds / 60:.1f} min, step {run.steps}, loss {mean:.3f}, "
                f"tuning perplexity {held:.2f}",
                flush=True,
            )
        if finished:
            return


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, required=True, help="time budget for all runs")
    parser.add_argument("--work", type=Path, required=True, help="folder for the run's files")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(arguments.minutes, arguments.work)


if __name__ == "__main__":
    main()
