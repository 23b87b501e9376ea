"""Ways to train that span whole models, listed as methods: see `corank.settings`."""

from __future__ import annotations

from ..registry import Adaptation, Paper, method
from ..rewrites import plus, zero_low_rank
from ..settings import (
    factorllm,
    fedsa_lora,
    flexigpt,
    kshot_experts,
    loram,
    weight_selection,
)
from .counts import low_rank


@method(
    Paper(
        "ModuLoRA: Finetuning 3-Bit LLMs on Consumer GPUs by Integrating with Modular Quantizers",
        "2309.16119",
        "the authors' code: the matrix is made from the codes, used and dropped, in both passes",
        "Any weight that corank.adapt accepts will do as the base, a plain one too; rows are not "
        "made one at a time.",
    ),
    area="adapt",
    laws=("adapter", "preserves"),
    equation=lambda w, p, rank=8, alpha=16.0: w + alpha / rank * p["b"] @ p["a"],
)
def modulora(rank: int = 8, alpha: float = 16.0) -> Adaptation:
    """LoRA beside a weight quantised by any library, known only by what it computes."""
    return Adaptation(plus(zero_low_rank(rank), alpha / rank), low_rank(rank))


SETTING = ("setting",)

method(
    Paper(
        "Selective Aggregation for Low-Rank Adaptation in Federated Learning",
        "2410.01463",
        "the authors' code: right factors averaged each round, left ones and heads local",
        "Clients are models in one process; how they are chosen and talk to each other is left to "
        "the caller, as is the local training.",
    ),
    area="adapt",
    laws=SETTING,
)(fedsa_lora)

method(
    Paper(
        "Train Small, Infer Large: Memory-Efficient LoRA Training for Large Language Models",
        "2502.13533",
        "the authors' code, structured pruning; the equations' numbers were not read",
        "Channels are pruned at random (LoRAM-Rand) or by weight norm, not by LLM-Pruner's "
        "gradients. Continued pre-training of the small model (alignment) is left to the caller. "
        "Recovered columns and rows are zero; the unstructured variants, which keep the shapes, "
        "need no recovery.",
    ),
    area="adapt",
    laws=SETTING,
)(loram)

method(
    Paper(
        "FlexiGPT: Pruning and Extending Large Language Models with Low-Rank Weight Sharing",
        "2501.14713",
        "equations 1 to 8",
        "A block's distance sums the squares over its matrices, which the paper does not say; the "
        "norm's start is not given there (here 0.01), and its layer's bias is added after it. "
        "Norms and biases of a replaced block are the shared block's. Extending a model by "
        "repeating blocks is left out.",
    ),
    area="adapt",
    laws=SETTING,
)(flexigpt)

method(
    Paper(
        "Leveraging Open Knowledge for Advancing Task Expertise in Large Language Models",
        "2408.15915",
        "the authors' code: groups of 4 with the least sum of |cosine| over pairs and matrices, "
        "top-2 routing, a linear router; how the scores are weighed was not found in it",
        "Performance is one loss that the caller gives, where the paper joins accuracy and "
        "perplexity of reasoning; the factors alpha / rank are folded into the experts. Selecting "
        "training data is left out.",
    ),
    area="adapt",
    laws=SETTING,
)(kshot_experts)

method(
    Paper(
        "Initializing Models with Larger Ones",
        "2311.18823",
        "the abstract and the authors' code: first layers, uniform elements of every dimension; "
        "the body was not read",
        "Where a side does not divide, elements are the floors of evenly spaced numbers, where the "
        "code rounds numbers that end one past the last. What is left out is the caller's choice; "
        "the code leaves out the head. Heads of attention are not told apart, as there.",
    ),
    area="compress",
    laws=SETTING,
)(weight_selection)

method(
    Paper(
        "FactorLLM: Factorizing Knowledge via Mixture of Experts for Large Language Models",
        "2408.11855",
        "the abstract and the authors' code; the sections were not read",
        "Routers alone learn, from the original's inputs to each network; the training of experts "
        "and routers together, with the language model's loss and a balance loss, is left to the "
        "caller, and so the router learns nothing after. It has no bias. The router of most "
        "agreement is kept. Only gate and up skip what was not chosen.",
    ),
    area="compress",
    laws=SETTING,
)(factorllm)
