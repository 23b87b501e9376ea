"""Measurements: Operator -> numbers, and what a model shows of its weights."""

from .significance import choose_detached
from .spectrum import Spectrum, spectrum
from .super_weights import super_weights

__all__ = ["Spectrum", "choose_detached", "spectrum", "super_weights"]
