"""Peak memory of loading and running compressed language models, beside dense and torchao ones.

    python -m benchmarks.peaks [--small]

Random LLaMAs are written and read by processes of their own; this one imports nothing large. Linux
only. Bytes are those resident beyond the libraries', and are shown over what the dense model's
files hold.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.board.store import Results

RESULTS = Path(__file__).parent / "results" / "peaks.json"


def in_child(module: str, *arguments: str) -> Any:
    """What a module of `peaking`, run as a script, prints last."""
    command = [sys.executable, "-m", f"benchmarks.peaking.{module}", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--small", action="store_true", help="tiny models: what they take is noise")
    parser.add_argument("--out", type=Path, help="default: the committed results, unless --small")
    options = parser.parse_args()
    results = Results(options.out or (Path("out/bench/peaks.json") if options.small else RESULTS))
    with tempfile.TemporaryDirectory() as folder:
        made = in_child("make", folder, *["--small"] * options.small)
        results.set("environment", made["environment"])
        results.set("notes", made["notes"])
        for form in made["forms"]:
            after = [] if form["after"] is None else ["--after", form["after"]]
            found = in_child("measure", form["folder"], *after)
            results.add("peaks", {"key": form["key"]} | found)
            print(json.dumps({"key": form["key"]} | found))


if __name__ == "__main__":
    main()
