"""Each case in a process of its own: what is imported, and when, is what is tested."""

from __future__ import annotations

import subprocess
import sys

import pytest

REGISTER = "from corank.plugin import register_with_transformers as register; register()\n"
KNOWN = """
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as quantizers
assert quantizers["corank"].__module__ == "corank.io.quantizer"
"""


BEFORE = f"""
import sys
{REGISTER * 2}
assert "transformers" not in sys.modules
import transformers
assert "transformers.quantizers.auto" not in sys.modules
{KNOWN}
assert not any("corank" in type(finder).__module__ for finder in sys.meta_path)
assert sys.modules["transformers.quantizers.auto"].__spec__.origin.endswith("auto.py")
"""
AFTER = f"""
import transformers.quantizers.auto
{REGISTER * 2}
{KNOWN}
"""


@pytest.mark.parametrize("code", [BEFORE, AFTER], ids=["before", "after"])
def test_transformers_learns_of_corank(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
