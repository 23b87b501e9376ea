"""What adapters cost beside PEFT's, in one run: start, wrapping, training step, inference.

    python -m benchmarks.adapters [--only REGEX] [--rounds 15]

Times are of the processor (one thread), medians over rounds in which both libraries take their
turn; saved bytes are what autograd keeps for the backward pass besides parameters. "Above the
base" is the time of forward and backward less that of the frozen model without adapters.

VeRA and RandLoRA cannot get to half of PEFT's time here, as both libraries spend theirs in the same
matrix products: `benchmarks.products` counts and times them.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import corank
from benchmarks.board.measure import environment
from benchmarks.board.store import Results

RESULTS = Path(__file__).parent / "results" / "adapters.json"
WIDTH, DEPTH, ROWS = 1024, 8, 512
MIN_SECONDS = 1e-9

#: corank's key and parameters, PEFT's configuration class and parameters.
STEPS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "LoRA r16": ("lora", {"rank": 16}, "LoraConfig", {"r": 16}),
    "DoRA r16": ("dora", {"rank": 16}, "LoraConfig", {"r": 16, "use_dora": True}),
    "VeRA r256": ("vera", {"rank": 256}, "VeraConfig", {"r": 256}),
    "LoHa r8": ("fedpara", {"rank": 8}, "LoHaConfig", {"r": 8}),
    "FourierFT n1000": ("fourierft", {"n_frequency": 1000}, "FourierFTConfig",
                        {"n_frequency": 1000}),
    "RandLoRA r32": ("randlora", {"rank": 32}, "RandLoraConfig", {"r": 32}),
    "HRA r8": ("hra", {"rank": 8}, "HRAConfig", {"r": 8}),
}  # fmt: skip


def stack(depth: int = DEPTH, width: int = WIDTH) -> nn.Sequential:
    """The frozen base: square linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(width, width) for _ in range(depth)]).requires_grad_(False)


def with_peft(model: nn.Module, config: str, parameters: dict[str, Any]) -> nn.Module:
    """The model wrapped by PEFT."""
    import peft

    made = getattr(peft, config)(target_modules=r"\d+", **parameters)
    return peft.get_peft_model(model, made)


def with_corank(model: nn.Module, key: str, parameters: dict[str, Any]) -> nn.Module:
    """The model adapted by corank."""
    corank.adapt(model, key, **parameters)
    return model


