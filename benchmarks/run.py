"""Every benchmark in turn, with small presets; results go to `out/bench`, not over the committed.

python -m benchmarks.run [NAME ...]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

OUT = Path("out/bench")
#: Small presets: minutes together, on two cores.
PRESETS: dict[str, list[str]] = {
    "imports": ["--repeats", "3", "--out", str(OUT / "imports.json")],
    "linear": ["--repeats", "5", "--out", str(OUT / "linear.json")],
    "factorise": [
        "--shapes",
        "384x384:96,1536x384:115,384x1536:115",
        "--out",
        str(OUT / "factorise.json"),
    ],
    "stream": ["--layers", "2"],
    "adapters": ["--small", "--out", str(OUT / "adapters.json")],
    "adapt": [
        "--tasks",
        "digits",
        "--only",
        "^(frozen|full fine-tuning|lora|dora|pissa), own$",
        "--out",
        str(OUT / "adapt.json"),
    ],
    "memory": ["--sizes", "60M", "--out", str(OUT / "memory.json")],
    "train": [
        "--tasks",
        "small",
        "--only",
        "^(adamw|galore), optimizer$",
        "--out",
        str(OUT / "train.json"),
    ],
    "structured": [
        "--ways",
        "sltrain,phm",
        "--rounds",
        "2",
        "--out",
        str(OUT / "structured.json"),
    ],
    "compress": ["--small", "--out", str(OUT / "compress.json")],
    "equal_bytes": ["--small", "--out", str(OUT / "equal_bytes.json")],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PRESETS)}")
    names = parser.parse_args().names or list(PRESETS)
    if unknown := set(names) - set(PRESETS):
        parser.error(f"no benchmark {min(unknown)!r}: choose from {', '.join(PRESETS)}")
    failed = []
    for name in names:
        print(f"== {name}", flush=True)
        start = time.monotonic()
        command = [sys.executable, "-m", f"benchmarks.{name}", *PRESETS[name]]
        if subprocess.run(command).returncode:
            failed.append(name)
        print(f"== {name}: {time.monotonic() - start:.0f} s", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
