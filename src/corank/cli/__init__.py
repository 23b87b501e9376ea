"""The command line: `corank --help`."""

from .main import main

__all__ = ["main"]