def stir(model: nn.Module) -> nn.Module:
    """Off the start, where zeros would save work."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for leaf in model.parameters():
            if leaf.requires_grad:
                leaf.add_(0.01 * torch.randn(leaf.shape, generator=generator))
    return model


def seconds_of(run: Callable[[], Any]) -> float:
    """Processor seconds of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def in_turn(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each, in interleaved rounds after one to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name in sorted(runs, key=lambda n: (hash(n) + turn) % len(runs)):
            spent = seconds_of(runs[name])
            if turn:
                taken[name].append(spent)
    return {name: median(values) for name, values in taken.items()}


def step(model: nn.Module, x: Tensor) -> None:
    """Forward and backward, gradients dropped."""
    model(x).square().mean().backward()
    for leaf in model.parameters():
        leaf.grad = None


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """What autograd keeps for the backward pass, each storage once, parameters left out."""
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(x).square().mean()
    kept.pop(x.untyped_storage().data_ptr(), None)
    out.backward()
    return sum(kept.values())


def measure_step(name: str, rounds: int) -> dict[str, Any]:
    """A training step with one method in both libraries, above the frozen base."""
    key, ours, config, theirs = STEPS[name]
    x = torch.randn(ROWS, WIDTH).requires_grad_(True)
    base = stack()
    models = {
        "base": base,
        "corank": stir(with_corank(stack(), key, ours)),
        "peft": stir(with_peft(stack(), config, theirs)),
    }
    seconds = in_turn({n: lambda m=m: step(m, x) for n, m in models.items()}, rounds)
    kept = {n: saved_bytes(m, x) for n, m in models.items()}
    above = {n: seconds[n] - seconds["base"] for n in ("corank", "peft")}
    more = {n: kept[n] - kept["base"] for n in ("corank", "peft")}
    return {
        "key": f"step {name}",
        "seconds": seconds,
        "saved_bytes": kept,
        "trainable": {
            n: sum(p.numel() for p in models[n].parameters() if p.requires_grad) for n in above
        },
        "time_above_base": above["corank"] / max(above["peft"], MIN_SECONDS),
        "saved_above_base": more["corank"] / max(more["peft"], 1),
        "time_ratio": seconds["corank"] / seconds["peft"],
    }


def measure_inference(rounds: int) -> dict[str, Any]:
    """One row through unmerged adapters: what each layer adds to the base."""
    x = torch.randn(1, WIDTH)
    models = {
        "base": stack().eval(),
        "corank": stir(with_corank(stack(), "lora", {"rank": 16})).eval(),
        "peft": stir(with_peft(stack(), "LoraConfig", {"r": 16})).eval(),
    }

    def calls(model: nn.Module) -> None:
        with torch.inference_mode():
            for _ in range(100):
                model(x)

    seconds = in_turn({n: lambda m=m: calls(m) for n, m in models.items()}, rounds)
    above = {n: (seconds[n] - seconds["base"]) / (100 * DEPTH) for n in ("corank", "peft")}
    return {
        "key": "inference LoRA r16, batch 1",
        "microseconds_above_base_per_layer": {n: 1e6 * s for n, s in above.items()},
        "ratio": above["corank"] / max(above["peft"], MIN_SECONDS),
    }


def measure_start(rounds: int, width: int = 4096, rank: int = 16) -> dict[str, Any]:
    """PiSSA's start on one large weight, and the residual that it leaves."""
    layer = nn.Sequential(nn.Linear(width, width, bias=False)).requires_grad_(False)
    torch.manual_seed(0)
    decay = torch.arange(1, width + 1) ** -0.5
    with torch.no_grad():
        layer[0].weight.copy_((torch.randn(width, width) * decay) @ torch.randn(width, width))
        layer[0].weight.div_(layer[0].weight.std())
    weight, residual = layer[0].weight.clone(), {}

    def fresh() -> nn.Module:
        made = nn.Sequential(nn.Linear(width, width, bias=False)).requires_grad_(False)
        made[0].weight.data = weight.clone()
        return made

    seconds: dict[str, list[float]] = {"corank": [], "peft": []}
    for _ in range(rounds):
        ours = fresh()
        seconds["corank"].append(seconds_of(lambda m=ours: with_corank(m, "pissa", {"rank": rank})))
        term = ours[0].operator.adapter("default").operators[2]
        residual["corank"] = float((weight - term.dense()).detach().norm() / weight.norm())
        theirs = fresh()
        options = {"r": rank, "lora_alpha": rank, "init_lora_weights": "pissa_niter_16"}
        seconds["peft"].append(
            seconds_of(lambda m=theirs, o=options: with_peft(m, "LoraConfig", o))
        )
        base = next(p for n, p in theirs.named_parameters() if "base_layer" in n)
        residual["peft"] = float(base.detach().norm() / weight.norm())
    taken = {n: median(values) for n, values in seconds.items()}
    return {
        "key": f"start PiSSA {width} x {width} r{rank}",
        "seconds": taken,
        "relative_residual": residual,
        "ratio": taken["corank"] / taken["peft"],
        "residual_ratio": residual["corank"] / residual["peft"],
    }


FIRST = """
import json, sys, time, torch, transformers, corank
torch.set_num_threads(1)
start = time.process_time()
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], local_files_only=True)
loaded = time.process_time()
corank.adapt(model, "pissa", rank=16)
adapted = time.process_time()
transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], local_files_only=True)
again = time.process_time()
print(json.dumps([loaded - start, adapted - loaded, again - adapted]))
"""


def measure_reference(rounds: int) -> dict[str, Any]:
    """All linear layers of the reference model adapted, beside loading it, in a fresh process."""
    folder = Path(__file__).parent / "reference" / "model"
    command = [sys.executable, "-c", FIRST, str(folder)]
    runs = [
        json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
        for _ in range(rounds)
    ]
    load, adapt, again = (median(values) for values in zip(*runs, strict=True))
    return {
        "key": "start PiSSA r16, every linear layer of the reference model",
        "seconds": {"first load": load, "first adapt": adapt, "load again": again},
        "ratio": adapt / load,
    }


def measure_wrapping(rounds: int, layers: int = 1000) -> dict[str, Any]:
    """A model of many small layers, wrapped."""
    runs: dict[str, list[float]] = {"corank": [], "peft": []}
    for _ in range(rounds):
        ours, theirs = stack(layers, 64), stack(layers, 64)
        runs["corank"].append(seconds_of(lambda m=ours: with_corank(m, "lora", {"rank": 8})))
        runs["peft"].append(seconds_of(lambda m=theirs: with_peft(m, "LoraConfig", {"r": 8})))
    taken = {n: median(values) for n, values in runs.items()}
    return {
        "key": f"wrapping {layers} layers",
        "seconds": taken,
        "speedup": taken["peft"] / taken["corank"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a regular expression that keys must match")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--small", action="store_true", help="no large start, few rounds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 3 if options.small else options.rounds
    few = max(1, rounds // 5)
    tasks: dict[str, Callable[[], dict[str, Any]]] = {
        f"step {name}": (lambda n=name: measure_step(n, rounds)) for name in STEPS
    }
    tasks |= {
        "inference": lambda: measure_inference(rounds),
        "wrapping": lambda: measure_wrapping(few),
        "reference": lambda: measure_reference(few),
    }
    if not options.small:
        tasks["start"] = lambda: measure_start(few)
    results = Results(options.out)
    results.set("environment", environment())
    for name, task in tasks.items():
        if re.search(options.only, name):
            row = task()
            results.add("adapters", row)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
