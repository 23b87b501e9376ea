"""The claims, and the two sides that each is tried with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks.claiming.runs import Setting
from benchmarks.tuning.measure import FROZEN, FULL


@dataclass(frozen=True)
class Side:
    """A measured quantity: one setting's measure, or its difference to another setting's."""

    setting: Setting
    measure: str
    less: Setting | None = None

    @property
    def settings(self) -> list[Setting]:
        return [self.setting, *([self.less] if self.less else [])]


@dataclass(frozen=True)
class Claim:
    """What a paper says of the first side beside the second.

    kind: "better", or "close": it keeps 95% of what the second side gains over the frozen model.
    higher: whether more of the measure is better. `note`: what differs from the paper's own trial.
    """

    key: str
    paper: str
    arxiv: str
    says: str
    kind: Literal["better", "close"]
    first: Side
    second: Side
    higher: bool = True
    note: str = ""

    @property
    def settings(self) -> list[Setting]:
        """Everything that must be run for it."""
        found = [*self.first.settings, *self.second.settings]
        return [*found, frozen(self.first.setting)] if self.kind == "close" else found

    @property
    def possible(self) -> bool:
        return all(setting.possible for setting in self.settings)


def frozen(setting: Setting) -> Setting:
    """The untouched model on the setting's task."""
    return Setting(setting.task, FROZEN, steps=setting.steps)


QUICK, USUAL, LONG, MEMORY, LANGUAGE = 20, 50, 400, 400, 20


def digits(method: str, steps: int = USUAL, **parameters: Any) -> Setting:
    return Setting("digits", method, tuple(parameters.items()), steps)


def prose(method: str, **parameters: Any) -> Setting:
    return Setting("prose", method, tuple(parameters.items()), LANGUAGE)


def pairs(method: str, **parameters: Any) -> Setting:
    return Setting("pairs", method, tuple(parameters.items()), MEMORY)


def looking(setting: Setting, looks: str) -> Setting:
    return replace(setting, looks=looks)


def sooner(key: str, paper: str, arxiv: str, method: str, note: str = "", **more: Any) -> Claim:
    """A lower loss than LoRA's after few steps, at the same rank."""
    return Claim(
        f"{key}, digits", paper, arxiv, "converges faster than LoRA", "better",
        Side(digits(method, QUICK, rank=4, **more), "loss"),
        Side(digits("lora", QUICK, rank=4), "loss"), False, note,
    )  # fmt: skip


def quality(
    key: str, paper: str, arxiv: str, says: str, kind: Literal["better", "close"], method: Setting,
    other: Setting, note: str = "",
) -> Claim:  # fmt: skip
    """The accuracy of one setting beside another's."""
    return Claim(
        key, paper, arxiv, says, kind, Side(method, "accuracy"), Side(other, "accuracy"), True, note
    )


def remembers(
    key: str, paper: str, arxiv: str, says: str, method: Setting, other: Setting, note: str = ""
) -> Claim:
    """How well the earlier task still goes, beside another setting."""
    return Claim(
        key, paper, arxiv, says, "better", Side(method, "kept"), Side(other, "kept"), True, note
    )


def _rank_stabilised(one_rate: bool) -> Claim:
    sides = []
    for method in ("rslora", "lora"):
        small, large = digits(method, rank=4), digits(method, rank=64)
        if one_rate:
            large = replace(large, rate_of=small)
        sides.append(Side(small, "loss", large))
    rates = "the rate chosen at rank 4" if one_rate else "each rank's own rate"
    return Claim(
        f"rslora at {rates}", "rsLoRA", "2312.03732",
        "gains more than LoRA when the rank goes from 4 to 64", "better", *sides, True,
        f"Measured is the loss at rank 4 less that at rank 64, at {rates}."
        + ("" if one_rate else " Added after the figures of the row above were seen."),
    )  # fmt: skip


