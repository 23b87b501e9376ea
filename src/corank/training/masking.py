"""Rows for masked language models: which tokens are hidden, anew in every epoch."""

from __future__ import annotations

import hashlib
from typing import Any, final

import torch

from ..errors import DataError
from .examples import Examples
from .lines import IGNORED

SHARE = 0.15  #: of the tokens that are to be predicted, as in BERT's section 3.1
_MASKED, _REPLACED = 0.8, 0.1  # of those; the rest stay as they are


@final
class Masked:
    """Examples of which `share` of the tokens are to be predicted.

    What is hidden in a row depends on the seed, the row and the epoch, and on nothing else: neither
    on the order of rows nor on how many processes there are. A run that resumes sees what the
    undisturbed one saw.

    Raises DataError for a tokenizer without a token to mask with.
    """

    def __init__(
        self, examples: Examples, tokenizer: Any, seed: int = 0, share: float = SHARE
    ) -> None:
        if tokenizer.mask_token_id is None:
            raise DataError(
                "the tokenizer has no mask token, which a masked model is trained with: give one "
                'by tokenizer.add_special_tokens({"mask_token": ...}), or another tokenizer'
            )
        self.examples, self.seed, self.share, self.epoch = examples, seed, share, 0
        self.mask, self.words = int(tokenizer.mask_token_id), len(tokenizer)
        self.kept = torch.tensor(sorted(set(tokenizer.all_special_ids)))

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        ids = torch.tensor(self.examples[index]["input_ids"])
        digest = hashlib.sha256(f"{self.seed}:{self.epoch}:{index}".encode()).digest()
        drawn = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        text = ~torch.isin(ids, self.kept)
        chosen = text & (torch.rand(len(ids), generator=drawn) < self.share)
        if not chosen.any() and text.any():  # a row without anything to predict has no loss
            places = text.nonzero()[:, 0]
            chosen[places[torch.randint(len(places), (1,), generator=drawn)]] = True
        labels = torch.where(chosen, ids, IGNORED)
        fate = torch.rand(len(ids), generator=drawn)
        others = torch.randint(self.words, (len(ids),), generator=drawn)
        seen = torch.where(chosen & (fate < _MASKED), self.mask, ids)
        replaced = chosen & (fate >= _MASKED) & (fate < _MASKED + _REPLACED)
        seen = torch.where(replaced, others, seen)
        return {"input_ids": seen.tolist(), "labels": labels.tolist()}


def epoch_teller(masked: Masked) -> Any:
    """A TrainerCallback that says at the start of each epoch which one it is."""
    from transformers import TrainerCallback

    class Teller(TrainerCallback):
        """Counts by steps: a Trainer that resumes begins in the middle of an epoch."""

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            batches = len(kwargs["train_dataloader"])
            masked.epoch = state.global_step // max(
                1, -(-batches // args.gradient_accumulation_steps)
            )

    return Teller()
