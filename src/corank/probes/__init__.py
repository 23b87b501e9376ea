"""Measurements: Operator -> numbers."""

from .spectrum import Spectrum, spectrum

__all__ = ["Spectrum", "spectrum"]
