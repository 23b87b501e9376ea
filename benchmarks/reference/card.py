"""Measure a trained reference model and write its model card.

``python -m benchmarks.reference.card --work FOLDER`` takes the model, the tokenizer and the clock
that `benchmarks.reference.train` left in FOLDER, copies the first two to the committed folder and
writes README.md beside them. Every figure in the card is measured or read, none typed.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import shutil
from pathlib import Path

import torch
import transformers

from benchmarks.reference import checkpoint, corpus, train
from benchmarks.reference.evaluate import (
    MODEL_FOLDER,
    encode,
    load_model,
    load_tokenizer,
    perplexity,
)
from benchmarks.reference.network import SEQUENCE_LENGTH
from benchmarks.reference.ngram import Trigram

FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)

CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
language: code
---

# corank's reference language model

A small LLaMA (grouped-query attention, tied embeddings, byte-level BPE) for measuring what
compression costs. It was trained on one CPU and is of no other use.

Written by `python -m benchmarks.reference.card` after `python -m benchmarks.reference.train`.

| | |
|---|---|
| parameters | {parameters:,} |
| layers, width, heads, key-value heads | {layers}, {width}, {heads}, {key_value_heads} |
| vocabulary | {words:,} |
| sequence length in training | {sequence_length} |
| stored as | bfloat16, {megabytes:.1f} MB |
| steps x tokens per step | {steps:,} x {step_tokens:,} = {seen:,} tokens |
| training text | {training_tokens:,} tokens, so {epochs:.1f} passes over it |
| minutes | {minutes:.0f} |
| optimisers | Muon on the layers' matrices, AdamW on the embedding and norms |
| schedule | warmup, stable, linear decay, keyed on the share of the minutes |
| saved weights | running average with a horizon of {horizon:.0f} steps |
| seed | {seed} |
| Python, whose standard library is the text | {python} |
| torch, transformers | {torch}, {transformers} |

## Data

The `.py` files of the standard library, split by top-level package (see `../corpus.py`). The
interpreter's own `test` package, site-packages, {unused} are in no split of sources.

- Held out, in-domain: {held_out}. Seen by neither the tokenizer nor the training.
- For choosing settings, also held out: {tuning}.
- Out of domain: the prose of `pydoc_data.topics`, the language reference. It is English about
  Python, with names in it that the sources share; it is another domain, not a distant one.
- Training: every other package; calibration is every {stride}th of its files.

The minutes are wall time on a shared machine, and a resumed run shuffles anew, so training again
gives another model, not this one bit for bit.

The sources are under the PSF licence; nothing of them is stored here but the weights and the
vocabulary. Another Python version has other files: its figures differ.

## Perplexity

Windows of {sequence_length} tokens, all but each window's first predicted, over all of each text.
The 3-gram is interpolated Kneser-Ney (`../ngram.py`) trained on the same training tokens and
predicting the same tokens; it sees across the windows' borders. Bits per byte do not depend on the
tokenizer.

| text | tokens | this model | 3-gram | bits per byte, this model | 3-gram |
|---|---|---|---|---|---|
{rows}
"""


def measure_rows(folder: Path) -> tuple[list[str], int]:
    """A table row per evaluated text, and the number of training tokens."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    training_ids = encode(tokenizer, corpus.training_text())
    trigram = Trigram(training_ids.numpy(), model.config.vocab_size)
    texts = {
        "held-out packages (in-domain)": corpus.heldout_text(),
        "prose (out of domain)": corpus.prose_text(),
        "tuning packages": corpus.tuning_text(),
        "calibration files (seen in training)": corpus.calibration_text(),
    }
    rows = []
    for name, text in texts.items():
        ids = encode(tokenizer, text)
        ours = perplexity(model, ids, SEQUENCE_LENGTH)
        theirs = trigram.perplexity(ids.numpy(), SEQUENCE_LENGTH)
        tokens_per_byte = len(ids) / len(text.encode())
        bits = [math.log2(value) * tokens_per_byte for value in (ours, theirs)]
        rows.append(
            f"| {name} | {len(ids):,} | {ours:.2f} | {theirs:.2f} | {bits[0]:.3f} | {bits[1]:.3f} |"
        )
    return rows, len(training_ids)


def write_card(folder: Path, clock: dict[str, str]) -> str:
    """Measure the model in `folder`, trained for `clock`, and write its README.md; the card."""
    config = load_model(folder).config
    rows, training_tokens = measure_rows(folder)
    steps = int(clock["steps"])
    step_tokens = train.BATCH * SEQUENCE_LENGTH
    card = CARD.format(
        parameters=sum(p.numel() for p in load_model(folder).parameters()),
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        key_value_heads=config.num_key_value_heads,
        words=config.vocab_size,
        sequence_length=SEQUENCE_LENGTH,
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        steps=steps,
        step_tokens=step_tokens,
        seen=steps * step_tokens,
        training_tokens=training_tokens,
        epochs=steps * step_tokens / training_tokens,
        minutes=float(clock["seconds"]) / 60,
        horizon=1 / train.AVERAGE,
        seed=train.SEED,
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        unused=" and ".join(f"`{unit}`" for unit in corpus.UNUSED_UNITS),
        held_out=", ".join(f"`{unit}`" for unit in corpus.HELD_OUT_UNITS),
        tuning=", ".join(f"`{unit}`" for unit in corpus.TUNING_UNITS),
        stride=corpus.CALIBRATION_STRIDE,
        rows="\n".join(rows),
    )
    (folder / "README.md").write_text(card)
    return card


def publish(work: Path, folder: Path) -> str:
    """Copy the model and tokenizer of a run to `folder`, file by file, and write the card."""
    folder.mkdir(parents=True, exist_ok=True)
    _, clock = checkpoint.load_state(work / "training_state.safetensors")
    for name in FILES:
        partial = folder / f"{name}.partial"
        shutil.copyfile(work / name, partial)
        os.replace(partial, folder / name)
    return write_card(folder, clock)


def main() -> None:
    """Parse the command line, publish, print the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of the training run")
    print(publish(parser.parse_args().work, MODEL_FOLDER))


if __name__ == "__main__":
    main()
