"""Peak memory of compressing a random LLaMA of 1.1B parameters on disk, without building it.

Writes a random bf16 checkpoint (2.2 GB, or `--layers` of it) shard by shard into a temporary
folder, streams it through a randomised SVD in a process of its own, and prints that process's
peak resident memory beside the bound: what it holds before the first matrix, the needs of the
largest matrix (as bf16, in fp32, and three times more for the decomposition), and 1 GB.

    python benchmarks/stream.py [--layers 22] [--keep 0.5] [--all]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

SIZES = {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632}
HEADS = {"num_attention_heads": 32, "num_key_value_heads": 4, "tie_word_embeddings": False}


def write_checkpoint(folder: Path, layers: int) -> int:
    """A random LLaMA of TinyLlama's shape; returns its number of parameters."""
    from corank.io.shards import ShardWriter
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SIZES, **HEADS, num_hidden_layers=layers, dtype="bfloat16")
    config.architectures = ["LlamaForCausalLM"]
    folder.mkdir()
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = LlamaForCausalLM(config).state_dict()
    writer, generator = ShardWriter(folder, 500_000_000), torch.Generator().manual_seed(0)
    for name, tensor in shapes.items():
        value = torch.ones(tensor.shape)
        if tensor.ndim == 2:
            value = torch.randn(tensor.shape, generator=generator) * 0.02
        writer.add(name, value.bfloat16())
    writer.finish()
    return writer.total_numel


def compress(folder: Path, out: Path, keep: float, everything: bool) -> None:
    """What the measured process does; prints one line of JSON."""
    from corank.io import stream
    from corank.linalg import randomized_svd
    from corank.models import Site
    from corank.operators import LowRank

    largest, before = 0, 0

    def halve(name: str, matrix: torch.Tensor, site: Site) -> LowRank:
        nonlocal largest, before
        before = before or resident_bytes()
        largest = max(largest, matrix.numel())
        rank = int(keep * matrix.numel() / sum(matrix.shape))
        u, s, v = randomized_svd(matrix.float(), rank, generator=site.generator())[:3]
        root = s.sqrt()
        return LowRank((u * root).bfloat16(), (root[:, None] * v).bfloat16())

    start = time.perf_counter()
    numel = stream(folder, out, halve, targets="all" if everything else "all-linear")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    stored = sum(f.stat().st_size for f in out.glob("*.safetensors"))
    print(json.dumps({"peak": peak, "before": before, "largest": largest, "seconds": seconds,
                      "sites": len(numel), "stored": stored}))  # fmt: skip


def resident_bytes() -> int:
    """Resident memory now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--all", action="store_true", help="embedding and head as well")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        compress(Path(options.child[0]), Path(options.child[1]), options.keep, options.all)
        return
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name) / "dense", Path(name) / "small"
        parameters = write_checkpoint(folder, options.layers)
        command = [sys.executable, __file__, "--keep", str(options.keep)]
        command += ["--all"] * options.all + ["--child", str(folder), str(out)]
        child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(child.stdout.splitlines()[-1])
    matrix = found["largest"] * (2 + 4 * 4)
    bound = matrix + 10**9
    print(f"parameters                {parameters / 1e9:8.3f} B, {2 * parameters / 1e9:.2f} GB")
    print(f"sites, seconds            {found['sites']:8d}, {found['seconds']:.0f} s")
    print(f"stored after              {found['stored'] / 1e9:8.2f} GB")
    print(f"peak resident memory      {found['peak'] / 1e9:8.2f} GB")
    print(f"  before the first matrix {found['before'] / 1e9:8.2f} GB (libraries)")
    print(f"bound: matrix + 1 GB      {bound / 1e9:8.2f} GB ({matrix / 1e9:.2f} GB + 1 GB)")
    if found["peak"] > bound:
        sys.exit("the peak is above the bound")


if __name__ == "__main__":
    main()
