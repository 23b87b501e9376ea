"""Which of a model's weights make up one attention."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from .site import Site

_ROLES = frozenset({"q", "k", "v", "o"})
_NAMED = re.compile(r"(?:.*\.)?[^.]*(?:attn|attention)[^.]*", re.IGNORECASE)


def attentions(sites: Sequence[Site]) -> dict[str, dict[str, Site]]:
    """Path of each attention -> role -> site, in the order of the sites; q, k, v and o only.

    The path ends with the last module whose name speaks of attention, where one does, and else is
    that of the module around the weight. An attention with two weights of one role is left out.
    """
    found: dict[str, dict[str, Site]] = defaultdict(dict)
    several: set[str] = set()
    for site in sites:
        if site.role in _ROLES:
            around = site.name.rpartition(".")[0]
            named = _NAMED.match(around)
            path = named.group() if named else around
            several |= {path} if site.role in found[path] else set()
            found[path][site.role] = site
    return {path: roles for path, roles in found.items() if path not in several}