LORA8 = digits("lora", rank=8)
#: Runs on prose are dear, so the same ones serve all claims.
PROSE, PROSE_FULL = (looking(s, "intruders") for s in (prose("lora", rank=8), prose(FULL)))
CUT = "cut to 2"
CLAIMS: tuple[Claim, ...] = (
    sooner("pissa", "PiSSA", "2404.02948", "pissa"),
    Claim(
        "pissa, prose", "PiSSA", "2404.02948", "converges faster than LoRA", "better",
        Side(prose("pissa", rank=8), "loss"), Side(PROSE, "loss"), False,
    ),
    _rank_stabilised(one_rate=True),
    _rank_stabilised(one_rate=False),
    sooner("lora_plus", "LoRA+", "2402.12354", "lora_plus",
           "The rate of a is chosen, that of b is 16 times it, as by default."),
    sooner("olora", "OLoRA", "2406.01775", "olora"),
    sooner("eva", "EVA", "2410.07170", "eva",
           "Its ranks go to the sites that need them (rho 2)."),
    sooner("corda", "CorDA", "2406.05223", "corda", "Instruction-previewed mode.", mode="ipm"),
    sooner("sorsa", "SORSA", "2409.00055", "sorsa"),
    quality("lora", "LoRA", "2106.09685", "is on par with full fine-tuning", "close", LORA8,
            digits(FULL)),
    quality("lora_fa", "LoRA-FA", "2308.03303", "freezing a costs little beside LoRA", "close",
            digits("lora_fa", rank=8), LORA8),
    quality("lora_xs", "LoRA-XS", "2405.17604", "matches LoRA with far fewer parameters", "close",
            digits("lora_xs", rank=8), LORA8),
    quality("lora_sb", "LoRA-SB", "2411.19557",
            "matches or beats LoRA with far fewer parameters", "close",
            digits("lora_sb", rank=8), LORA8),
    quality("lora_sb over lora_xs", "LoRA-SB", "2411.19557", "beats LoRA-XS at equal size",
            "better", digits("lora_sb", rank=8), digits("lora_xs", rank=8)),
    quality("vera", "VeRA", "2310.11454", "is near LoRA with ten times fewer parameters", "close",
            digits("vera", rank=256), LORA8),
    quality("fourierft", "FourierFT", "2405.03003", "is near LoRA with fewer parameters", "close",
            digits("fourierft", n_frequency=250, init_weights=True), LORA8,
            "From zero: its random start at the default scale destroys so small a network."),
    quality("dora", "DoRA", "2402.09353", "beats LoRA, most at low rank", "better",
            digits("dora", rank=1), digits("lora", rank=1)),
    quality("adalora", "AdaLoRA", "2303.10512", "beats LoRA at an equal budget", "better",
            digits("adalora", target_r=2, init_r=3, tinit=5, tfinal=15), digits("lora", rank=2),
            "The budget is that of the ranks at the end; 3 ranks each train at the beginning. "
            "The schedule was set once and not tuned; papers give it thousands of steps."),
    quality("eva, after", "EVA", "2410.07170", "ends better than LoRA's random start", "better",
            digits("eva", rank=2), digits("lora", rank=2)),
    quality("kasa", "KaSA", "2412.06071", "beats LoRA", "better",
            digits("kasa", rank=2), digits("lora", rank=2)),
    quality("spectral_adapter", "Spectral Adapter", "2405.13952", "beats LoRA at equal size",
            "better", digits("spectral_adapter", rank=2), digits("lora", rank=2)),
    quality("svft", "SVFT", "2405.19597",
            "recovers most of full fine-tuning with a few parameters", "close",
            digits("svft", off_diagonal=2), digits(FULL)),
    quality("fedpara", "FedPara (LoHa)", "2108.06098", "beats plain factors at equal size",
            "better", digits("fedpara", rank=2), digits("lora", rank=4)),
    quality("mora", "MoRA", "2405.12130", "memorises more than LoRA at equal size", "better",
            pairs("mora", rank=2), pairs("lora", rank=2),
            "The paper's task too is random keys and values (identifiers), there for a language "
            "model."),
    quality("randlora", "RandLoRA", "2502.00987", "beats LoRA at no greater size, by its full rank",
            "better", pairs("randlora", rank=64), pairs("lora", rank=2),
            "On the task of memory, where rank matters most."),
    *(
        Claim(
            f"dylora, {measure}", "DyLoRA", "2210.07558",
            "works at ranks below the trained one, where LoRA does not", "better",
            Side(looking(digits("dylora", LONG, rank=8), CUT), "accuracy cut"),
            Side(looking(digits("lora", LONG, rank=8), CUT), measure), True,
            f"Trained at rank 8 and used at rank 2: DyLoRA's first ranks with their scale, {note}.",
        )
        for measure, note in (
            ("accuracy cut", "LoRA's first ranks"),
            ("accuracy cut by SVD", "the best of LoRA's b a"),
        )
    ),
    remembers("lora remembers", "LoRA Learns Less and Forgets Less", "2405.09673",
              "LoRA forgets less than full fine-tuning", LORA8, digits(FULL)),
    remembers("lora remembers, prose", "LoRA Learns Less and Forgets Less", "2405.09673",
              "LoRA forgets less than full fine-tuning", PROSE, PROSE_FULL),
    remembers("milora", "MiLoRA", "2406.09044", "forgets less than PiSSA",
              digits("milora", rank=8), digits("pissa", rank=8)),
    remembers("milora, prose", "MiLoRA", "2406.09044", "forgets less than PiSSA",
              prose("milora", rank=8), prose("pissa", rank=8)),
    remembers("corda remembers", "CorDA", "2406.05223", "forgets less than LoRA",
              digits("corda", rank=8, mode="kpm"), LORA8,
              "Knowledge-preserved mode: calibrated on the upright digits that are to be kept."),
    remembers("hra", "HRA", "2405.17484", "a product of reflections forgets less than LoRA",
              digits("hra", rank=8), LORA8,
              "The claim is that of orthogonal fine-tuning in general (OFT, 2306.07280)."),
    Claim("intruders", "LoRA vs Full Fine-tuning: An Illusion of Equivalence", "2410.21228",
          "LoRA has intruder dimensions, full fine-tuning has not", "better",
          Side(looking(LORA8, "intruders"), "intruders"),
          Side(looking(digits(FULL), "intruders"), "intruders"), True,
          "Measured is the number per matrix of the 10 leading left singular vectors of W' whose "
          "largest |cosine| with those of W is below 0.5; held means that LoRA has more."),
    Claim("intruders, prose", "LoRA vs Full Fine-tuning: An Illusion of Equivalence", "2410.21228",
          "LoRA has intruder dimensions, full fine-tuning has not", "better",
          Side(PROSE, "intruders"),
          Side(PROSE_FULL, "intruders"), True,
          "As above, on the language model."),
)  # fmt: skip
