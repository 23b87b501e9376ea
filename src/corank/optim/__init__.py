"""Optimisers whose state is small: an algebra of gradient transforms, and methods made of it."""

from .backward import step_in_backward
from .bases import BASES
from .classes import optimizer
from .conjugate import Basis, Lift, conjugate
from .for_trainer import for_trainer
from .full_rank import apollo, fira, frugal
from .galore import galore
from .groups import groups
from .inner import INNER
from .low_rank import (
    coap,
    dct_adamw,
    flora_optim,
    galore_plus,
    gradnormlorp,
    grass,
    online_subspace_descent,
    qgalore,
    subset_norm_momentum,
)
from .stepping import LowRankOptimizer, state_bytes
from .transform import Now, State, Transform, chain

APOLLO = optimizer("APOLLO", apollo)
COAP = optimizer("COAP", coap)
DCTAdamW = optimizer("DCTAdamW", dct_adamw)
FRUGAL = optimizer("FRUGAL", frugal)
Fira = optimizer("Fira", fira)
Flora = optimizer("Flora", flora_optim)
GaLore = optimizer("GaLore", galore)
GaLorePlus = optimizer("GaLorePlus", galore_plus)
GradNormLoRP = optimizer("GradNormLoRP", gradnormlorp)
Grass = optimizer("Grass", grass)
OnlineSubspaceDescent = optimizer("OnlineSubspaceDescent", online_subspace_descent)
QGaLore = optimizer("QGaLore", qgalore)
SubsetNormMomentum = optimizer("SubsetNormMomentum", subset_norm_momentum)

__all__ = [
    "APOLLO",
    "BASES",
    "COAP",
    "FRUGAL",
    "INNER",
    "Basis",
    "DCTAdamW",
    "Fira",
    "Flora",
    "GaLore",
    "GaLorePlus",
    "GradNormLoRP",
    "Grass",
    "Lift",
    "LowRankOptimizer",
    "Now",
    "OnlineSubspaceDescent",
    "QGaLore",
    "State",
    "SubsetNormMomentum",
    "Transform",
    "chain",
    "conjugate",
    "for_trainer",
    "groups",
    "optimizer",
    "state_bytes",
    "step_in_backward",
]
