"""Write the pages that follow from the code: `python docs/generate.py`."""

from __future__ import annotations

from pathlib import Path

import corank

METHODS = Path(__file__).with_name("methods.md")
TITLES = {
    "adapt": "Adapt: `corank.adapt(model, key, ...)`",
    "compress": "Compress: `corank.compress(model, key, ...)`",
    "analyze": "Analyze: probes",
    "optimize": "Optimise: `corank.optim`, and weights for `corank.factorize`",
    "linalg": "Linear algebra: functions of `corank.linalg`",
}


def methods_page() -> str:
    """Every registered method, from its registration and its docstring."""
    lines = ["# Methods", "", "Written by `python docs/generate.py` from the registry.", ""]
    for area in sorted({method.area for method in corank.methods()}):
        lines += [f"## {TITLES.get(area, area)}", ""]
        for method in corank.methods(area):
            lines += _entry(method)
    return "\n".join(lines)


def _entry(method: corank.registry.Method) -> list[str]:
    described, paper = method.to_json(), method.paper
    arxiv = f" [arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})." if paper.arxiv else ""
    lines = [f"### `{method.key}`", "", method.summary, ""]
    lines += [f"- Paper: {paper.title}.{arxiv}", f"- Implemented: {paper.where}."]
    if paper.deviations:
        lines.append(f"- Deviations: {paper.deviations}.")
    if described["parameters"]:
        values = (f"`{k}={v}`" for k, v in described["parameters"].items())
        lines.append(f"- Parameters: {', '.join(values)}.")
    if described["laws"]:
        lines.append(f"- Laws tested: {', '.join(described['laws'])}.")
    return [*lines, ""]


if __name__ == "__main__":
    METHODS.write_text(methods_page())
    print(f"wrote {METHODS}")
