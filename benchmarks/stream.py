"""Peak memory of compressing a random LLaMA of 1.1B parameters on disk, without building it.

Writes a random bf16 checkpoint (2.2 GB, or `--layers` of it) shard by shard into a temporary
folder, streams it through a randomised SVD, and prints the peak resident memory (ru_maxrss) beside
the bound: the needs of the largest matrix (in bf16, in fp32, and three times that for its
decomposition) plus 1 GB. Both steps run in processes of their own, since a process starts with
its parent's peak; this one imports nothing large.

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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SIZES = {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632}
HEADS = {"num_attention_heads": 32, "num_key_value_heads": 4, "tie_word_embeddings": False}


def write_checkpoint(folder: Path, layers: int) -> None:
    """A random LLaMA of TinyLlama's shape; prints its number of parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from corank.io.shards import ShardWriter

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
    print(writer.total_numel)


def compress(folder: Path, out: Path, keep: float, everything: bool) -> None:
    """What the measured process does; prints one line of JSON."""
    from corank.io import stream
    from corank.linalg import randomized_svd
    from corank.models import Site
    from corank.operators import LowRank

    largest, before = 0, 0

    def shrink(name: str, matrix: torch.Tensor, site: Site) -> LowRank:
        nonlocal largest, before
        before = before or peak_bytes()
        largest = max(largest, matrix.numel())
        rank = int(keep * matrix.numel() / sum(matrix.shape))
        u, s, v = randomized_svd(matrix.float(), rank, generator=site.generator())[:3]
        root = s.sqrt()
        return LowRank((u * root).bfloat16(), (root[:, None] * v).bfloat16())

    start = time.perf_counter()
    numel = stream(folder, out, shrink, targets="all" if everything else "all-linear")
    seconds = time.perf_counter() - start
    stored = sum(f.stat().st_size for f in out.glob("*.safetensors"))
    memory = {"peak": peak_bytes(), "before": before, "largest": largest}
    print(json.dumps(memory | {"seconds": seconds, "sites": len(numel), "stored": stored}))


def peak_bytes() -> int:
    """The most memory that was resident so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_child(*arguments: str) -> str:
    """The last line printed by this script with other arguments."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--all", action="store_true", help="embedding and head as well")
    parser.add_argument("--write", help=argparse.SUPPRESS)
    parser.add_argument("--stream", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write_checkpoint(Path(options.write), options.layers)
        return
    if options.stream:
        folder, out = map(Path, options.stream)
        compress(folder, out, options.keep, options.all)
        return
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name) / "dense", Path(name) / "small"
        parameters = int(in_child("--layers", str(options.layers), "--write", str(folder)))
        rest = ["--keep", str(options.keep), *["--all"] * options.all]
        found = json.loads(in_child(*rest, "--stream", str(folder), str(out)))
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
