"""Optimisers whose state is small: an algebra of gradient transforms, and methods made of it."""

from .adamp import adamp
from .backward import step_in_backward
from .bases import BASES
from .classes import optimizer
from .communication import powersgd
from .conjugate import Basis, Lift, conjugate
from .curvature import mkor, singd
from .decaying import cautious, cautious_wd
from .factored import smmf
from .fisher import mfac
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
from .others import adamw_8bit, shampoo
from .scaling import top_singular_values, wd_scaling
from .stepping import LowRankOptimizer, state_bytes
from .transform import Now, State, Transform, chain

APOLLO = optimizer("APOLLO", apollo)
AdamP = optimizer("AdamP", adamp)
COAP = optimizer("COAP", coap)
CautiousDecay = optimizer("CautiousDecay", cautious_wd)
DCTAdamW = optimizer("DCTAdamW", dct_adamw)
FRUGAL = optimizer("FRUGAL", frugal)
Fira = optimizer("Fira", fira)
Flora = optimizer("Flora", flora_optim)
GaLore = optimizer("GaLore", galore)
GaLorePlus = optimizer("GaLorePlus", galore_plus)
GradNormLoRP = optimizer("GradNormLoRP", gradnormlorp)
Grass = optimizer("Grass", grass)
MFAC = optimizer("MFAC", mfac)
MKOR = optimizer("MKOR", mkor)
OnlineSubspaceDescent = optimizer("OnlineSubspaceDescent", online_subspace_descent)
QGaLore = optimizer("QGaLore", qgalore)
SINGD = optimizer("SINGD", singd)
SMMF = optimizer("SMMF", smmf)
SubsetNormMomentum = optimizer("SubsetNormMomentum", subset_norm_momentum)

__all__ = [
    "APOLLO",
    "BASES",
    "COAP",
    "FRUGAL",
    "INNER",
    "MFAC",
    "MKOR",
    "SINGD",
    "SMMF",
    "AdamP",
    "Basis",
    "CautiousDecay",
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
    "adamw_8bit",
    "cautious",
    "chain",
    "conjugate",
    "for_trainer",
    "groups",
    "optimizer",
    "powersgd",
    "shampoo",
    "state_bytes",
    "step_in_backward",
    "top_singular_values",
    "wd_scaling",
]
